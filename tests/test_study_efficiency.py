"""The study of training costs (Figure 8): its cases, its rows and figures, and what is not measured twice."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shell import World, done, refused
from test_studies import table
from toys import COLOUR, MOTTO, REMARK, colour_user

from oppu.evaluate.lab.training_cost import Clock, users_of_size
from oppu.evaluate.studies.efficiency import _peak_mib
from oppu.records import HistoryItem
from oppu.tasks import HistoryForm

TINY = ("--items", "2,3,4", "--tokens", "4,6,8", "--users", "1,2", "--slots", "1,2", "--epochs", "1", "--repeats", "2")


@pytest.fixture(scope="module")
def arguments(made_world: World) -> list[object]:
    """Of a study of training costs on a tiny base."""
    world = made_world
    return ["study", "efficiency", "--task", world.task, "--data", world.data, "--base", world.base, *TINY]


@pytest.fixture(scope="module")
def finished(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of training costs, not to be changed."""
    out = tmp_path_factory.mktemp("study") / "efficiency"
    done(*arguments, "--out", out)
    return out


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is measured from now on; no process is started for memory."""
    calls: list[str] = []
    original = Clock.time

    def time(self: Clock, case: Any, point: Any) -> dict[str, Any]:
        calls.append(f"time {point.items} x {point.words}, {point.users}/{point.slots}")
        return original(self, case, point)

    def in_process(_: Any, given: Any) -> dict[str, Any]:
        calls.append(f"memory {given[1].users}/{given[1].slots}")
        return {"peak_mib": 20.0, "before_training_mib": 10.0, "cuda_peak_mib": None}

    monkeypatch.setattr(Clock, "time", time)
    monkeypatch.setattr("oppu.evaluate.lab.own_process.in_own_process", in_process)
    return calls


def test_items_have_the_words_that_are_asked_for_and_begin_differently() -> None:
    corpus = [item for name in ("a", "b", "c") for item in colour_user(name, 5).history]
    users = users_of_size(COLOUR, corpus, 3, 7, 9)
    assert [user.id for user in users] == ["user0", "user1", "user2"]
    texts = [item.fields["text"] for user in users for item in user.history]
    assert [len(text.split()) for text in texts] == [8] * 21  # the ninth is the colour
    assert len(set(texts)) == 21
    assert all(item.fields["colour"] in COLOUR.labels for user in users for item in user.history)


def test_items_with_long_other_fields_are_no_longer_than_asked_for() -> None:
    fields = {"text": "a b c d e f g h", "colour": "red", "title": "one two three four five six"}
    task = COLOUR.model_copy(update={"history": (HistoryForm(prompt="{title} {text}", answer="{colour}", shown=""),)})
    (user,) = users_of_size(task, [HistoryItem("0", fields, 0.0)], 1, 3, 5)
    for item in user.history:
        assert sum(len(text.split()) for text in item.fields.values()) == 5
        assert item.fields["colour"] == "red"
        assert item.fields["title"] == "one two three"


def test_a_text_task_and_one_without_prompts_have_items_of_that_size_too() -> None:
    from toys import motto_user

    corpus = motto_user("a", 6).history
    for task in (MOTTO, REMARK):
        (user,) = users_of_size(task, corpus, 1, 4, 12)
        sizes = [len(item.fields["text"].split()) for item in user.history]
        assert sizes == ([10] * 4 if task is MOTTO else [12] * 4)  # a motto has two words


def test_a_study_of_training_costs_has_a_row_for_every_point(finished: Path) -> None:
    found = table(finished, "efficiency")
    axes = [row["varied"] for row in found]
    assert axes == ["items"] * 3 + ["tokens"] * 3 + ["users"] * 2 + ["slots"] * 2
    for row in found:
        assert 0 < float(row["least_seconds"]) <= float(row["seconds"]) <= float(row["greatest_seconds"])
        assert float(row["seconds_per_user"]) == pytest.approx(float(row["seconds"]) / int(row["users"]))
        assert (row["peak_mib"] == "") == (row["varied"] in ("items", "tokens"))
        assert row["cuda_peak_mib"] == ""
    packed = [int(row["packed_tokens"]) for row in found]
    assert packed[:3] == sorted(set(packed[:3]))
    assert packed[3:6] == sorted(set(packed[3:6]))
    assert all(100 < float(row["peak_mib"]) < 4000 for row in found if row["peak_mib"])  # torch alone has 100


def test_the_page_of_training_costs_has_its_figures_and_the_lines_of_both_axes(finished: Path) -> None:
    from test_report import Page

    page = Page((finished / "report.html").read_text(encoding="utf-8"))
    assert page.plots == 6
    text = " ".join("".join(page.text).split())
    found = r"linear in {}, R² [^ ]+, [^ ]+ s for each {} more; from {} {} the time goes from"
    assert re.search(found.format("history items", "item", "2 to 4", "history items"), text)
    assert re.search(found.format("tokens per item", "token of each item", "4 to 8", "tokens per item"), text)
    fits = json.loads((finished / "efficiency.json").read_text())["fits"]
    assert fits["seconds by items, colour"].keys() == {"slope", "intercept", "r_squared"}
    assert fits["seconds by users, colour"] is None  # two points make no line


def test_on_a_gpu_the_memory_is_the_gpus() -> None:
    held = {"peak_mib": 900.0, "before_training_mib": 800.0}
    assert _peak_mib({**held, "cuda_peak_mib": None}) == 900.0
    assert _peak_mib({**held, "cuda_peak_mib": 5000.0}) == 5000.0


def test_a_rerun_measures_nothing_and_one_more_size_itself_alone(
    finished: Path, arguments: list[object], measured: list[str]
) -> None:
    before = (finished / "efficiency.csv").read_bytes()
    done(*arguments, "--out", finished)
    assert measured == []
    assert (finished / "efficiency.csv").read_bytes() == before
    done(*arguments, "--items", "2,3,4,5", "--out", finished)
    assert measured == ["time 5 x 30, 1/1"] * 2
    done(*arguments, "--repeats", "3", "--out", finished)
    assert len(measured) == 2 + 9  # a repeat of every point; users 2, slots 2 lies on two axes
    measured.clear()
    done(*arguments, "--out", finished)
    assert (measured, (finished / "efficiency.csv").read_bytes()) == ([], before)


def test_points_are_measured_in_turn_forth_and_back_and_an_interrupted_study_goes_on(
    arguments: list[object], measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Clock.time

    def interrupted(self: Clock, case: Any, point: Any) -> dict[str, Any]:
        if len(measured) == 8:
            raise KeyboardInterrupt
        return counted(self, case, point)

    monkeypatch.setattr(Clock, "time", interrupted)
    with pytest.raises(AssertionError):
        done(*arguments, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out" / "measurements").iterdir())) == 8
    monkeypatch.setattr(Clock, "time", counted)
    done(*arguments, "--out", tmp_path / "out")
    times = [each for each in measured if each.startswith("time")]
    assert len(times) == 18
    assert times[9:] == times[:9][::-1]


def test_the_sample_tasks_are_measured_by_default(
    made_world: World, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"seconds": 1.0, "cpu_seconds": 2.0, "packed_tokens": 1, "tokens_per_item": 1}
    monkeypatch.setattr(Clock, "time", lambda *_: value)
    done("study", "efficiency", "--base", made_world.base, "--repeats", "1", "--out", tmp_path / "out")
    found = table(tmp_path / "out", "efficiency")
    assert {row["task"] for row in found if row["varied"] == "items"} == {"note_filing", "subject_line"}
    assert {row["task"] for row in found if row["varied"] == "users"} == {"note_filing"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--task", "movie_tagging"), "--task needs --data"),
        (("--scale", "huge"), "--scale: unknown scale 'huge'; use one of: small, paper"),
        (("--tokens", "10,800"), "--tokens: task note_filing cuts items at 768 words, which is less than 800"),
        (("--base", "no such base"), "cannot load the base model"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    assert message in refused("study", "efficiency", "--out", tmp_path / "out", *given)
