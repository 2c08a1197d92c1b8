"""Studies of the paper that look at modules: their kinds, their similarity, and one case."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from shell import done, refused
from test_report import Page
from test_studies_paper import check_scores, page_text
from toys import tiny_base_folder
from transformers import AutoModelForCausalLM, AutoTokenizer
from trials import numbers_of, ran, rows_of, run_folder, sample

from oppu.data.sample import sample_tasks
from oppu.evaluate.lab.similarity import of_pairs, parameter_similarity, spread_interval, update_similarity
from oppu.examples import Setting, query_examples
from oppu.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies of this file have run."""
    return tmp_path_factory.mktemp("studies")


def tensors_of(run: Path, task: str, users: list[str]) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The users' modules as their files have them."""
    with Store(run / "store") as store:
        folders = {record.user_id: Path(record.path) for record in store.modules(task=task, newest_only=True)}
    return [load_file(folders[user] / "adapter_model.safetensors") for user in users]


# kinds


@pytest.fixture(scope="module")
def kinds(place: Path) -> Path:
    return ran("kinds", place, "--kinds", "lora,ia3,prompt,lora-xs", "--learning-rate", 0.01)


def test_every_kind_has_its_size_and_its_scores(kinds: Path, place: Path) -> None:
    rows = {row["kind"]: row for row in rows_of(kinds)}
    assert list(rows) == ["majority", "no module", "lora", "ia3", "prompt", "lora-xs"]
    base = AutoModelForCausalLM.from_pretrained(kinds / "store" / "bases" / "note_filing-plain")
    size = sum(weight.numel() for weight in base.parameters())
    for kind in ("lora", "ia3", "prompt", "lora-xs"):
        run = run_folder(kinds, f"{kind}-0.01-plain")
        with Store(run / "store") as store:
            records = store.modules()
            assert {record.training["config"]["learning_rate"] for record in records} == {0.01}
            assert {record.training["config"]["module"]["kind"] for record in records} == {kind}
        files = [path for record in records for path in Path(record.path).glob("*.safetensors")]
        parameters = {sum(tensor.size for tensor in load_file(path).values()) for path in files}
        assert {int(rows[kind]["parameters"])} == parameters
        assert float(rows[kind]["percent_of_base"]) == pytest.approx(100 * parameters.pop() / size)
        assert int(rows[kind]["bytes"]) == records[0].size_bytes
    # rank 2, query [32, 32] and value [32, 16] of two layers
    assert int(rows["lora"]["parameters"]) == 2 * 2 * (32 + 32 + 32 + 16)
    assert int(rows["lora-xs"]["parameters"]) == 2 * 2 * 2 * 2
    assert int(rows["prompt"]["parameters"]) == 20 * 32
    assert rows["lora"]["held_out_loss"] == ""
    assert "lora (448 parameters)" in page_text(kinds)


def test_a_base_that_another_study_adapted_is_taken_over(kinds: Path, place: Path) -> None:
    out = ran("users", place, "--users", 3, "--sizes", 2, "--draws", 2, "--bases", kinds)
    weights = "store/bases/note_filing-plain/model.safetensors"
    assert (out / weights).samefile(kinds / weights)


def test_a_rate_at_which_training_diverges_has_lost(tmp_path: Path) -> None:
    base, out = tiny_base_folder(tmp_path / "tiny"), tmp_path / "kinds"
    given = (
        "--base",
        base,
        "--users",
        1,
        "--kinds",
        "lora",
        "--no-adapt",
        "--newest",
        8,
        "--epochs",
        2,
        "--batch-size",
        2,
    )
    done("study", "kinds", *given, "--rates", "1e30,0.01", "--out", out)
    assert [row["learning_rate"] for row in rows_of(out) if row["kind"] == "lora"] == ["0.01"]
    assert numbers_of(out)["held_out_losses"]["lora"]["1e+30"] is None
    assert "diverged" in refused("study", "kinds", *given, "--rates", "1e29,1e30", "--out", tmp_path / "both")


