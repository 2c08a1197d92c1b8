"""Studies of what the paper leaves open, on the sample data with a tiny base: tasks, users, bias, full fine-tuning."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import exp
from pathlib import Path
from typing import Any

import pytest
from alone import QUICK, config_of, mean, nlls_alone, numbers_of, sample, table_of
from conftest import tiny_model
from shell import done, refused, rows
from toys import tiny_base_folder, write_release

from oppu.adapt import AdaptConfig, adapt, adaption_examples
from oppu.data import read_dataset, without_asked_texts, without_test_questions
from oppu.data.sample import sample_tasks
from oppu.evaluate.lab import whole
from oppu.evaluate.lab.likeness import words_of
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.significance import mean_interval
from oppu.examples import Setting, query_examples, training_examples
from oppu.model.base import Base, load_base
from oppu.model.tokens import Encoded, encode
from oppu.recipes import Recipe, recipe_for
from oppu.records import HistoryItem, Query, User
from oppu.tasks import Task, find_task
from oppu.train import TrainConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base."""
    return tiny_base_folder(tmp_path_factory.mktemp("shared") / "tiny")


def study(name: str, tiny: Path, out: Path, *arguments: object, place: int | None = 0) -> str:
    """A study on a sample task, or on those that it takes without one."""
    given: list[object] = []
    if place is not None:
        given = ["--task", sample_tasks()[place].task, "--data", sample_tasks()[place].data]
    return done("study", name, *given, "--base", tiny, "--out", out / name, *QUICK, *arguments)


def answers_in(out: Path) -> list[list[dict[str, Any]]]:
    """The answers of each measurement that a study has kept."""
    return [json.loads(file.read_text())["value"]["answers"] for file in sorted((out / "measurements").iterdir())]


# tasks


def test_one_module_for_all_tasks_stands_beside_one_for_each_and_the_others(tiny: Path, tmp_path: Path) -> None:
    study("tasks", tiny, tmp_path, "--users", "2", "--newest", "5", place=None)
    found = {(row["task"], row["modules"]): row for row in table_of(tmp_path / "tasks", "tasks")}
    labels, words = sample(0, 8), sample(1, 8)
    ids = [person["id"] for person in numbers_of(tmp_path / "tasks", "tasks")["people"]]
    assert len(ids) == 2
    users = [{user.id: user for user in listed} for _, listed in (labels, words)]
    for user in ids:  # what is older than the newest item of both tasks
        until = min(each[user].history[-1].time for each in users)
        for each in users:
            older = tuple(item for item in each[user].history if item.time < until)
            each[user] = replace(each[user], history=older)
    learnt = [{u: training_examples(labels[0], users[0][u], newest=5) for u in ids}]
    learnt += [{u: training_examples(words[0], users[1][u], newest=5) for u in ids}]
    for at, (task, _) in enumerate((labels, words)):
        for modules, what in (
            ("base", ()),
            ("one for each task", (at,)),
            ("the other tasks'", (1 - at,)),
            ("one for all tasks", (0, 1)),
        ):
            nlls = []
            for user in ids:
                items = [example for each in what for example in learnt[each][user]]
                nlls += nlls_alone(tiny, task, user, items, query_examples(task, users[at][user]))
            row = found[task.name, modules]
            assert float(row["nll"]) == pytest.approx(mean(nlls), abs=1e-4)
            assert float(row["items"]) == 5 * len(what)
            assert (row["accuracy"] == "") == (at == 1)
            assert (row["rouge1"] == "") == (at == 0)
    joint, own = (float(found["note_filing", name]["nll"]) for name in ("one for all tasks", "one for each task"))
    assert float(found["note_filing", "one for all tasks"]["gain_own"]) == pytest.approx(own - joint, abs=1e-6)


