"""Where something is wrong in the data, and the list of all that is wrong.

A reader goes on after a problem, so that one run names every problem; `Problems.stop_if_any` then refuses the whole.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from oppu.errors import DataError


@dataclass(frozen=True, slots=True)
class Place:
    """A spot in the data, as precise as it is known."""

    file: str
    line: int | None = None
    user: str | None = None
    item: str | None = None
    """Names a history item or a query, with the word for it: `item '7'`, `query 'q1'`."""

    def of_user(self, user: str) -> "Place":
        return replace(self, user=user)

    def of_item(self, kind: str, identifier: str) -> "Place":
        return replace(self, item=f"{kind} '{identifier}'")

    def __str__(self) -> str:
        return ", ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        yield self.file
        if self.line is not None:
            yield f"line {self.line}"
        if self.user is not None:
            yield f"user '{self.user}'"
        if self.item is not None:
            yield self.item


class Problems:
    """Collects what is wrong, and counts what was put right without harm."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._noted: Counter[str] = Counter()

    def add(self, place: Place, what: str) -> None:
        """Something that forbids the use of the data."""
        self._found.append(f"{place}: {what}")

    def note(self, what: str) -> None:
        """Something harmless that the reader settled; `what` is the same for all of a kind, so that it is counted."""
        self._noted[what] += 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noted, with how often."""
        return tuple(f"{what}: {count}" for what, count in self._noted.items())

    def stop_if_any(self, path: Path) -> None:
        """A DataError with all problems, where there are any."""
        if self._found:
            raise DataError(self._found, where=str(path))
