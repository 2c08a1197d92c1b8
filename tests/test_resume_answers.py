"""Interrupted between answers, an experiment asks nothing twice; cells of other inputs are never taken."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from interruptions import (
    Interrupted,
    results,
    written,
)
from toys import COLOUR, FAST, colour_user, tiny_base_folder, write_release

from oppu.data import read_dataset
from oppu.errors import ConfigError
from oppu.evaluate import experiment as module
from oppu.evaluate.design import Experiment
from oppu.evaluate.experiment import Stage, run
from oppu.evaluate.results import Cell
from oppu.records import Dataset, User
from oppu.store import Store
from oppu.train import Machine


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    users = [colour_user("a", 4, queries=5), colour_user("b", 2, queries=4)]
    folder = write_release(tmp_path_factory.mktemp("data"), users, [colour_user("x", 3)])
    return read_dataset(folder, COLOUR)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_report", lambda out, *_: out)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that are computed, in order."""
    cells: list[str] = []
    original = module._Bench.cell

    def cell(self: Any, name: str, k: int, users: Any) -> Cell:
        found = original(self, name, k, users)
        cells.append(found.name)
        return found

    monkeypatch.setattr(module._Bench, "cell", cell)
    return cells


def plainly(base_folder: Path, *methods: str) -> Experiment:
    """Without adaption."""
    return Experiment(COLOUR, methods, (1,), str(base_folder), None, FAST)


FEW_TOKENS = Machine(1, tokens_per_pass=40, checkpoint_s=0)
"""A question in each pass, and each answer kept."""


@pytest.mark.usefixtures("no_report")
def test_answers_are_kept_as_they_come_and_no_question_is_asked_twice(
    tmp_path: Path, base_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = plainly(base_folder, "base")
    run(experiment, dataset, tmp_path / "undisturbed")
    out = tmp_path / "interrupted"

    def interrupt(stage: Stage) -> None:
        if stage.done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(experiment, dataset, out, machine=FEW_TOKENS, on_stage=interrupt)
    file = out / "under-way" / "base-k0.json"
    first = json.loads(file.read_text(encoding="utf-8"))
    assert len(first["answers"]) == 3
    file.write_text(json.dumps(first | {"seconds": 1000.0}), encoding="utf-8")
    asked: list[str] = []
    original = module.answer_users

    def answer(base: Any, plan: Any, users: Sequence[User], *rest: Any) -> Any:
        asked.extend(query.id for user in users for query in user.queries)
        return original(base, plan, users, *rest)

    monkeypatch.setattr(module, "answer_users", answer)
    told: list[Stage] = []
    run(experiment, dataset, out, machine=FEW_TOKENS, on_stage=told.append)
    assert len(asked) == 9 - 3
    assert set(asked).isdisjoint(query for _, query, _ in first["answers"])
    assert [(stage.done, stage.total) for stage in told] == [(done, 9) for done in range(4, 10)]
    assert written(out) == written(tmp_path / "undisturbed")
    assert [row["seconds"] > 1000 for row in results(out)["rows"]] == [False, True]
    assert not (out / "under-way").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("damage", ["torn", "of other inputs"])
def test_kept_answers_that_cannot_be_used_are_not_used(
    tmp_path: Path, base_folder: Path, dataset: Dataset, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out, experiment = tmp_path / "out", plainly(base_folder, "base")
    run(experiment, dataset, tmp_path / "undisturbed")
    run(plainly(base_folder, "rag"), dataset, out)
    wrong = [[user.id, query.id, "wrong"] for user in dataset.users for query in user.queries]
    text = json.dumps({"fingerprint": "of other inputs", "seconds": 1.0, "answers": wrong})
    (out / "under-way").mkdir()
    (out / "under-way" / "base-k0.json").write_text(text[:-3] if damage == "torn" else text, encoding="utf-8")
    with caplog.at_level(logging.WARNING, "oppu.evaluate"):
        run(experiment, dataset, out)
    assert ("cannot be used, so the questions are asked again" in caplog.text) == (damage == "torn")
    assert written(out)["base-k0.json"] == written(tmp_path / "undisturbed")["base-k0.json"]


@pytest.mark.usefixtures("no_report")
def test_a_changed_profile_computes_the_cells_that_show_it_and_no_others(
    tmp_path: Path, base_folder: Path, dataset: Dataset, computed: list[str]
) -> None:
    experiment = plainly(base_folder, "base", "rag", "pag", "oppu", "oppu+pag")
    run(experiment, dataset, tmp_path, profiles={"a": "likes red", "b": "likes blue"})
    assert computed == ["base-k0", "rag-k1", "pag-k0", "oppu-k0", "oppu+pag-k0"]
    computed.clear()
    run(experiment, dataset, tmp_path, profiles={"a": "likes red", "b": "likes blue"})
    assert computed == []
    run(experiment, dataset, tmp_path, profiles={"a": "likes red", "b": "likes all the greens"})
    assert computed == ["pag-k0", "oppu+pag-k0"]
    with Store(tmp_path / "store") as store:
        versions = [(record.user_id, record.setting, record.version) for record in store.modules()]
    assert versions == [
        ("a", "plain", 1), ("a", "profile", 1), ("b", "plain", 1), ("b", "profile", 1), ("b", "profile", 2),
    ]  # fmt: skip


@pytest.mark.usefixtures("no_report")
def test_a_base_of_other_content_under_the_same_name_is_another_run_and_one_moved_is_not(
    tmp_path: Path, dataset: Dataset, computed: list[str]
) -> None:
    folder = tiny_base_folder(tmp_path / "bases" / "mine")
    run(plainly(folder, "base"), dataset, tmp_path / "out")
    folder.rename(tmp_path / "bases" / "moved")
    run(plainly(tmp_path / "bases" / "moved", "base"), dataset, tmp_path / "out")
    assert computed == ["base-k0"]
    tiny_base_folder(folder, seed=1)
    with pytest.raises(ConfigError, match="holds another run"):
        run(plainly(folder, "base"), dataset, tmp_path / "out")


@pytest.mark.usefixtures("no_report")
def test_a_cell_of_other_inputs_is_never_taken_even_if_the_record_is_that_of_the_run(
    tmp_path: Path, base_folder: Path, dataset: Dataset, computed: list[str]
) -> None:
    fewer = Dataset(dataset.users[:1], dataset.base_users)
    run(plainly(base_folder, "base"), fewer, tmp_path / "fewer")
    run(plainly(base_folder, "base", "rag"), dataset, tmp_path / "all")
    shutil.copy(tmp_path / "fewer" / "run.json", tmp_path / "all")
    run(plainly(base_folder, "base"), fewer, tmp_path / "all")
    assert computed == ["base-k0", "base-k0", "rag-k1", "base-k0"]
    assert [row["users"] for row in results(tmp_path / "all")["rows"]] == [1, 1]