def test_nothing_later_than_a_question_is_learnt_from_another_task(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [sample.task for sample in sample_tasks()]
    answers = ("work", "a word")

    def listed(place: int, days: Sequence[int], held_out: str) -> Path:
        def row(user: str, split: str, day: int) -> dict[str, object]:
            time = f"2025-01-{day:02}"
            what = {"split": split, "input": time, "output": answers[place]}
            return {"user": user, "id": f"{user}{day}", "time": time, **what}

        return rows(
            tmp_path / f"{place}.jsonl",
            *(row("ann", "history", day) for day in days),
            row("ann", "query", 20),
            *(row(user, "base", 1) for user in (held_out, "zoe")),
            *((row("bob", "history", 1), row("bob", "query", 2)) if place == 0 else ()),
        )

    # bob is asked in the first task, and so adapts no base in the second; the first task's last day is ann's third
    data = [listed(0, (1, 2, 3), "yan"), listed(1, (1, 2, 3, 4), "bob")]
    lessons: dict[str, list[str]] = {}
    adapted: set[str] = set()
    original, pairs = Probe.answers, adaption_examples

    def answers_of(self: Probe, name: str, asked: Sequence[Lesson], *given: Any, **rest: Any) -> Any:
        lessons[name] = [example.item_id for lesson in asked for example in lesson.learnt]
        return original(self, name, asked, *given, **rest)

    def pairs_of(task: Task, users: Sequence[User], config: AdaptConfig) -> Any:
        adapted.update(user.id for user in users)
        return pairs(task, users, config)

    monkeypatch.setattr(Probe, "answers", answers_of)
    monkeypatch.setattr("oppu.adapt.adaption_examples", pairs_of)
    both = ("--task", f"{tasks[0]},{tasks[1]}", "--data", f"{data[0]},{data[1]}", "--users", "1", "--adapt")
    study("tasks", tiny, tmp_path, *both, place=None)
    assert adapted == {"yan", "zoe"}
    assert {tuple(items) for name, items in lessons.items() if name.endswith("for all tasks")} == {("ann1", "ann2") * 2}
    assert {tuple(items) for name, items in lessons.items() if name.endswith("for each task")} == {("ann1", "ann2")}


def test_the_module_of_a_task_is_trained_once_though_it_is_asked_twice(tiny: Path, tmp_path: Path) -> None:
    study("tasks", tiny, tmp_path, "--users", "1", "--newest", "3", place=None)
    kept = [json.loads(file.read_text()) for file in (tmp_path / "tasks" / "measurements").iterdir()]
    assert len(kept) == 8  # base, own, other's and joint, for two tasks
    trained = [each["value"]["seconds"] for each in kept if each["value"]["seconds"] > 0.02]
    assert len(trained) <= 3


def test_a_module_is_trained_with_the_settings_of_the_first_task_that_it_learns(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_for_texts(family: str, task: Task) -> Recipe:
        recipe = recipe_for(family, task)
        decay = 0.5 if task.kind == "text" else 0.25
        return replace(recipe, personal=replace(recipe.personal, weight_decay=decay))

    seen: dict[str, float] = {}
    original = Probe.answers

    def answers(self: Probe, name: str, *given: Any, personal: TrainConfig, **rest: Any) -> Any:
        seen[name] = personal.weight_decay
        return original(self, name, *given, personal=personal, **rest)

    monkeypatch.setattr("oppu.recipes.recipe_for", other_for_texts)
    monkeypatch.setattr(Probe, "answers", answers)
    study("tasks", tiny, tmp_path, "--users", "1", "--newest", "2", place=None)
    labels, words = (each.name for each in map(find_task, [str(sample.task) for sample in sample_tasks()]))
    for task, own, other in ((labels, 0.25, 0.5), (words, 0.5, 0.25)):
        assert seen[f"{task}, one for each task"] == own
        assert seen[f"{task}, the other tasks'"] == other
        assert seen[f"{task}, one for all tasks"] == 0.25
    page = (tmp_path / "tasks" / "report.html").read_text(encoding="utf-8")
    assert "The base has other settings for each of the tasks" in page


def test_users_who_are_not_the_same_are_paired_by_the_length_of_their_histories(tiny: Path, tmp_path: Path) -> None:
    def data(name: str, **sizes: int) -> Path:
        listed = []
        for user, size in sizes.items():
            items = [("history", f"{user} says {n}", "work") for n in range(size)] + [("query", f"{user}?", "home")]
            for n, (split, text, answer) in enumerate(items):
                row = {"user": user, "time": f"2025-01-{n + 1:02d}", "id": f"{user}{n}", "split": split}
                listed.append({**row, "input": text, "output": answer})
        return rows(tmp_path / f"{name}.jsonl", *listed)

    tasks = ",".join(str(each.task) for each in sample_tasks())
    files = f"{data('a', ann=2, bob=5, cy=3)},{data('b', ann=4, dan=6)}"
    common = ("study", "tasks", "--task", tasks, "--data", files, "--base", tiny, *QUICK)
    done(*common, "--out", tmp_path / "out", "--users", "3")
    people = numbers_of(tmp_path / "out", "tasks")["people"]
    assert [each["users"] for each in people] == [["ann", "ann"], ["bob", "dan"]]
    assert (
        "2 people, 1 of them of users paired by the length of their histories"
        in (tmp_path / "out" / "report.html").read_text()
    )


def test_the_base_is_adapted_to_all_tasks_together_and_once(tiny: Path, tmp_path: Path) -> None:
    given = ("study", "tasks", "--base", tiny, "--users", "1", "--newest", "2", "--adapt-pairs", "6")
    quick = (*QUICK[1:], "--adapt-epochs", "1")
    done(*given, *quick, "--out", tmp_path / "tasks")
    folder = tmp_path / "tasks" / "store" / "bases" / "note_filing-and-subject_line"
    record = json.loads((folder / "oppu.json").read_text())
    assert record["examples"] == 12
    made = record["made"]
    done(*given, *quick, "--out", tmp_path / "tasks", "--rank", "3")
    assert json.loads((folder / "oppu.json").read_text())["made"] == made
    done(*given, *quick, "--out", tmp_path / "other", "--rank", "3", "--bases", tmp_path / "tasks")
    taken = tmp_path / "other" / "store" / "bases" / folder.name / "model.safetensors"
    assert taken.samefile(folder / "model.safetensors")
    tasks = [sample(place, 1)[0] for place in (0, 1)]
    read = [(task, read_dataset(sample_tasks()[place].data, task)) for place, task in enumerate(tasks)]
    datasets = [(task, without_test_questions(task, data)) for task, data in read]
    base = load_base(str(tiny))
    from oppu.recipes import recipe_for

    config = AdaptConfig(replace(recipe_for("tiny", datasets[0][0]).adapt, epochs=1, seed=0), pairs=6)
    examples = []
    for (task, data), (_, other) in zip(datasets, datasets[::-1], strict=True):
        queries = [query for user in other.users for query in user.queries]
        texts = [text for query in queries for text in query.fields.values()]
        texts += [str(query.gold) for query in queries if other is datasets[1][1]]
        examples += adaption_examples(task, without_asked_texts(data.base_users, texts), config)
    again = adapt(base, datasets[0][0], examples, config, tmp_path / "again", name="again")
    assert again.fingerprint == load_base(str(folder)).fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--task", "movie_tagging,citation"), "--task needs --data"),
        (("--task", "movie_tagging", "--data", "x"), "--task: one task is in one module anyway; give two, such as A,B"),
        (("--task", "movie_tagging,citation", "--data", "x"), "there are 2 tasks and 1 data; give as many --data"),
    ],
)
def test_tasks_that_do_not_make_several_are_refused(
    tiny: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    assert message in refused("study", "tasks", "--base", tiny, "--out", tmp_path / "out", *QUICK, *given)


# users


def test_samples_of_users_are_read_as_runs_of_their_own(tiny: Path, tmp_path: Path) -> None:
    printed = study("users", tiny, tmp_path, "--users", "4", "--newest", "4", "--sizes", "2,3", "--draws", "7")
    found = table_of(tmp_path / "users", "users")
    assert [(row["measure"], row["way"], row["size"]) for row in found] == [
        (measure, way, size)
        for measure in ("Accuracy", "NLL")
        for way, size in [(w, s) for s in ("2", "3") for w in ("random", "alike", "different")] + [("everybody", "4")]
    ]
    assert {row["samples"] for row in found if row["way"] == "random"} == {"7"}
    assert {row["samples"] for row in found if row["way"] in ("alike", "different")} == {"4"}
    task, users = sample(0, 4)
    gains = {}
    for user in users:
        asked, items = query_examples(task, user), training_examples(task, user, newest=4)
        with_module, without = (nlls_alone(tiny, task, user.id, learnt, asked) for learnt in (items, []))
        gains[user.id] = [b - a for a, b in zip(with_module, without, strict=True)]
    values = [value for user in gains for value in gains[user]]
    owners = [str(place) for place, user in enumerate(gains) for _ in gains[user]]
    low, high = mean_interval(owners, values)
    everybody = numbers_of(tmp_path / "users", "users")["everybody"]["nll"]
    assert (everybody["gain"], everybody["low"], everybody["high"]) == pytest.approx(
        (mean(values), low, high), abs=1e-3
    )
    different = next(row for row in found if (row["measure"], row["way"], row["size"]) == ("NLL", "different", "3"))
    alike = next(row for row in found if (row["measure"], row["way"], row["size"]) == ("NLL", "alike", "3"))
    assert float(different["likeness"]) <= float(alike["likeness"])
    three = [mean([value for user in gains if user != left_out for value in gains[user]]) for left_out in gains]
    for row in (different, alike):
        assert min(three) - 1e-4 <= float(row["gain_low"]) <= float(row["gain_high"]) <= max(three) + 1e-4
    assert "NLL, all 4 users: gain" in printed
    assert "a sample of 4 of 4 users is no sample" in refused(
        "study", "users", "--base", tiny, "--out", tmp_path / "out", *QUICK, "--users", "4", "--sizes", "2,4"
    )


# bias


def test_the_usual_label_is_counted_in_history_truth_and_answers(tiny: Path, tmp_path: Path) -> None:
    study("bias", tiny, tmp_path, "--users", "3", "--newest", "6")
    out = tmp_path / "bias"
    found = {row["method"]: row for row in table_of(out, "bias")}
    assert list(found) == ["base", "rag", "oppu", "oppu+rag"]
    task, users = sample(0, 3)
    usual = {}
    for user in users:
        answers = [item.fields["output"] for item in user.history[-6:]]
        most = max(Counter(answers).values())
        usual[user.id] = next(label for label in reversed(answers) if answers.count(label) == most)
    right = mean([float(query.gold == usual[user.id]) for user in users for query in user.queries])
    listed = {u["user"]: u for u in numbers_of(out, "bias")["users"]}
    assert {user: each["usual"] for user, each in listed.items()} == {user: [label] for user, label in usual.items()}
    gains = []
    for user in users:
        asked, items = query_examples(task, user), training_examples(task, user, newest=6)
        with_module, without = (nlls_alone(tiny, task, user.id, learnt, asked) for learnt in (items, []))
        assert listed[user.id]["gain"] == pytest.approx(mean(without) - mean(with_module), abs=1e-4)
        gains += [b - a for a, b in zip(with_module, without, strict=True)]
        # the probability of the usual label, asked as if it were right
        asked = [replace(example, answer=usual[user.id]) for example in asked]
        weights = [exp(-nll) for nll in nlls_alone(tiny, task, user.id, items, asked)]
        assert listed[user.id]["weight"]["oppu"] == pytest.approx(mean(weights), abs=1e-4)
    assert float(found["oppu"]["gain"]) == pytest.approx(mean(gains), abs=1e-4)
    for method, row in found.items():
        assert float(row["usual_right"]) == pytest.approx(right)
        assert float(row["excess"]) == pytest.approx(float(row["usual_given"]) - right)
        given = mean([each["given"][method] for each in listed.values()])
        assert given == pytest.approx(float(row["usual_given"]))  # all have equally many questions


def test_of_texts_usual_words_and_lengths_are_counted(tiny: Path, tmp_path: Path) -> None:
    study("bias", tiny, tmp_path, "--users", "2", "--newest", "6", place=1)
    out = tmp_path / "bias"
    _, users = sample(1, 2)
    listed = numbers_of(out, "bias")["users"]
    row = table_of(out, "bias")[0]
    golds = {user.id: [str(query.gold) for query in user.queries] for user in users}
    words = [len(words_of(gold)) for each in golds.values() for gold in each]
    assert float(row["words_right"]) == pytest.approx(mean(words))
    for each in listed:
        assert len(each["usual"]) == 10
        shares = [mean([float(word in each["usual"]) for word in words_of(gold)]) for gold in golds[each["user"]]]
        assert each["right"] == pytest.approx(mean(shares))
    assert "gain_usual" not in row
    assert row["usual_probability"] == ""


def test_histories_without_labels_have_no_skew(tiny: Path, tmp_path: Path) -> None:
    text = 'a paper with the title "On this", which reference is related? [1]: "On that" [2]: "On them"'
    papers = (HistoryItem("a", {"title": "On it", "abstract": "", "citation": "On that"}, 0.0),)
    data = write_release(tmp_path / "papers", [User("ann", papers, (Query("q", text, {}, "[1]"),))], task="LaMP_1")
    given = ("--task", "citation", "--data", data, "--base", tiny, "--out", tmp_path / "out")
    assert "the histories hold no labels, so nobody has a usual answer" in refused("study", "bias", *given, *QUICK)


# full fine-tuning


def test_modules_stand_beside_full_fine_tuning_and_retrieval(tiny: Path, tmp_path: Path) -> None:
    given = ("--users", "2", "--newest", "4", "--rates", "0.0001,0.003", "--full-batch", "3")
    printed = study("finetuning", tiny, tmp_path, *given)
    found = {(row["way"], row["prompt"]): row for row in table_of(tmp_path / "finetuning", "finetuning")}
    assert len(found) == 8
    task, users = sample(0, 2)
    for prompt, setting in (("plain", Setting()), ("retrieval", Setting(k=1))):
        learnt = {user.id: training_examples(task, user, setting, newest=4) for user in users}
        asked = {user.id: query_examples(task, user, setting) for user in users}
        for way in ("base", "modules"):
            nlls = [
                nll
                for user in users
                for nll in nlls_alone(tiny, task, user.id, learnt[user.id] if way == "modules" else [], asked[user.id])
            ]
            assert float(found[way, prompt]["nll"]) == pytest.approx(mean(nlls), abs=1e-4)
        base = load_base(str(tiny))
        items = encode(base.tokenizer, [example for user in users for example in learnt[user.id]], 512)
        whole.train_whole(base, items, replace(config_of(task), learning_rate=0.003, batch_size=3))
        base.model.save_pretrained(tmp_path / prompt)
        base.tokenizer.save_pretrained(tmp_path / prompt)
        nlls = [nll for user in users for nll in nlls_alone(tmp_path / prompt, task, "", [], asked[user.id])]
        assert float(found["full, 0.003", prompt]["nll"]) == pytest.approx(mean(nlls), abs=1e-4)
        parameters = sum(weight.numel() for weight in tiny_model().parameters())
        assert float(found["full, 0.003", prompt]["trained_millions"]) == pytest.approx(parameters / 1e6)
        best = min(("full, 0.0001", "full, 0.003"), key=lambda way: float(found[way, prompt]["nll"]))
        over = float(found[best, prompt]["nll"]) - float(found["modules", prompt]["nll"])
        assert float(found["modules", prompt]["gain_full"]) == pytest.approx(over, abs=1e-6)
    assert "Without retrieval: NLL" in printed
    assert len(answers_in(tmp_path / "finetuning")) == 8


def test_a_full_fine_tuning_that_was_interrupted_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--users", "1", "--newest", "4", "--rates", "0.001", "--full-batch", "3")
    study("finetuning", tiny, tmp_path / "undisturbed", *given)
    monkeypatch.setattr(whole, "_BETWEEN", 0)
    monkeypatch.setattr(whole, "train_whole", partial(whole.train_whole, checkpoint_s=0))
    backward, sizes = whole._backward, []

    def interrupted(base: Base, batch: Sequence[Encoded], *rest: Any) -> float:
        sizes.append(len(batch))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return backward(base, batch, *rest)

    monkeypatch.setattr(whole, "_backward", interrupted)
    with pytest.raises(AssertionError):
        study("finetuning", tiny, tmp_path, *given)
    study("finetuning", tiny, tmp_path, *given)
    assert sizes == [3, 1, 1, 3, 1]  # the second batch twice; then those with retrieved items
    found, undisturbed = (answers_in(folder / "finetuning") for folder in (tmp_path, tmp_path / "undisturbed"))
    assert found == undisturbed


def test_full_fine_tuning_is_done_once(tiny: Path, tmp_path: Path) -> None:
    given = ("--users", "1", "--newest", "2", "--rates", "0.001")
    study("finetuning", tiny, tmp_path, *given, place=1)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "finetuning" / "measurements").iterdir()}
    study("finetuning", tiny, tmp_path, *given[:-1], "0.001,0.002", place=1)
    again = {file: file.stat().st_mtime_ns for file in (tmp_path / "finetuning" / "measurements").iterdir()}
    assert again.items() >= kept.items()
    assert len(again) == len(kept) + 2
