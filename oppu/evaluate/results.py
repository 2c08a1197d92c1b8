"""What a run leaves behind: predictions of one method (a cell), `results.json`, prediction files, and cells to resume.

Everything is written atomically; what is read back is checked first.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from oppu.errors import ConfigError, DataError
from oppu.evaluate.metrics import score
from oppu.store.files import make_folders, os_errors, write_atomically
from oppu.tasks import Task, task_to_toml

RESULTS_FILE = "results.json"
TASK_FILE = "task.toml"
"""The run's task as it was."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of one method to one query whose true answer is known."""

    user_id: str
    query_id: str
    gold: str
    output: str

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one k over all users: a row of the table before it is scored."""

    method: str
    """base, random, rag, ..., or oppu, oppu+rag, ... with a personal module; or a baseline."""
    k: int
    """Number of retrieved items."""
    predictions: tuple[Prediction, ...]
    seconds: float
    """Wall-clock time that the cell took, training included; over all runs, where it was interrupted."""
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Training loss per step, by user; empty where nothing was trained."""
    fingerprint: str = ""
    """Over everything that decides the predictions; a cell of another one is computed again."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def name(self) -> str:
        """`<method>-k<k>`, the stem of the cell's files."""
        return f"{self.method}-k{self.k}"


@dataclass(frozen=True, slots=True)
class Row:
    """A scored cell: a row of `results.json`."""

    method: str
    k: int
    metrics: Mapping[str, float]
    users: int
    queries: int
    seconds: float


_CELL: TypeAdapter[Cell] = TypeAdapter(Cell)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def score_cell(task: Task, cell: Cell) -> Row:
    """A cell's metrics and counts."""
    return Row(
        method=cell.method,
        k=cell.k,
        metrics=score(task, [p.gold for p in cell.predictions], [p.output for p in cell.predictions]),
        users=len({p.user_id for p in cell.predictions}),
        queries=len(cell.predictions),
        seconds=round(cell.seconds, 3),
    )


def write_results(out: Path, task: Task, config: Mapping[str, Any], cells: Sequence[Cell]) -> tuple[Row, ...]:
    """Write results.json, the task, and every cell's predictions in the benchmark's format; gives back the rows."""
    rows = tuple(score_cell(task, cell) for cell in cells)
    for cell in cells:
        golds = [{"id": p.query_id, "output": p.output} for p in cell.predictions]
        _write_json(out / predictions_file(cell), {"task": task.benchmark_name, "golds": golds})
    write_atomically(out / TASK_FILE, task_to_toml(task).encode("utf-8"))
    _write_json(
        out / RESULTS_FILE,
        {"task": task.name, "config": dict(config), "rows": [asdict(row) for row in rows]},
    )
    return rows


def predictions_file(cell: Cell) -> Path:
    """Where a cell's predictions lie, relative to the run's folder."""
    return Path("predictions") / f"{_stem(cell)}.json"


def write_cell(out: Path, cell: Cell) -> Path:
    """Keep a finished cell under `out/cells`, so that the run can go on from there; gives back the file."""
    path = out / "cells" / f"{_stem(cell)}.json"
    _write_json(path, asdict(cell))
    return path


def read_cells(out: Path) -> tuple[Cell, ...]:
    """The finished cells under `out/cells`, by file name; a DataError names every damaged file. None there: ()."""
    cells: list[Cell] = []
    problems: list[str] = []
    for path in sorted((out / "cells").glob("*.json")):
        try:
            cells.append(_read_cell(path))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems, where=str(out / "cells"), fix="delete the file to compute it again")
    return tuple(cells)


def _read_cell(path: Path) -> Cell:
    try:
        cell = _CELL.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError([f"{path.name}: cannot be read: {error.strerror}"]) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError([f"{path.name}: damaged: {place + ': ' if place else ''}{first['msg']}"]) from None
    if path.stem != cell.name:
        raise DataError([f"{path.name}: holds the cell {cell.name}"])
    if len({p.query_id for p in cell.predictions}) != len(cell.predictions):
        raise DataError([f"{path.name}: answers a query twice"])
    return cell


def _stem(cell: Cell) -> str:
    if not _FILE_NAME.fullmatch(cell.method):
        raise ConfigError(
            f"'{cell.method}' cannot be a method's name", fix="use letters, digits, '.', '_', '+' and '-'"
        )
    return cell.name


def _write_json(path: Path, value: object) -> None:
    with os_errors(path.parent):
        make_folders(path.parent)
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
