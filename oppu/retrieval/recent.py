"""The newest texts."""

from collections.abc import Sequence

from oppu.retrieval.retriever import Retriever, Timeline, newest_first


class Recent(Retriever):
    """The newest texts, whatever the query."""

    name = "recent"

    def __init__(self, texts: Sequence[str], times: Sequence[float], seed: int = 0) -> None:
        self._timeline = Timeline(times)

    def top(self, query: str, k: int, before: float | None = None) -> tuple[int, ...]:
        """The `k` newest texts earlier than `before`, newest first."""
        return self._timeline.indices(newest_first(self._timeline.earlier(before))[:k])