def test_a_kind_takes_the_rate_with_the_least_loss_on_held_out_items(tmp_path: Path) -> None:
    given = ("--users", 2, "--kinds", "ia3", "--no-adapt")
    base, out = tiny_base_folder(tmp_path / "tiny"), tmp_path / "kinds"
    sizes = ("--newest", 8, "--epochs", 2, "--batch-size", 4)
    done("study", "kinds", "--base", base, *given, *sizes, "--rates", "0.0001,0.3,0.05", "--out", out)
    losses = {}
    for rate in ("0.0001", "0.3", "0.05"):
        with Store(run_folder(out, f"ia3-{rate}-held-out") / "store") as store:
            records = store.modules()
            assert len(records) == 2
            assert all(len(record.training["held_out_losses"]) == 1 + 2 for record in records)  # before, and each epoch
            losses[rate] = np.mean([record.training["held_out_losses"][-1] for record in records])
    assert numbers_of(out)["held_out_losses"]["ia3"] == pytest.approx(losses)
    best = min(losses, key=lambda rate: losses[rate])
    row = rows_of(out)[-1]
    assert (row["kind"], row["learning_rate"]) == ("ia3", best)
    assert float(row["held_out_loss"]) == pytest.approx(losses[best])
    with Store(run_folder(out, f"ia3-{best}-plain") / "store") as store:
        assert all(record.training["config"]["patience"] is None for record in store.modules())
    text = page_text(out)
    assert "Held-out loss" in text
    at_an_end = best in ("0.0001", "0.3")
    assert ("The least or the greatest of the rates was taken by ia3: try others with --rates." in text) == at_an_end


def test_an_unknown_kind_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    message = refused("study", "kinds", "--kinds", "lora,adapter", "--out", tmp_path / "out")
    assert "unknown kind of module 'adapter'" in message
    assert not (tmp_path / "out" / "store").exists()


# similarity

ALIKE = 3


@pytest.fixture(scope="module")
def similarity(place: Path) -> Path:
    return ran("similarity", place, "--users", ALIKE)


def test_similarities_are_those_of_the_stored_modules(similarity: Path) -> None:
    found = numbers_of(similarity)["similarity"]
    assert list(found) == ["note_filing", "subject_line"]
    for name, each in found.items():
        assert len(each["users"]) == ALIKE
        modules = tensors_of(run_folder(similarity, f"{name}-lora-plain"), name, each["users"])
        cores = [m["cores"].ravel() for m in tensors_of(run_folder(similarity, f"{name}-lora-xs"), name, each["users"])]
        layers = sorted(key.removesuffix(".lora_A.weight") for key in modules[0] if key.endswith("lora_A.weight"))
        updates = [
            np.concatenate([(m[f"{layer}.lora_B.weight"] @ m[f"{layer}.lora_A.weight"]).ravel() for layer in layers])
            for m in modules
        ]
        for i in range(ALIKE):
            for j in range(ALIKE):
                wanted = updates[i] @ updates[j] / np.linalg.norm(updates[i]) / np.linalg.norm(updates[j])
                assert each["updates"][i][j] == pytest.approx(wanted, abs=1e-5)
                alike = cores[i] @ cores[j] / np.linalg.norm(cores[i]) / np.linalg.norm(cores[j])
                assert each["cores"][i][j] == pytest.approx(alike, abs=1e-5)
                assert each["parameters"][i][j] == pytest.approx(as_in_the_paper(modules[i], modules[j]), abs=1e-5)
        assert each["updates"][0][1] != pytest.approx(each["parameters"][0][1], abs=1e-3)


