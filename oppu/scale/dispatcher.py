"""The ledger as an actor: workers pull users from it and report to it, the driver waits for its news.

It knows results as bytes alone, and so starts without importing torch.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from oppu.errors import ModelError
from oppu.records import User
from oppu.scale.ledger import Ledger, Lost


@dataclass(frozen=True, slots=True)
class News:
    """What has happened since the driver last asked."""

    results: tuple[bytes, ...]
    """Each a pickled `Personalized`."""
    tokens: int
    examples: int
    begun: frozenset[int]
    """The workers that have loaded their base, since the beginning."""


class Dispatcher:
    """All its methods run in one thread, so that nothing changes while the ledger is read."""

    def __init__(self, users: Sequence[User], workers: int) -> None:
        self._ledger = Ledger(users, workers)
        self._changed = asyncio.Condition()
        self._results: list[bytes] = []
        self._tokens = self._examples = 0
        self._begun: set[int] = set()
        self._told = 0
        self._fingerprint: str | None = None

    async def begin(self, worker: int, fingerprint: str, host: str) -> None:
        """A worker has loaded its base; ModelError unless it is the base that the others have."""
        self._fingerprint = self._fingerprint or fingerprint
        if fingerprint != self._fingerprint:
            what = (
                f"the base on {host} ({fingerprint[:12]}) is not that of the other machines ({self._fingerprint[:12]})"
            )
            raise ModelError(what, where="--base", fix="copy one folder to all of them")
        async with self._changed:
            self._begun.add(worker)
            self._changed.notify_all()

    async def take(self, worker: int, *, wait: bool) -> User | None:
        """A user for a free slot; None: nobody now, or, where the worker is ready to wait, nobody any more."""
        async with self._changed:
            while True:
                user = self._ledger.take(worker)
                if user is not None or not wait or self._ledger.is_done:
                    return user
                await self._changed.wait()

    async def settle(self, worker: int, user_id: str, result: bytes) -> None:
        """What became of a user, pickled."""
        async with self._changed:
            if self._ledger.settle(worker, user_id):
                self._results.append(result)
                self._changed.notify_all()

    async def advance(self, tokens: int, examples: int) -> None:
        """A worker has done so many."""
        async with self._changed:
            self._tokens += tokens
            self._examples += examples
            self._changed.notify_all()

    async def lose(self, worker: int, *, suspicious: bool) -> Lost:
        """The worker is dead; suspicious: perhaps because of a user that it held."""
        async with self._changed:
            lost = self._ledger.lose(worker, suspicious=suspicious)
            self._changed.notify_all()
            return lost

    async def news(self) -> News:
        """What has happened; waits until something has."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._results or self._tokens or len(self._begun) > self._told)
            news = News(tuple(self._results), self._tokens, self._examples, frozenset(self._begun))
            self._results, self._tokens, self._examples, self._told = [], 0, 0, len(self._begun)
            return news
