"""Threads that work on several passes at once, each on its own share of the cores.

On a CPU, independent passes side by side beat one pass spread over the cores: nobody waits at the end of each product.
On an accelerator there is one worker, the caller.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workers:
    """A pool of `count` threads that share `cores` cores."""

    count: int
    cores: int
    _pool: ThreadPoolExecutor | None

    def map(self, work: Callable[[S], T], parts: Sequence[S]) -> list[T]:
        """`work(part)` for each part, in order; at most `count` at a time. The first error is raised here."""
        if self._pool is None or len(parts) < 2:
            return [work(part) for part in parts]
        threads = max(1, self.cores // min(len(parts), self.count))

        def narrow(part: S) -> T:
            torch.set_num_threads(threads)  # of this thread: OpenMP keeps the number for each
            return work(part)

        return list(self._pool.map(narrow, parts))


@contextmanager
def workers_for(device: torch.device) -> Iterator[Workers]:
    """As many workers as torch may use cores, where the model lies on the CPU; else one."""
    cores = torch.get_num_threads()
    if device.type != "cpu" or cores < 2:
        yield Workers(1, cores, None)
        return
    pool = ThreadPoolExecutor(cores, thread_name_prefix="oppu-worker")
    try:
        yield Workers(cores, cores, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(cores)  # what threads made from now on start with


class Room:
    """The tokens that passes hold at a time: one that would exceed the limit waits until the others are done."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def of(self, tokens: int) -> Iterator[None]:
        """Hold so many, as soon as there is room or nobody else holds any."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + tokens <= self._limit)
            self._held += tokens
        try:
            yield
        finally:
            with self._changed:
                self._held -= tokens
                self._changed.notify_all()