def as_in_the_paper(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Appendix G: cosine of each tensor, averaged."""
    cosines = [torch.cosine_similarity(*(torch.tensor(m[key]).flatten() for m in (one, other)), dim=0) for key in one]
    return float(sum(cosines)) / len(cosines)


def test_the_table_has_mean_spread_and_ends_over_pairs(similarity: Path) -> None:
    found = numbers_of(similarity)["similarity"]
    rows = rows_of(similarity)
    assert [(row["task"], row["compared"]) for row in rows] == [
        (name, what) for name in ("note_filing", "subject_line") for what in ("cores", "updates", "parameters")
    ]
    for row in rows:
        matrix = found[row["task"]][row["compared"]]
        pairs = [matrix[i][j] for i in range(ALIKE) for j in range(i)]
        wanted = (np.mean(pairs), np.std(pairs), min(pairs), max(pairs))
        assert [float(row[name]) for name in ("mean", "spread", "least", "greatest")] == pytest.approx(wanted, abs=1e-5)
        assert int(row["pairs"]) == len(pairs)
        assert float(row["spread_low"]) <= float(row["spread_high"])


def test_the_page_has_a_heat_map_for_each_task_and_both_distributions(similarity: Path) -> None:
    page = Page((similarity / "report.html").read_text(encoding="utf-8"))
    assert page.plots == 5
    text = page_text(similarity)
    assert "Spread over pairs, cores of LoRA-XS: note_filing (labels)" in text
    assert "subject_line (text)" in text
    svg = (similarity / "similarity.svg").read_text(encoding="utf-8")
    assert svg.count("data:image/png") >= 2
    ElementTree.fromstring(svg)


def test_one_task_of_ones_own_is_looked_at_alone_and_two_must_differ(place: Path, tmp_path: Path) -> None:
    text = sample_tasks()[1]
    mine = ("--task", text.task, "--data", text.data, "--no-adapt", "--users", 2)
    out = ran("similarity", tmp_path, *mine)
    assert [row["task"] for row in rows_of(out)] == ["subject_line"] * 3
    assert rows_of(out)[0]["spread_low"] == ""  # two users are one pair
    command = ("study", "similarity", "--base", tmp_path / "tiny", "--out", tmp_path / "other")
    assert "belong together" in refused(*command, "--other-task", text.task)
    other = ("--other-task", text.task, "--other-data", text.data)
    assert "--other-task needs --task" in refused(*command, *other)
    assert "are the same" in refused(*command, *mine, *other)


def test_similarity_of_modules_that_are_known() -> None:
    a, b = np.eye(2, 3, dtype=np.float32), np.ones((4, 2), dtype=np.float32)
    turned = np.array([[0, 1], [1, 0]], dtype=np.float32)

    def module(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"base_model.model.q.lora_A.weight": a, "base_model.model.q.lora_B.weight": b}

    same = [module(a, b), module(turned @ a, b @ turned), module(2 * a, -3 * b), module(a, 0 * b)]
    np.testing.assert_allclose(
        update_similarity(same), [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]], atol=1e-12
    )
    assert parameter_similarity(same)[0, 1] == pytest.approx(0.5)  # a turned, b alike
    assert parameter_similarity(same)[0, 2] == pytest.approx(0)  # 1 and -1
    assert of_pairs(np.array([[1, 0.2, 0.3], [0.2, 1, 0.4], [0.3, 0.4, 1]])).tolist() == [0.2, 0.3, 0.4]


def test_the_interval_of_a_spread_holds_it_and_narrows_with_users() -> None:
    rng = np.random.default_rng(1)

    def alike(users: int) -> np.ndarray[Any, Any]:
        lines = rng.normal(size=(users, 40))
        lines /= np.linalg.norm(lines, axis=1, keepdims=True)
        return np.asarray(lines @ lines.T)

    widths = []
    for users in (6, 40):
        matrix = alike(users)
        low, high = spread_interval(matrix, samples=300)
        assert low <= of_pairs(matrix).std() <= high
        widths.append(high - low)
    assert widths[1] < widths[0]
    assert math.isnan(spread_interval(alike(2))[0])


# case


@pytest.fixture(scope="module")
def case(place: Path) -> Path:
    return ran("case", place, "--k", 2)


def log_prob(model: Any, tokenizer: Any, prompt: str, answer: str, labels: Sequence[str]) -> float:
    """Of the answer among the labels, or without labels of a token of it on average; by transformers alone."""
    if labels:
        scores = torch.tensor([log_probs(model, tokenizer, prompt, label).sum() for label in labels])
        return float(scores.log_softmax(0)[labels.index(answer)])
    return float(log_probs(model, tokenizer, prompt, answer).mean())


def log_probs(model: Any, tokenizer: Any, prompt: str, answer: str) -> torch.Tensor:
    """Of each token of the answer and of its end."""
    ids = tokenizer(prompt).input_ids
    told = [*tokenizer(f" {answer}", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *told]])).logits[0]
    found = logits.log_softmax(-1)[len(ids) - 1 : -1]
    return torch.as_tensor(found[torch.arange(len(told)), told])


def scores_by_hand(out: Path, place: int = 0) -> dict[str, dict[str, float]]:
    """By query and method, with transformers and PEFT, one question at a time."""
    task, users, _ = sample(place)
    found: dict[str, dict[str, float]] = {}
    for setting, plain, personal in ((Setting(), "base", "oppu"), (Setting(k=2), "rag", "oppu+rag")):
        folder = out / "store" / "bases" / f"{task.name}-{setting.name}"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with Store(run_folder(out, f"case-{setting.name}") / "store") as store:
            modules = {record.user_id: record.path for record in store.modules()}
        for user in (user for user in users if user.id in modules):
            base = AutoModelForCausalLM.from_pretrained(folder).eval()
            examples = query_examples(task, user, setting)
            for method in (plain, personal):
                model = base if method == plain else PeftModel.from_pretrained(base, str(modules[user.id])).eval()
                for query, example in zip(user.queries, examples, strict=True):
                    value = log_prob(model, tokenizer, example.prompt, str(query.gold), task.labels)
                    found.setdefault(query.id, {})[method] = value
    return found


def test_the_case_is_the_question_on_which_the_module_helps_most(case: Path) -> None:
    scores = scores_by_hand(case)
    gains = {name: each["oppu"] - max(each["base"], each["rag"]) for name, each in scores.items()}
    written = numbers_of(case)
    assert written["gains"] == pytest.approx(gains, abs=1e-3)
    assert len({round(gain, 3) for gain in gains.values()}) > 3
    ordered = sorted(gains, key=lambda name: -gains[name])
    first = "most help" if gains[ordered[0]] > 0 else "least harm"
    last = "most harm" if gains[ordered[-1]] <= 0 else "least help"
    rows = rows_of(case)
    assert [(row["case"], row["method"]) for row in rows] == [
        (name, method) for name in (first, last) for method in ("base", "rag", "oppu", "oppu+rag")
    ]
    for row in rows:
        name = ordered[0] if row["case"] == first else ordered[-1]
        assert float(row["log_prob"]) == pytest.approx(scores[name][row["method"]], abs=1e-3)


def test_the_case_shows_what_each_method_saw_and_said(case: Path) -> None:
    task, users, _ = sample()
    written = numbers_of(case)
    best = max(written["gains"], key=lambda name: written["gains"][name])
    user = next(user for user in users if best in [query.id for query in user.queries])
    place = [query.id for query in user.queries].index(best)
    for row in rows_of(case)[:4]:
        k = 2 if "rag" in row["method"] else 0
        example = query_examples(task, user, Setting(k=k))[place]
        assert written["prompts"][row["case"]][row["method"]] == example.prompt
        assert row["retrieved"] == ", ".join(example.retrieved)
        items = {item.id: item.fields for item in user.history}
        shown = " ".join(f"note: {items[i]['input']} folder: {items[i]['output']}" for i in example.retrieved)
        assert row["seen"] == shown
        run = run_folder(case, f"case-{'bm25-k2' if k else 'plain'}")
        golds = json.loads((run / "predictions" / f"{row['method']}-k{k}.json").read_text())["golds"]
        assert row["said"] == next(each["output"] for each in golds if each["id"] == best)
    text = page_text(case)
    query = user.queries[place]
    assert f"user {user.id}: the true answer is “{query.gold}”" in text
    assert f"The question: “note: {query.input} folder:”" in text


def test_profiles_are_shown_where_they_are_given(place: Path, tmp_path: Path) -> None:
    _, users, base_users = sample()
    file = tmp_path / "profiles.json"
    file.write_text(json.dumps({user.id: f"{user.id} likes order." for user in (*users, *base_users)}))
    out = ran("case", tmp_path, "--profiles", file, "--users", 1)
    assert [row["method"] for row in rows_of(out)[:6]] == ["base", "rag", "pag", "oppu", "oppu+rag", "oppu+pag"]
    user = numbers_of(out)["prompts"][rows_of(out)[0]["case"]]["pag"].split(" likes")[0]
    assert user in [each.id for each in users]
    assert next(row["seen"] for row in rows_of(out) if row["method"] == "oppu+pag") == f"{user} likes order."
    assert (run_folder(out, "case-profile") / "predictions" / "oppu+pag-k0.json").is_file()


def test_other_profiles_are_scored_anew_where_they_are_shown_and_nowhere_else(tmp_path: Path) -> None:
    _, users, base_users = sample()
    file = tmp_path / "profiles.json"

    def scored(words: str) -> dict[str, dict[str, Any]]:
        told = {user.id: words for user in users} | {user.id: "likes order" for user in base_users}
        file.write_text(json.dumps(told))
        out = ran("case", tmp_path, "--profiles", file, "--users", 1)
        return {each.name: json.loads(each.read_text()) for each in (out / "measurements").iterdir()}

    before = scored("likes order")
    after = scored("is never on time")
    assert after.items() >= before.items()
    new = {each["inputs"]["method"]: each["value"] for name, each in after.items() if name not in before}
    old = {each["inputs"]["method"]: each["value"] for each in before.values()}
    assert sorted(new) == ["oppu+pag-k0", "pag-k0"]
    assert all(new[method] != old[method] for method in new)


def test_a_text_task_has_its_case(tmp_path: Path) -> None:
    text = sample_tasks()[1]
    given = ("--task", text.task, "--data", text.data, "--newest", 4)
    out = ran("case", tmp_path, *given, "--users", 1, "--k", 2, "--words", 3)
    scores = {name: each for name, each in scores_by_hand(out, 1).items() if name in numbers_of(out)["gains"]}
    gains = {name: each["oppu"] - max(each["base"], each["rag"]) for name, each in scores.items()}
    assert numbers_of(out)["gains"] == pytest.approx(gains, abs=1e-3)
    seen = [row["seen"] for row in rows_of(out) if row["method"] == "rag"]
    assert all(len(each.split()) == 4 and each.endswith(" …") for each in seen)
    assert "On " in page_text(out)


def test_scores_of_the_kinds_table_are_those_of_the_predictions(kinds: Path) -> None:
    row = next(row for row in rows_of(kinds) if row["kind"] == "prompt")
    check_scores(row, run_folder(kinds, "prompt-0.01-plain"), "oppu-k0")
