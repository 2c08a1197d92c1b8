"""Runs that are interrupted: how, and what they may and may not leave behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from store_samples import module_folders, notes, rows_with
from toys import COLOUR

from oppu.model.base import Base
from oppu.model.kinds import LoraConfig
from oppu.model.module import Module
from oppu.personalize import Plan, personalize
from oppu.records import User
from oppu.store import Store
from oppu.train import Machine, TrainConfig

SETTINGS = TrainConfig(epochs=2, batch_size=1, learning_rate=1e-2, module=LoraConfig(rank=2, alpha=4))


class Interrupted(Exception):
    """Ctrl-C, or whatever else."""


def interrupt_after(steps: int) -> Any:
    """A progress callback that ends the run in the next step's first pass."""
    left = steps

    def progress(*_: object) -> None:
        nonlocal left
        if left == 0:
            raise Interrupted
        left -= 1

    return progress


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def written(out: Path) -> dict[str, Any]:
    """Tables and predictions, without the times that they took."""
    tables = results(out)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in tables["rows"]]
    return {path.name: path.read_bytes() for path in (out / "predictions").iterdir()} | {"rows": rows}


def assert_nothing_under_way(store: Store) -> None:
    assert module_folders(store, "checkpoints") == []
    assert "checkpoints" not in rows_with(store, "")
    assert notes(store) == 0


def difference(left: Module, right: Module) -> float:
    a, b = (torch.cat([m.tensors[name].flatten() for name in sorted(m.tensors)]) for m in (left, right))
    return float((a - b).norm() / b.norm())


def modules(store: Store) -> dict[str, Module]:
    assert {record.version for record in store.modules()} == {1}
    return {record.user_id: store.load_module(record) for record in store.modules()}


def interrupted(store: Store, base: Base, users: Sequence[User], steps: int, slots: int = 1) -> None:
    """Everyone under way has a checkpoint of the last step that was finished."""
    machine = Machine(slots, checkpoint_s=0)
    with pytest.raises(Interrupted):
        list(personalize(store, base, Plan(COLOUR, SETTINGS), users, None, machine, interrupt_after(steps)))


def undisturbed(place: Path, base: Base, users: Sequence[User], slots: int = 1) -> dict[str, Module]:
    with Store(place) as store:
        list(personalize(store, base, Plan(COLOUR, SETTINGS), users, machine=Machine(slots)))
        return modules(store)


def steps_of(store: Store, base: Base, users: Sequence[User], slots: int = 1) -> int:
    """Passes until everyone has a module."""
    taken: list[object] = []
    plan = Plan(COLOUR, SETTINGS)
    for result in personalize(store, base, plan, users, machine=Machine(slots), on_progress=taken.append):
        assert result.status in ("trained", "kept"), result
    return len(taken)
