"""Finished experiments and studies, read back from their folders; what is damaged or unfinished is said."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oppu.errors import ConfigError, DataError
from oppu.evaluate.results import RESULTS_FILE, TASK_FILE, Cell, read_cells
from oppu.store.files import os_errors
from oppu.tasks import Task, find_task, task_from_toml

STUDY_FILE = "study.json"
"""Says in a folder that a study works there, and which."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished experiment: one task, one seed."""

    folder: Path
    task: Task
    config: Mapping[str, Any]
    """As in its results."""
    cells: tuple[Cell, ...]
    """The methods that use a model and were asked for when it was last run."""

    @property
    def seed(self) -> int:
        """Of everything that was drawn."""
        return int(self.config.get("seed", 0))

    @property
    def base(self) -> str:
        """The name that the base was called by."""
        return str(self.config.get("base", "unknown"))

    @property
    def golds(self) -> dict[tuple[str, str], str]:
        """The true answer by (user, query)."""
        return {(p.user_id, p.query_id): p.gold for p in self.cells[0].predictions}


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What a study left behind."""

    folder: Path
    name: str
    record: Mapping[str, Any]
    """Its JSON: title, source, paper, found, facts, command, settings, versions, machine, columns, table, ..."""
    svg: str
    """Its figure, a file by itself."""


def read_run(folder: Path, task_file: str | None = None, task_files: Mapping[str, str] | None = None) -> Run:
    """A finished run.

    Its task is that of `task_file`, the one kept with it, that of `task_files` under its name, or a built-in one.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        unfinished = (folder / "run.json").is_file()
        raise ConfigError(
            "is an unfinished experiment" if unfinished else "is no finished experiment",
            where=str(folder),
            fix="run its command again, which goes on" if unfinished else "name the --out of `oppu experiment`",
        )
    with os_errors(file):
        text = file.read_bytes()
    try:
        record = json.loads(text)
        name, config = str(record["task"]), dict(record["config"])
        listed = {(row["method"], row["k"]) for row in record["rows"]}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            ["is damaged"], where=str(file), fix="run the same experiment again; it keeps its cells"
        ) from None
    task = _task(folder, name, task_file, task_files or {})
    cells = tuple(cell for cell in read_cells(folder) if (cell.method, cell.k) in listed)
    if not cells:
        raise DataError(["there are no finished methods"], where=str(folder), fix="run the same experiment again")
    return Run(folder, task, config, cells)


def is_study(folder: Path) -> bool:
    """Whether a study works there."""
    return (folder / STUDY_FILE).is_file()


def read_study(folder: Path) -> StudyResult:
    """A finished study; DataError where its files are not those of one."""
    try:
        name = str(json.loads((folder / STUDY_FILE).read_bytes())["study"])
        files = [folder / f"{name}.{ending}" for ending in ("json", "svg", "csv")]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ConfigError(
                f"is an unfinished study: {', '.join(missing)} is not there",
                where=str(folder),
                fix="run its command again, which goes on",
            )
        record = json.loads(files[0].read_bytes())
        for key in ("title", "source", "paper", "found", "facts", "command", "table"):
            record[key]
        return StudyResult(folder, name, record, files[1].read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError([f"cannot be read: {error.strerror}"], where=str(folder)) from None
    except (ValueError, KeyError, TypeError):
        raise DataError(["is damaged"], where=str(folder), fix="run the same study again") from None


def adaption_seconds(run: Run) -> float:
    """What adapting the run's bases took, by their records in its store; 0 where there are none."""
    from oppu.model.base import RECORD_FILE

    total = 0.0
    for file in (run.folder / "store" / "bases").glob(f"*/{RECORD_FILE}"):
        try:
            total += float(json.loads(file.read_bytes())["seconds"])
        except (OSError, ValueError, KeyError, TypeError):  # a base made elsewhere
            continue
    return total


def _task(folder: Path, name: str, task_file: str | None, task_files: Mapping[str, str]) -> Task:
    kept = folder / TASK_FILE
    if task_file is None and kept.is_file() and (task := task_from_toml(kept)).name == name:
        return task
    try:
        task = find_task(task_file or task_files.get(name, name))
    except ConfigError:
        if task_file is not None or name in task_files:
            raise
        raise ConfigError(
            f"the run's task '{name}' is none of the built-in ones", fix="name its file with --task"
        ) from None
    if task.name != name:
        raise ConfigError(f"the run's task is {name}, not {task.name}", where="--task", fix=f"give the file of {name}")
    return task
