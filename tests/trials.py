"""Studies on a tiny base and the sample data, for the tests of studies that train."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shell import done
from toys import tiny_base_folder

from oppu.data import read_dataset, without_test_questions
from oppu.data.sample import sample_tasks
from oppu.personalize import longest_histories
from oppu.records import User
from oppu.store import Store
from oppu.tasks import Task, task_from_toml

USERS, NEWEST = 2, 4
TINY = (
    "--users", USERS, "--newest", NEWEST, "--adapt-pairs", 8, "--adapt-epochs", 1,
    "--epochs", 2, "--learning-rate", 0.03, "--batch-size", 4, "--rank", 2,
)  # fmt: skip


def ran(name: str, place: Path, *arguments: object) -> Path:
    """The folder of a study that has run on a tiny base in `place`."""
    base = place / "tiny"
    if not base.exists():
        tiny_base_folder(base)
    out = place / name
    done("study", name, "--base", base, *TINY, *arguments, "--out", out)
    return out


def rows_of(out: Path) -> list[dict[str, str]]:
    """The table."""
    with next(out.glob("*.csv")).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(out: Path) -> dict[str, Any]:
    """What programs read."""
    found: dict[str, Any] = json.loads((out / f"{out.name}.json").read_text(encoding="utf-8"))
    return found


def sample(place: int = 0) -> tuple[Task, tuple[User, ...], tuple[User, ...]]:
    """A sample task, the users that a tiny study takes, and the held-out users."""
    chosen = sample_tasks()[place]
    task = task_from_toml(chosen.task)
    dataset = without_test_questions(task, read_dataset(chosen.data, task))
    return task, tuple(longest_histories(dataset.users, USERS)), dataset.base_users


def run_folder(out: Path, beginning: str) -> Path:
    """The one run whose name begins so."""
    (found,) = (out / "runs").glob(f"{beginning}-*")
    return found


def histories(run: Path, task: Task, users: Sequence[User]) -> dict[str, tuple[str, ...]]:
    """Ids of the items that the run's modules were trained on or could retrieve, by user."""
    with Store(run / "store") as store:
        return {user.id: tuple(item.id for item in store.history(user.id, task.name)) for user in users}
