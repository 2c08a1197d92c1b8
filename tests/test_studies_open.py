"""Studies of what the paper leaves open, run on the sample data with a tiny base: ageing, items, conflicts, cohorts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from alone import QUICK, mean, nlls_alone, numbers_of, sample, table_of
from shell import done, refused, rows
from toys import tiny_base_folder

from oppu.data import without_questions_of_others
from oppu.data.sample import sample_tasks
from oppu.evaluate.lab.alike import users_alike
from oppu.evaluate.lab.answers import Answer
from oppu.evaluate.lab.contradict import contradicted
from oppu.evaluate.lab.likeness import groups_of
from oppu.evaluate.lab.probe import Answers, Lesson, Probe
from oppu.evaluate.significance import mean_interval
from oppu.examples import Setting, query_examples, training_examples
from oppu.records import User


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base."""
    return tiny_base_folder(tmp_path_factory.mktemp("open") / "tiny")


def study(name: str, tiny: Path, out: Path, *arguments: object, place: int = 0) -> str:
    """A study on a sample task, quick."""
    task, data = sample_tasks()[place]
    return done("study", name, "--task", task, "--data", data, "--base", tiny, "--out", out / name, *QUICK, *arguments)


def short(tmp_path: Path, items: int = 3) -> tuple[object, ...]:
    """Options of data with a history too short for anything."""
    listed = [
        {"user": "ann", "time": f"2025-01-0{n + 1}", "id": f"a{n}", "split": "history", "input": "x", "output": "work"}
        for n in range(items)
    ]
    asked = {"user": "ann", "time": "2025-02-01", "id": "q", "split": "query", "input": "y", "output": "home"}
    return ("--task", sample_tasks()[0].task, "--data", rows(tmp_path / "short.jsonl", *listed, asked))


# staleness

CUT = ("--users", "2", "--newest", "6", "--blocks", "3", "--block", "2")


