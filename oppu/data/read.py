"""A path -> a Dataset: finds out which format lies there, reads all of it, and refuses it whole if anything is wrong.

In a folder with files of several formats, the OPPU release comes first, then LaMP's files, then rows of one's own.
"""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from oppu.data.lamp import OUTPUTS, QUESTIONS, read_lamp
from oppu.data.problems import Problems
from oppu.data.release import LABELS, OTHERS, USERS, read_release
from oppu.data.rows import SUFFIXES, read_own
from oppu.errors import ConfigError, DataError
from oppu.records import Dataset
from oppu.tasks import Task, find_task

Reader = Callable[[Path, Task, Problems], Dataset]

_log = logging.getLogger(__name__)

_FORMATS = f"{USERS} (OPPU release), *{QUESTIONS} (LaMP), or .jsonl or .csv files of one's own"


@dataclass(frozen=True, slots=True)
class Checked:
    """A data set without problems, and what is worth knowing about it."""

    dataset: Dataset
    notes: tuple[str, ...]
    """Harmless things that the reader settled, each with its count."""


def read_dataset(path: Path, task: Task, base_path: Path | None = None) -> Dataset:
    """The users under `path`; notes go to the log. A DataError lists every problem, with file, user and item.

    `base_path`: where the held-out users are, in place of those under `path`; none of them may be a user there.
    """
    checked = check(path, task)
    for note in checked.notes:
        _log.warning("%s: %s", path, note)
    if base_path is None:
        return checked.dataset
    base_users, names = read_dataset(base_path, task).base_users, {user.id for user in checked.dataset.users}
    if both := [f"held-out user {user.id} is a user of {path}, too" for user in base_users if user.id in names]:
        fix = "the base must not have seen those who get modules: leave them out of one of the two"
        raise DataError(both, where=str(base_path), fix=fix)
    return replace(checked.dataset, base_users=base_users)


def check(path: Path, task: Task) -> Checked:
    """The users under `path`, and the reader's notes. A DataError lists every problem, with file, user and item."""
    problems = Problems()
    read, source = _reader(path)
    dataset = read(source, task, problems)
    problems.stop_if_any(path)
    if not dataset.users and not dataset.base_users:
        raise DataError(["no users in it"], where=str(path))
    return Checked(dataset, problems.notes)


def _reader(path: Path) -> tuple[Reader, Path]:
    if not path.exists():
        raise DataError(["no such file or folder"], where=str(path))
    if path.is_file():
        return _reader_of_file(path)
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise DataError([f"cannot be read: {error.strerror}"], where=str(path)) from None
    if USERS in names:
        return read_release, path
    if any(name.endswith(QUESTIONS) for name in names):
        return read_lamp, path
    for expected, others in ((USERS, (LABELS, OTHERS)), (f"*{QUESTIONS}", (OUTPUTS,))):
        found = next((name for name in names if name.endswith(others)), None)
        if found is not None:
            raise DataError([f"{expected} is missing beside {found}"], where=str(path))
    if any(name.lower().endswith(SUFFIXES) for name in names):
        return read_own, path
    raise DataError(["no data in this folder"], where=str(path), fix=f"it should hold {_FORMATS}")


def _reader_of_file(path: Path) -> tuple[Reader, Path]:
    if path.name == USERS:
        return read_release, path.parent
    if path.name.endswith(QUESTIONS):
        return read_lamp, path
    if path.suffix.lower() in SUFFIXES:
        return read_own, path
    raise DataError(["not a data file that oppu knows"], where=str(path), fix=f"give {_FORMATS}")


def named_task(path: Path) -> Task:
    """The task that a benchmark folder's labels name; ConfigError where nothing names one."""
    for file in sorted([*path.glob(LABELS), *path.glob(f"*{OUTPUTS}")]):
        with suppress(OSError, ValueError, KeyError, TypeError, ConfigError):
            return find_task(str(json.loads(file.read_text(encoding="utf-8"))["task"]))
    raise ConfigError("nothing in it names its task", where=str(path), fix="say which with --task")
