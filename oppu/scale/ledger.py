"""Who is waiting, who is leased to which worker, who is settled: the books of a run on many workers.

A worker pulls users one by one and holds a lease on each until it reports the result. What a dead worker held is given
out again. A user in whose company workers keep dying is trained last and alone, so that it can harm nobody else, and is
given up when workers die all the same.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from oppu.records import User

SUSPECT_DEATHS = 2
"""A user that so many workers held when they died is suspected: trained after the others, and alone."""
ALONE_DEATHS = 3
"""A suspect is given up when so many workers died that were training it alone."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What becomes of the users of a dead worker."""

    again: tuple[str, ...]
    """They are given out again."""
    given_up: tuple[str, ...]


class Ledger:
    """The books over `users`, who are given out in their order to about `workers` workers.

    A worker's number stands for one process: the one that takes a dead one's place has a number of its own.
    """

    def __init__(self, users: Sequence[User], workers: int) -> None:
        self._waiting = deque(users)
        self._suspects: deque[User] = deque()
        self._leases: dict[int, dict[str, User]] = {}
        self._leased_items: Counter[int] = Counter()
        self._lost: set[int] = set()
        self._deaths: Counter[str] = Counter()
        self._workers = workers
        self._open_items = sum(map(_items, users))

    @property
    def is_done(self) -> bool:
        """Whether everybody is settled."""
        return not (self._waiting or self._suspects or any(self._leases.values()))

    def take(self, worker: int) -> User | None:
        """The next user for a worker; None: nobody for it now.

        A worker gets users until it holds its share of the items that are not yet learned: at the end of a run, and in
        a small one, the first worker must not have them all.
        """
        if worker in self._lost:
            return None
        held = self._leases.setdefault(worker, {})
        if len(held) == 1 and self._is_suspect(*held):  # with whom nobody else is held
            return None
        if self._waiting and self._leased_items[worker] < self._open_items / self._workers:
            user = self._waiting.popleft()
        elif self._suspects and not held:  # nobody else is waiting, or an empty worker would have got them
            user = self._suspects.popleft()
        else:
            return None
        held[user.id] = user
        self._leased_items[worker] += _items(user)
        return user

    def settle(self, worker: int, user_id: str) -> bool:
        """Ends a lease; False where the worker has none, because it was taken for dead and another has the user."""
        user = self._leases.get(worker, {}).pop(user_id, None)
        if user is None:
            return False
        self._leased_items[worker] -= _items(user)
        self._open_items -= _items(user)
        return True

    def lose(self, worker: int, *, suspicious: bool = True) -> Lost:
        """The worker is dead: its users go to the front of the queue, to the suspects, or are given up.

        suspicious: its users may have been why. A death that is not, as for want of the store, counts against nobody.
        """
        self._lost.add(worker)
        held = self._leases.pop(worker, {})
        del self._leased_items[worker]
        again, given_up = [], []
        for user in reversed(held.values()):
            self._deaths[user.id] += suspicious
            if self._deaths[user.id] >= SUSPECT_DEATHS + ALONE_DEATHS:
                given_up.append(user.id)
                self._open_items -= _items(user)
                continue
            again.append(user.id)
            if self._is_suspect(user.id):
                self._suspects.append(user)
            else:
                self._waiting.appendleft(user)
        return Lost(tuple(again[::-1]), tuple(given_up))

    def _is_suspect(self, user_id: str) -> bool:
        return self._deaths[user_id] >= SUSPECT_DEATHS


def _items(user: User) -> int:
    return max(1, len(user.history))