@pytest.fixture(scope="module")
def aged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of ageing."""
    out = tmp_path_factory.mktemp("aged")
    study("staleness", tiny, out, *CUT)
    return out / "staleness"


def test_ages_are_compared_on_the_same_questions(aged: Path, tiny: Path) -> None:
    task, users = sample(0, 2)
    found = table_of(aged, "staleness")
    by_block: dict[tuple[int | None, int], list[float]] = {}
    owners = []
    for user in users:
        items = training_examples(task, user)
        start = [len(items) - 2 * (3 - block) for block in range(4)]
        for block in range(3):
            asked = items[start[block] : start[block + 1]]
            for trained in range(block + 1):
                learnt = items[start[trained] - 6 : start[trained]]
                by_block.setdefault((trained, block), []).extend(nlls_alone(tiny, task, user.id, learnt, asked))
            by_block.setdefault((None, block), []).extend(nlls_alone(tiny, task, user.id, [], asked))
        owners += [user.id] * 2
    losses = []
    for missed, row in enumerate(found):
        blocks = range(missed, 3)
        stale = [value for block in blocks for value in by_block[block - missed, block]]
        fresh = [value for block in blocks for value in by_block[block, block]]
        base = [value for block in blocks for value in by_block[None, block]]
        assert (int(row["age_items"]), int(row["questions"])) == (2 * missed, len(stale))
        assert float(row["nll"]) == pytest.approx(mean(stale), abs=1e-4)
        assert float(row["nll_fresh"]) == pytest.approx(mean(fresh), abs=1e-4)
        assert float(row["nll_base"]) == pytest.approx(mean(base), abs=1e-4)
        assert float(row["gain_fresh"]) == pytest.approx(mean(base) - mean(fresh), abs=1e-4)
        assert float(row["gain_base"]) == pytest.approx(mean(base) - mean(stale), abs=1e-4)
        losses.append(mean(stale) - mean(fresh))
        if missed:
            differences = [a - b for a, b in zip(stale, fresh, strict=True)]
            low, high = mean_interval(owners * len(blocks), differences)
            assert float(row["loss"]) == pytest.approx(losses[-1], abs=1e-4)
            assert (float(row["loss_low"]), float(row["loss_high"])) == pytest.approx((low, high), abs=2e-4)
        ages = [mean([v for b in blocks for v in by_block[b - age, b]]) for age in range(missed + 1)]
        assert float(row["refresh_loss"]) == pytest.approx(mean(ages) - mean(fresh), abs=1e-4)
        assert float(row["refresh_trained"]) == pytest.approx(6 / (2 * (missed + 1)))
    assert losses[0] == 0
    assert found[0]["loss"] == ""


def test_what_an_interval_keeps_is_a_share_of_the_gain_on_its_own_blocks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = iter([(0, 0, 0), (-0.2, 0.25, 0.15), (0.3, 0.2), (0.4,)])
    """Of modules trained before each block, the base's before them, on the blocks from then on; the first is hard."""

    def answers(_: Probe, name: str, lessons: Sequence[Lesson], *__: object, **___: object) -> Answers:
        of_block, output = next(gains), "other" if name == "base" else None
        listed = [
            Answer(e.user_id, e.item_id, str(e.answer), output or str(e.answer), 1 - of_block[place // 2])
            for lesson in lessons
            for place, e in enumerate(lesson.asked)
        ]
        return Answers(tuple(listed), 1.0)

    monkeypatch.setattr(Probe, "answers", answers)
    printed = study("staleness", tiny, tmp_path, *CUT, "--keep", "0.8")
    found = table_of(tmp_path / "staleness", "staleness")
    # fresh: −.2, .3, .4 by block; after one block .25 and .2, after two .15
    expected = [("gain_fresh", 0.5 / 3, 0.35, 0.4), ("refresh_loss", 0, 0.125 / 2, (0.2 + 0.25) / 3)]
    for column, *values in [*expected, ("refresh_kept", 1, 1 - 0.125 / 2 / 0.35, 1 - 0.15 / 0.4)]:
        assert [float(row[column]) for row in found] == pytest.approx(values)
    assert [(row["accuracy_fresh"], row["accuracy_base"]) for row in found] == [("1.0", "0.0")] * 3
    assert "80% of it is kept by a refresh every 4 items: it keeps 82% of +.350" in " ".join(printed.split())


def test_the_age_in_days_is_that_of_the_items_dates(aged: Path) -> None:
    _, users = sample(0, 2)
    days = [
        (user.history[26 + 2 * block + item].time - user.history[25 + 2 * block].time) / 86400
        for user in users
        for block in range(3)
        for item in range(2)
    ]
    ordered = sorted(days)
    assert float(table_of(aged, "staleness")[0]["age_days"]) == (ordered[5] + ordered[6]) / 2


def test_one_more_block_and_a_rerun_train_only_what_is_new(aged: Path, tiny: Path) -> None:
    kept = {file: file.stat().st_mtime_ns for file in (aged / "measurements").iterdir()}
    study("staleness", tiny, aged.parent, *CUT)
    assert {file: file.stat().st_mtime_ns for file in (aged / "measurements").iterdir()} == kept
    assert len(kept) == 4


def test_a_growing_window_takes_all_items_before(tiny: Path, tmp_path: Path) -> None:
    printed = study("staleness", tiny, tmp_path, *CUT, "--grow", "--newest", "4", place=1)
    found = table_of(tmp_path / "staleness", "staleness")
    assert [float(row["refresh_trained"]) for row in found] == pytest.approx(
        [(26 + 28 + 30) / 3 / n for n in (2, 4, 6)]
    )
    assert "rouge1" not in found[0]  # a text's likelihood alone is taken
    assert "A fresh module gains over the base" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--newest", "20", "--blocks", "7"), "user ada has 32 items, which is less than 48"),
        (("--keep", "1.5"), "--keep: 1.5 is no share of a gain; use for example 0.9"),
    ],
)
def test_what_cannot_be_cut_is_refused(tiny: Path, tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    assert message in refused("study", "staleness", "--base", tiny, "--out", tmp_path, *QUICK, *given)


# items


def test_ways_to_keep_items_learn_just_those(tiny: Path, tmp_path: Path) -> None:
    ways = ("--ways", "recent,random,diverse,surprising,familiar", "--budgets", "3,6", "--draws", "2")
    printed = study("items", tiny, tmp_path, "--users", "2", "--newest", "8", *ways)
    found = table_of(tmp_path / "items", "items")
    assert [(row["way"], row["items"]) for row in found[:2]] == [("none (base)", ""), ("all", "")]
    assert [(row["way"], row["items"]) for row in found[2:]] == [
        (way, size) for size in ("3", "6") for way in ("recent", "random", "diverse", "surprising", "familiar")
    ]
    task, users = sample(0, 2)
    base, recent, surprising = [], [], []
    for user in users:
        asked, items = query_examples(task, user), training_examples(task, user, newest=8)
        base += nlls_alone(tiny, task, user.id, [], asked)
        recent += nlls_alone(tiny, task, user.id, items[-3:], asked)
        loss = nlls_alone(tiny, task, user.id, [], items)
        hardest = sorted(sorted(range(8), key=lambda place, loss=loss: -loss[place])[:3])
        surprising += nlls_alone(tiny, task, user.id, [items[place] for place in hardest], asked)
    for row, nlls in ((found[0], base), (found[2], recent), (found[5], surprising)):
        assert float(row["nll"]) == pytest.approx(mean(nlls), abs=1e-4)
    assert float(found[5]["gain_base"]) == pytest.approx(mean(base) - mean(surprising), abs=1e-4)
    assert float(found[5]["gain_random"]) == pytest.approx(float(found[3]["nll"]) - mean(surprising), abs=1e-4)
    assert "Of 3 items: NLL" in printed


def test_items_of_a_text_task_are_scored_by_rouge_too(tiny: Path, tmp_path: Path) -> None:
    study(
        "items", tiny, tmp_path, "--users", "2", "--newest", "6", "--budgets", "3", "--ways", "recent,random", place=1
    )
    found = table_of(tmp_path / "items", "items")
    assert all(0 <= float(row["rougeL"]) <= float(row["rouge1"]) <= 1 for row in found)
    task, users = sample(1, 2)
    nlls = [
        nll
        for user in users
        for nll in nlls_alone(tiny, task, user.id, training_examples(task, user, newest=3), query_examples(task, user))
    ]
    assert float(found[2]["nll"]) == pytest.approx(mean(nlls), abs=1e-4)


def test_where_nothing_is_left_to_choose_from_it_is_said(tiny: Path, tmp_path: Path) -> None:
    common = ("study", "items", "--base", tiny, "--out", tmp_path / "out", *QUICK)
    assert "user ann has 3 items, which leaves no choice of 4" in refused(*common, *short(tmp_path), "--budgets", "2,4")
    assert "--ways: unknown way 'best'; use some of: recent, random" in refused(*common, "--ways", "best")


# conflicts


def test_every_method_is_asked_with_conflicting_histories(tiny: Path, tmp_path: Path) -> None:
    printed = study(
        "conflicts", tiny, tmp_path, "--users", "2", "--newest", "8", "--shares", "0.5", "--conflicts", "noise,former"
    )
    found = table_of(tmp_path / "conflicts", "conflicts")
    methods = ("rag", "oppu", "oppu+rag")
    assert [(row["conflict"], row["share"], row["method"]) for row in found] == [
        ("none", "0.0", "base"),
        *(("none", "0.0", method) for method in methods),
        *((each, "0.5", method) for each in ("noise", "former") for method in methods),
    ]
    task, users = sample(0, 2)
    nlls: dict[tuple[str, str], list[float]] = {}
    for user in users:
        newest = replace(user, history=user.history[-8:])
        for conflict in ("none", "noise"):
            items = newest.history
            if conflict != "none":
                items = contradicted(task, items, 0.5, conflict, f"0 {user.id}")
            changed = replace(newest, history=items)
            for method, setting in (("rag", Setting(k=1)), ("oppu", Setting()), ("oppu+rag", Setting(k=1))):
                learnt = training_examples(task, changed, setting) if method != "rag" else []
                asked = query_examples(task, changed, setting)
                listed = nlls_alone(tiny, task, user.id, learnt, asked)
                nlls.setdefault((conflict, method), []).extend(listed)
    for row in found[1:]:
        if row["conflict"] != "former":
            known = nlls[row["conflict"], row["method"]]
            assert float(row["nll"]) == pytest.approx(mean(known), abs=1e-4)
            lost = mean(known) - mean(nlls["none", row["method"]])
            assert (
                row["loss"] == "" if row["conflict"] == "none" else math.isclose(float(row["loss"]), lost, abs_tol=2e-4)
            )
    assert "Another habit in the oldest items, in 50% of a history. NLL lost: retrieval" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--shares", "0,0.5"), "--shares: 0 is no share of a history; use numbers above 0 up to 1"),
        (("--shares", "1.5"), "--shares: 1.5 is no share of a history; use numbers above 0 up to 1"),
        (("--conflicts", "noise,war"), "--conflicts: unknown conflict 'war'"),
        (("--newest", "3", "--shares", "0.1"), "user ada has 3 items, of which a share of 0.1 is none"),
    ],
)
def test_conflicts_that_are_none_are_refused(tiny: Path, tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    assert message in refused("study", "conflicts", "--base", tiny, "--out", tmp_path, *QUICK, *given)


# cohorts


def cohort_nlls(tiny: Path, users: list[User], groups: list[list[int]], budget: int) -> list[float]:
    task, _ = sample(0, 1)
    found = []
    for group in groups:
        members = [users[place] for place in group]
        giving = without_questions_of_others(task, members)
        learnt = [e for user in giving for e in training_examples(task, user)[-(budget // len(group)) :]]
        asked = [e for user in members for e in query_examples(task, user)]
        found += nlls_alone(tiny, task, "+".join(user.id for user in members), learnt, asked)
    return found


def test_cohorts_learn_equally_many_items_and_their_users_are_asked(tiny: Path, tmp_path: Path) -> None:
    study("cohorts", tiny, tmp_path, "--users", "4", "--newest", "8", "--sizes", "2,4,9", "--draws", "2")
    found = table_of(tmp_path / "cohorts", "cohorts")
    assert [(row["cohorts"], row["size"], row["modules"]) for row in found] == [
        ("none (base)", "", ""),
        ("alone", "1", "4"),
        ("alike", "2", "2"),
        ("random", "2", "2"),
        ("everybody", "4", "1"),
    ]
    assert {row["items"] for row in found[1:]} == {"8.0"}
    task, users = sample(0, 4)
    alike = users_alike(task, [training_examples(task, user, newest=8) for user in users], "labels")
    pairs = groups_of(alike, 2)
    alone = cohort_nlls(tiny, users, [[0], [1], [2], [3]], 8)
    together = cohort_nlls(tiny, users, pairs, 8)
    assert float(found[1]["nll"]) == pytest.approx(mean(alone), abs=1e-4)
    assert float(found[2]["nll"]) == pytest.approx(mean(together), abs=1e-4)
    assert float(found[2]["gain_alone"]) == pytest.approx(mean(alone) - mean(together), abs=1e-4)
    assert float(found[2]["likeness"]) == pytest.approx(mean([alike[a, b] for a, b in pairs]))
    assert float(found[4]["nll"]) == pytest.approx(mean(cohort_nlls(tiny, users, [[0, 1, 2, 3]], 8)), abs=1e-4)
    assert numbers_of(tmp_path / "cohorts", "cohorts")["by"] == "labels"


def test_modules_learn_no_more_items_than_the_shortest_history_has(tiny: Path, tmp_path: Path) -> None:
    def row(user: str, split: str, day: int) -> dict[str, object]:
        what = {"split": split, "input": f"{user} {day}", "output": "work"}
        return {"user": user, "id": f"{user}{day}", "time": f"2025-01-{day:02}", **what}

    sizes = {"ann": 7, "bob": 5, "cem": 6}
    listed = [row(user, "history", day + 1) for user, size in sizes.items() for day in range(size)]
    data = rows(tmp_path / "data.jsonl", *listed, *(row(user, "query", 20) for user in sizes))
    given = ("--task", sample_tasks()[0].task, "--data", data, "--base", tiny, *QUICK)
    done("study", "cohorts", *given, "--newest", "9", "--sizes", "2,3", "--draws", "1", "--out", tmp_path / "out")
    assert {row["items"] for row in table_of(tmp_path / "out", "cohorts")[1:]} == {"5.0"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "a module of 5 items in all, as many as the shortest history has instead of 9" in page


def test_members_who_pool_their_items_give_all_of_them(tiny: Path, tmp_path: Path) -> None:
    study(
        "cohorts", tiny, tmp_path, "--users", "3", "--newest", "4", "--sizes", "2", "--draws", "1", "--pooled", place=1
    )
    found = table_of(tmp_path / "cohorts", "cohorts")
    # the third user of three is alone
    assert [row["items"] for row in found[1:]] == ["4.0", "6.0", "6.0"]
    assert numbers_of(tmp_path / "cohorts", "cohorts")["by"] == "words"


def test_one_user_has_nobody_to_share_with(tiny: Path, tmp_path: Path) -> None:
    common = ("study", "cohorts", "--base", tiny, "--out", tmp_path / "out", *QUICK, *short(tmp_path))
    assert "one user has nobody to share a module with" in refused(*common)
