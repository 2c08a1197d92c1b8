"""A cell under way: its answers as they come, and the seconds spent on it, so that a killed run goes on from there.

The seconds are those of this run and of earlier ones until they last kept something. What a killed run did after that
is done again, and counted then. So the sum is the time of an undisturbed run, and at most `every_s` more or less for
each interruption.
"""

import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from oppu.errors import StoreError
from oppu.store.files import is_garbage, make_folders, os_errors, write_atomically

FOLDER = "under-way"
"""In a run's folder; gone when nothing is under way."""

_LOG = logging.getLogger("oppu.evaluate")


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    fingerprint: str
    seconds: float
    answers: list[tuple[str, str, str]]
    """User, query, output."""


class UnderWay:
    """Answers and seconds of one cell, in a file that is written at most every `every_s` seconds.

    In a `with` statement, it is also written when an exception, Ctrl-C for instance, ends the run.
    """

    def __init__(self, out: Path, cell: str, fingerprint: str, every_s: float) -> None:
        """`cell`: its name; `fingerprint`: over everything that decides it. What was kept of another is not used."""
        self._path = out / FOLDER / f"{cell}.json"
        self._fingerprint = fingerprint
        self._every_s = every_s
        kept = _read(self._path)
        if kept is None or kept.fingerprint != fingerprint:
            kept = _Kept(fingerprint=fingerprint, seconds=0.0, answers=[])
        self.answers = {(user_id, query_id): output for user_id, query_id, output in kept.answers}
        """By user and query."""
        self._earlier = kept.seconds
        self._began = self._kept_at = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.keep()

    @property
    def seconds(self) -> float:
        """Spent on the cell so far, over all runs."""
        return self._earlier + time.perf_counter() - self._began

    def add(self, user_id: str, query_id: str, output: str) -> None:
        """One more answer."""
        self.answers[user_id, query_id] = output
        self.tick()

    def tick(self) -> None:
        """Something was done: write, if it is time."""
        if time.perf_counter() - self._kept_at >= self._every_s:
            self.keep()

    def keep(self) -> None:
        """Write now; where that fails the run goes on, and it is said."""
        answers = [(user_id, query_id, output) for (user_id, query_id), output in self.answers.items()]
        kept = _Kept(fingerprint=self._fingerprint, seconds=self.seconds, answers=answers)
        try:
            with os_errors(self._path):
                make_folders(self._path.parent)
            write_atomically(self._path, json.dumps(kept.model_dump(), ensure_ascii=False).encode())
        except StoreError as error:
            _LOG.warning("what is under way cannot be kept; the run goes on (%s)", error.line())
        self._kept_at = time.perf_counter()


def forget(out: Path, cell: str) -> None:
    """The cell is finished, and kept elsewhere."""
    path = out / FOLDER / f"{cell}.json"
    with os_errors(path):
        path.unlink(missing_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            if is_garbage(left):
                left.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or another cell is under way
            path.parent.rmdir()


def _read(path: Path) -> _Kept | None:
    try:
        return _Kept.model_validate_json(path.read_bytes()) if path.is_file() else None
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        _LOG.warning("%s: cannot be used, so the questions are asked again (%s)", path, first)
        return None
