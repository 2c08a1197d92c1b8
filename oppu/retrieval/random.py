"""Texts by lot."""

import hashlib
import random
from collections.abc import Sequence

from oppu.retrieval.retriever import Retriever, Timeline


class Random(Retriever):
    """Texts drawn uniformly without replacement; the same in every process for the same seed, query and `before`."""

    name = "random"

    def __init__(self, texts: Sequence[str], times: Sequence[float], seed: int = 0) -> None:
        self._timeline = Timeline(times)
        self._seed = seed

    def top(self, query: str, k: int, before: float | None = None) -> tuple[int, ...]:
        """`k` texts earlier than `before`, in the order drawn."""
        count = self._timeline.earlier(before)
        # not hash(): that differs from process to process
        key = repr((self._seed, query, None if before is None else float(before))).encode()
        generator = random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big"))
        return self._timeline.indices(generator.sample(range(count), min(k, count)))
