"""What a retriever is, and the order of time that all of them keep to. Knows strings and times, not users."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol


class Retriever(Protocol):
    """Texts with times, ready to be searched; made by `(texts, times, seed)`."""

    name: ClassVar[str]
    """In options, and in the names of settings."""

    def top(self, query: str, k: int, before: float | None = None) -> tuple[int, ...]:
        """Indices of at most `k` texts of a time < `before` (None: all), best first; ties: newer first."""
        ...


class Timeline:
    """Texts in order of time; a position is a place in this order. Of equal times, the one that came later is newer."""

    def __init__(self, times: Sequence[float]) -> None:
        self.order = tuple(sorted(range(len(times)), key=times.__getitem__))
        """order[position] is the text's index; oldest first."""
        self._times = tuple(times[index] for index in self.order)

    def earlier(self, before: float | None) -> int:
        """The number of texts of a time < `before`; they are the positions 0 to that number."""
        return len(self._times) if before is None else bisect_left(self._times, before)

    def indices(self, positions: Iterable[int]) -> tuple[int, ...]:
        """The texts at these positions."""
        return tuple(self.order[position] for position in positions)


def newest_first(count: int) -> range:
    """The positions of the `count` oldest texts, the newest of them first."""
    return range(count - 1, -1, -1)
