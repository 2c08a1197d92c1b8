"""Studies of the paper that vary what is known of a user: shift, activity, retrieved items, formats."""

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shell import refused
from test_embed import by_hand, tiny_embedder
from test_report import Page
from trials import NEWEST, histories, numbers_of, ran, rows_of, run_folder, sample

from oppu.data.sample import sample_tasks
from oppu.errors import ConfigError, DataError
from oppu.evaluate.metrics import score
from oppu.evaluate.studies.formats import ANSWERS, QUESTIONS, _check_reducible, reduced_task, reduced_user
from oppu.evaluate.studies.shift import STUDY as SHIFT
from oppu.examples import Setting, query_examples, training_examples
from oppu.records import Dataset, HistoryItem, User
from oppu.store import Store
from oppu.tasks import BUILT_IN, task_to_toml

METHODS = ["base", "rag", "oppu", "oppu+rag"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies of this file have run."""
    return tmp_path_factory.mktemp("studies")


def page_text(out: Path) -> str:
    """What a reader reads; the page must be whole."""
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.plots >= 1
    assert len(page.ids) == len(set(page.ids))
    return " ".join("".join(page.text).split())


def check_scores(row: dict[str, str], run: Path, name: str) -> None:
    """A row's metrics are those of the run's predictions."""
    task, users, _ = sample()
    golds = {query.id: str(query.gold) for user in users for query in user.queries}
    found = json.loads((run / "predictions" / f"{name}.json").read_text())["golds"]
    expected = score(task, [golds[each["id"]] for each in found], [each["output"] for each in found])
    assert {metric: float(row[metric]) for metric in expected} == pytest.approx(expected)


# behaviour shift


@pytest.fixture(scope="module")
def shift(place: Path) -> Path:
    task, users, _ = sample()
    texts = [task.search_text(each.fields) for user in users for each in (*user.history, *user.queries)]
    return ran("shift", place, "--keep", 9, "--embedder", tiny_embedder(place / "embedder", texts=texts))


def relevances(place: Path, user: User) -> dict[str, float]:
    """By item, computed one text at a time."""
    task, _, _ = sample()

    def vector(text: str) -> np.ndarray[Any, Any]:
        return by_hand(place / "embedder", text, "mean", 64)

    questions = [vector(task.search_text(query.fields)) for query in user.queries]
    return {item.id: max(float(vector(task.search_text(item.fields)) @ q) for q in questions) for item in user.history}


def test_the_least_relevant_items_are_kept(shift: Path, place: Path) -> None:
    task, users, _ = sample()
    for setting in ("plain", "bm25-k1"):
        kept = histories(run_folder(shift, f"least-relevant-{setting}"), task, users)
        for user in users:
            values = relevances(place, user)
            assert len(kept[user.id]) == 9
            most = max(values[name] for name in kept[user.id])
            assert most <= min(value for name, value in values.items() if name not in kept[user.id]) + 1e-5
            assert list(kept[user.id]) == [item.id for item in user.history if item.id in kept[user.id]]


def test_as_many_items_at_random_stand_beside_them_and_all_items(shift: Path) -> None:
    task, users, _ = sample()
    every = histories(run_folder(shift, "all-plain"), task, users)
    drawn = histories(run_folder(shift, "random-plain"), task, users)
    least = histories(run_folder(shift, "least-relevant-plain"), task, users)
    for user in users:
        assert every[user.id] == tuple(item.id for item in user.history)
        assert (len(drawn[user.id]), drawn[user.id] == least[user.id]) == (9, False)
        places = sorted(random.Random(f"0 {user.id}").sample(range(len(user.history)), 9))
        assert drawn[user.id] == tuple(user.history[place].id for place in places)


def test_the_table_of_the_shift_has_each_history_with_its_scores(shift: Path, place: Path) -> None:
    _, users, _ = sample()
    rows = rows_of(shift)
    assert [(row["history"], row["method"]) for row in rows] == [
        ("all", "majority"), *(("all", method) for method in METHODS),
        *((name, method) for name in ("least relevant", "random") for method in ("majority", *METHODS[1:])),
    ]  # fmt: skip
    check_scores(
        next(r for r in rows if r["history"] == "random" and r["method"] == "oppu"),
        run_folder(shift, "random-plain"),
        "oppu-k0",
    )
    check_scores(
        next(r for r in rows if r["history"] == "least relevant" and r["method"] == "rag"),
        run_folder(shift, "least-relevant-bm25"),
        "rag-k1",
    )
    every = [value for user in users for value in relevances(place, user).values()]
    assert float(rows[0]["relevance"]) == pytest.approx(np.mean(every), abs=1e-5)
    assert {row["items"] for row in rows} == {"32.0", "9.0"}


def test_the_page_of_the_shift_says_what_was_found(shift: Path) -> None:
    text = page_text(shift)
    assert re.search(
        r"Least relevant items \(mean similarity .*\) against all: in Accuracy retrieval [+−.]\S* \(95 %", text
    )
    assert "Against as many random items" in text
    assert "accuracy of citation .659 to .626, base .659" in text


def test_the_paper_is_quoted_with_its_own_shares_of_the_gain() -> None:
    """Modules alone in Table 2: base, all items, the least relevant; the first metric of each task."""
    table = {"citation": (0.659, 0.683, 0.683), "ratings": (0.223, 0.179, 0.196), "titles": (0.476, 0.519, 0.493)}
    table["tweets"] = (0.527, 0.539, 0.528)
    shares = {task: (least - base) / (full - base) for task, (base, full, least) in table.items()}
    assert shares == pytest.approx({"citation": 1.0, "ratings": 0.6, "titles": 0.4, "tweets": 0.1}, abs=0.03)
    assert "keep all of their gain over the base in citation" in SHIFT.paper
    assert "60 % in ratings (.179 to .196), 40 % in titles (.519 to .493) and hardly any in tweets" in SHIFT.paper


def test_a_second_run_of_the_shift_embeds_and_trains_nothing(
    shift: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (shift / "shift.csv").read_bytes()
    for name in ("oppu.embed.load_embedder", "oppu.personalize.train", "oppu.adapt.adapt"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("done again"))
    ran("shift", place, "--keep", 9, "--embedder", place / "embedder")
    assert (shift / "shift.csv").read_bytes() == before


def test_fresh_begins_anew(place: Path, tmp_path: Path) -> None:
    out = ran("retrieved", tmp_path, "--k", "1", "--users", 1)
    before = next((out / "runs").iterdir()).stat().st_ino
    ran("retrieved", tmp_path, "--k", "1", "--users", 1, "--fresh")
    assert next((out / "runs").iterdir()).stat().st_ino != before


# activity


@pytest.fixture(scope="module")
def activity(place: Path) -> Path:
    return ran("activity", place, "--items", "2,5", "--newest", 4)


def test_the_same_users_have_their_newest_items_at_every_length(activity: Path) -> None:
    task, users, _ = sample()
    for length in (2, 5):
        for setting in ("plain", "bm25"):
            known = histories(run_folder(activity, f"items-{length}-{setting}"), task, users)
            assert known == {user.id: tuple(item.id for item in user.history[-length:]) for user in users}


def test_the_table_of_activity_has_every_method_at_every_length(activity: Path) -> None:
    rows = rows_of(activity)
    assert [(row["items"], row["method"]) for row in rows] == [
        (length, method) for length in ("2", "5") for method in ("majority", *METHODS)
    ]
    metrics = ("accuracy", "f1_macro", "f1_macro_present")
    assert [rows[1][name] for name in metrics] == [rows[6][name] for name in metrics]  # the base sees no history
    check_scores(rows[9], run_folder(activity, "items-5-bm25"), "oppu+rag-k1")
    assert "the same at every length" in page_text(activity)


def test_ranges_have_different_users_by_the_length_of_their_histories(tmp_path: Path) -> None:
    task, _, _ = sample()
    sizes = {"a": 2, "b": 3, "c": 3, "d": 6, "e": 7, "f": 12}
    rows = [
        {"user": user, "id": f"{user}{n}", "split": "history", "input": f"note {n}", "output": "work"}
        for user, size in sizes.items()
        for n in range(size)
    ]
    rows += [{"user": user, "id": f"{user}q", "split": "query", "input": "new", "output": "home"} for user in sizes]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.toml").write_text(task_to_toml(task))
    mine = ("--task", tmp_path / "task.toml", "--data", tmp_path / "mine.jsonl", "--no-adapt")
    out = ran("activity", tmp_path, *mine, "--ranges", "5-8,2-3", "--users", 2)
    found = rows_of(out)
    assert [(row["items"], row["users"]) for row in found if row["method"] == "base"] == [("2-3", "2"), ("5-8", "2")]
    with Store(run_folder(out, "items-5-8-plain") / "store") as store:
        assert store.users(task.name) == ("d", "e")
    with Store(run_folder(out, "items-2-3-plain") / "store") as store:
        assert set(store.users(task.name)) < {"a", "b", "c"}
    again = ("study", "activity", *mine, "--base", tmp_path / "tiny", "--out", out)
    assert "nobody has 20 to 30 items" in refused(*again, "--ranges", "20-30")
    assert "--ranges: '3-2' is no range; use for example" in refused(*again, "--ranges", "3-2")
    assert "--items: nobody has 40 items; the longest history has 12" in refused(*again, "--items", "40")


# retrieved items


@pytest.fixture(scope="module")
def retrieved(place: Path) -> Path:
    return ran("retrieved", place, "--k", "2,0,1")


def test_every_k_has_a_base_and_modules_of_its_own(retrieved: Path) -> None:
    rows = rows_of(retrieved)
    assert [(row["method"], row["k"]) for row in rows] == [
        ("majority", "0"), ("base", "0"), ("rag", "1"), ("rag", "2"), ("oppu", "0"), ("oppu+rag", "1"), ("oppu+rag",
    "2"), ]  # fmt: skip
    assert {each.name for each in (retrieved / "store" / "bases").iterdir()} >= {
        f"note_filing-{setting}" for setting in ("plain", "bm25-k1", "bm25-k2")
    }
    for k in (1, 2):
        run = run_folder(retrieved, f"k-bm25-k{k}")
        with Store(run / "store") as store:
            assert {record.setting for record in store.modules()} == {f"bm25-k{k}"}
            assert {record.training["setting"]["k"] for record in store.modules()} == {k}
        check_scores(rows[1 + k], run, f"rag-k{k}")
        check_scores(rows[4 + k], run, f"oppu+rag-k{k}")
    text = page_text(retrieved)
    assert "The module adds in Accuracy at k = 0" in text
    assert "From k = 0 to 2: in Accuracy without module" in text


def test_nothing_retrieved_is_no_study_of_retrieval(tmp_path: Path) -> None:
    assert "--k: nothing is retrieved with k = 0 alone" in refused("study", "retrieved", "--k", "0", "--out", tmp_path)


# formats


@pytest.fixture(scope="module")
def formats(place: Path) -> Path:
    return ran("formats", place)


def test_histories_of_each_format_are_trained_on_and_shown(formats: Path) -> None:
    rows = rows_of(formats)
    assert [(row["history"], row["method"]) for row in rows if row["method"] != "majority"] == [
        ("whole", "base"),
        *((name, method) for name in ("whole", "questions alone", "answers alone") for method in METHODS[1:]),
    ]
    task, users, _ = sample()
    for name, fields in (("questions-alone", {"input"}), ("answers-alone", {"output"})):
        for setting in ("plain", "bm25"):
            with Store(run_folder(formats, f"{name}-{setting}") / "store") as store:
                items = [item for user in users for item in store.history(user.id, task.name)]
                assert {frozenset(item.fields) for item in items} == {frozenset(fields)}
                assert len(items) == 32 * len(users)
                assert all(len(record.training["losses"]) == 2 * -(-NEWEST // 4) for record in store.modules())
    text = page_text(formats)
    assert "A whole item reads “note: {input} folder: {output}”, its question alone “note: {input}”, its answer" in text
    assert "alone “folder: {output}”" in text


@pytest.mark.parametrize("kept", [QUESTIONS, ANSWERS])
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "tweet_paraphrase"])
def test_a_prompt_shows_what_is_left_of_an_item_and_nothing_else(name: str, kept: str) -> None:
    task = BUILT_IN[name]
    form = task.history[0]
    answer = next(field for field in form.fields if f"{{{field}}}" in form.answer)
    fields = {field: f"a {field} {{of}} it" for field in form.fields} | {"other": "something else"}
    history = tuple(HistoryItem(f"i{n}", {f: f"{text} {n}" for f, text in fields.items()}, float(n)) for n in range(3))
    user = reduced_user(task, User("u", history), kept)
    reduced = reduced_task(task, kept)
    for item, example in zip(history, training_examples(reduced, user, Setting(k=1)), strict=True):
        own = {field: text in str(example.answer) for field, text in item.fields.items() if field in form.fields}
        assert own == {field: (field == answer) == (kept == ANSWERS) for field in form.fields}
        number = int(item.id[1:])
        seen = history[number - 1].fields if number else {}
        assert (seen.get(answer, "none") in example.prompt) == (kept == ANSWERS and bool(seen))
        assert not any(text in example.prompt for text in item.fields.values())
        words = str(example.answer)
        assert words == reduced.history[0].shown.format_map(item.fields)
        assert words.count(":") >= 1


def test_a_question_is_asked_as_ever_over_what_is_left_of_the_history() -> None:
    task, users, _ = sample()
    for kept, shown in ((QUESTIONS, "note: {input}"), (ANSWERS, "folder: {output}")):
        user = reduced_user(task, users[0], kept)
        for example, query in zip(
            query_examples(reduced_task(task, kept), user, Setting(k=1)), user.queries, strict=True
        ):
            item = next(item for item in users[0].history if item.id == example.retrieved[0])
            assert example.prompt == f"{shown.format_map(item.fields)}\nnote: {query.input} folder:"
            if kept == ANSWERS:
                assert item == users[0].history[-1]  # nothing can be searched: the newest


def test_histories_without_the_answers_have_no_formats() -> None:
    items = tuple(HistoryItem(str(n), {"title": "a title", "abstract": "a text"}, float(n)) for n in range(2))
    trial = SimpleNamespace(task=BUILT_IN["citation"], dataset=Dataset((User("u", items),)))
    with pytest.raises(DataError, match="citation: no item of these histories has a question and an answer that could"):
        _check_reducible(trial)  # type: ignore[arg-type]
    cited = HistoryItem("2", items[0].fields | {"citation": "another"}, 2.0)
    trial.dataset = Dataset((User("u", (*items, cited)),))
    _check_reducible(trial)  # type: ignore[arg-type]


def test_items_that_are_one_text_have_no_formats() -> None:
    with pytest.raises(
        ConfigError, match="items of task tweet_paraphrase have no question and answer that could be told"
    ):
        reduced_task(BUILT_IN["tweet_paraphrase"], QUESTIONS)


# other tasks


def test_text_tasks_have_these_studies_too(tmp_path: Path) -> None:
    text = sample_tasks()[1]
    out = ran("formats", tmp_path, "--task", text.task, "--data", text.data, "--users", 2, "--no-adapt")
    rows = rows_of(out)
    assert all(0 <= float(row["rouge1"]) <= 1 and row["rouge1_low"] for row in rows)
    assert "in ROUGE-1 retrieval" in page_text(out)


def test_ratings_have_these_studies_too(tmp_path: Path) -> None:
    rows = [
        {"user": user, "id": f"{user}{n}", "split": "history", "text": f"thing {n}", "score": str(1 + n % 5)}
        for user in "ab"
        for n in range(6)
    ]
    rows += [{"user": u, "id": f"{u}q", "split": "query", "text": "thing 9", "score": "4"} for u in "ab"]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--task", "product_rating", "--data", tmp_path / "mine.jsonl", "--no-adapt", "--epochs", 1)
    out = ran("activity", tmp_path, *given, "--items", "2,4")
    assert {row["method"] for row in rows_of(out)} == {"majority", "user-mean", *METHODS}
    assert "in MAE with 2 items" in page_text(out)
    assert numbers_of(out)["settings"]["items"] == [2, 4]
