"""Where something is wrong in the data, and the list of all that is wrong.

A reader goes on after a problem, so that one run names every problem; `Problems.stop_if_any` then refuses the whole.
"""

from collections import Counter
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
    """A history item or a query, with the word for it: `item '7'`, `query 'q1'`, `item no. 3`."""

    def of_user(self, user: str) -> "Place":
        """The same spot, with its user known."""
        return replace(self, user=user)

    def of_item(self, item: str) -> "Place":
        """The same spot, with its item or query known."""
        return replace(self, item=item)

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line is not None else ""
        user = f"user '{self.user}'" if self.user is not None else ""
        return ", ".join(part for part in (self.file, line, user, self.item) if part)


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
