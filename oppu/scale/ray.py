"""`personalize` on the workers of a Ray cluster: the same modules, and work goes on when workers die.

A worker is an actor with a base of its own. It runs `personalize` over users whom it pulls from the dispatcher, one for
each slot as it becomes free, and commits each finished user to the store itself. The dispatcher is an actor around the
`Ledger`; the driver puts a new worker into a dead one's place. Whoever was committed before its worker died is found
in the store and not trained again.
"""

import os
import pickle
import re
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oppu import __version__
from oppu.errors import ConfigError, OppuError, StoreError
from oppu.model.devices import AUTO
from oppu.model.engine import Progress
from oppu.personalize import Personalized, Plan, base_of, longest_histories, personalize
from oppu.records import User, UserProfile
from oppu.scale.cluster import Cluster, Team, addresses, connected
from oppu.scale.dispatcher import Dispatcher, News
from oppu.scale.ledger import Lost
from oppu.store import Store
from oppu.train import Machine

_REPORT_S = 0.5
_PATIENCE_S = 30
_FAILED_STARTS = 5
"""A worker's place stays empty when so many in a row died there before they could ask for a user."""
_DEATHS_IN_A_ROW = 20
"""The run ends when so many workers for each place died in a row and no user was finished or given up in between."""
_STORE_PAUSE_S = 10.0
"""Before a worker begins in the place of one whose store failed."""
_DISPATCHERS = 3


@dataclass(frozen=True, slots=True)
class StorePlace:
    """What opens the store, as plain values: workers on other machines open it themselves."""

    address: str
    files: str | None = None

    @property
    def of_one_machine(self) -> str | None:
        """What of it only one machine can use: a folder with SQLite, or files in one. None: nothing."""
        if "://" not in self.address:
            return self.address
        return self.files if self.files is not None and self.files.startswith("file:") else None

    def open(self) -> Store:
        """The store."""
        return Store(self.address, self.files)


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker is told."""

    store: StorePlace
    base: str
    """As `base_of` takes it."""
    plan: Plan
    profiles: Mapping[str, UserProfile] | None = None
    machine: Machine | None = None
    """Slots and tokens per pass of each worker."""
    device: str = AUTO
    dtype: str = AUTO
    quantize: str | None = None
    """As `load_base` takes them."""


def personalize_on_ray(
    work: Work,
    users: Sequence[User],
    cluster: Cluster | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> Iterator[Personalized]:
    """What `personalize` yields, from the workers of a cluster; longest histories first.

    `on_notice` gets a line when a worker dies. A user with whom workers keep dying comes back as failed. Raises what
    `personalize` raises, and ConfigError where the cluster or the store cannot serve. A StoreError in the middle of the
    run ends its worker alone, and is raised when none gets on in the workers' places.
    """
    if "://" not in work.store.address:  # workers have a working folder of their own
        work = replace(work, store=StorePlace(str(Path(work.store.address).absolute()), work.store.files))
    open_users = {user.id: user for user in longest_histories(users, None)}
    if not open_users:
        return
    with connected(cluster or Cluster()) as team:
        _check_shared(work.store)
        for _ in range(_DISPATCHERS):
            run = _Run(work, team, list(open_users.values()), on_progress, on_notice)
            with suppress(_DispatcherDied), closing(run.results()) as results:
                for result in results:
                    del open_users[result.user_id]
                    yield result
                break
        else:
            raise OppuError(f"the dispatcher died {_DISPATCHERS} times", where="--ray", fix=_GO_ON)
    work.store.open().close()  # ends what dead workers left half done


class Worker:
    """One process with a base of its own: `load`, then `run`."""

    def __init__(self, number: int, work: Work, team: Team, dispatcher: Any) -> None:
        self._number = number
        self._work = work
        self._team = team
        self._dispatcher = dispatcher

    def load(self, folder: str, version: str, pause_s: float) -> None:
        """Opens the store and loads the base, from the driver's folder if the machine has it; checks the version.

        pause_s: before that, for a store that failed a moment ago.
        """
        import ray
        import torch
        from transformers.utils import logging

        host = socket.gethostname()
        if version != __version__:
            what = f"{host} has oppu {__version__}, and this machine {version}"
            raise ConfigError(what, where="--ray", fix="install the same version on every machine")
        time.sleep(pause_s)
        logging.disable_progress_bar()
        torch.set_num_threads(self._team.cores)
        with suppress(OSError):
            os.chdir(folder)  # so that a base in a folder is found by the name that was given
        self._store = self._work.store.open()
        work = self._work
        self._base = base_of(self._store, work.base, device=work.device, dtype=work.dtype, quantize=work.quantize)
        ray.get(self._dispatcher.begin.remote(self._number, self._base.fingerprint, host))

    def run(self, _: None) -> StoreError | None:
        """Trains and commits users until there are none left, or until the store fails: then what it said.

        Takes what `load` returns, and so waits for it.
        """
        try:
            self._train()
        except StoreError as error:
            return error
        return None

    def _train(self) -> None:
        import ray

        share = self._team.memory_share(len(os.sched_getaffinity(0)))
        machine = replace(self._work.machine or Machine(), memory_share=share)
        while (first := self._take(wait=True)) is not None:
            for result in personalize(
                self._store,
                self._base,
                self._work.plan,
                self._users(first),
                self._work.profiles,
                machine,
                _Meter(self._dispatcher).add,
            ):
                ray.get(self._dispatcher.settle.remote(self._number, result.user_id, pickle.dumps(result)))

    def _users(self, first: User) -> Iterator[User]:
        """Pulled as slots become free, until there is nobody for this worker for now."""
        user: User | None = first
        while user is not None:
            yield user
            user = self._take(wait=False)

    def _take(self, *, wait: bool) -> User | None:
        import ray

        user: User | None = ray.get(self._dispatcher.take.remote(self._number, wait=wait))
        return user


class _Meter:
    """Reports a worker's progress, but not each pass by itself."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._tokens = self._examples = 0
        self._told = 0.0

    def add(self, progress: Progress) -> None:
        self._tokens += progress.tokens
        self._examples += progress.examples
        if time.monotonic() - self._told >= _REPORT_S:
            self._dispatcher.advance.remote(self._tokens, self._examples)
            self._tokens, self._examples, self._told = 0, 0, time.monotonic()


@dataclass(slots=True)
class _Place:
    """A place for a worker: who works there now, and how many in a row died before they began."""

    number: int
    actor: Any
    failed_starts: int = 0


class _DispatcherDied(Exception):
    """The actor that keeps the books is gone."""


_GO_ON = "what was finished is kept, and the same command goes on from there"


class _Run:
    """The driver's side: starts workers, replaces dead ones, and hands on what the dispatcher has to say."""

    def __init__(
        self,
        work: Work,
        team: Team,
        users: Sequence[User],
        on_progress: Callable[[Progress], None],
        on_notice: Callable[[str], None],
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        self._work = work
        self._team = team
        self._count = len(users)
        self._on_progress = on_progress
        self._on_notice = on_notice
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(Dispatcher).options(num_cpus=0, scheduling_strategy=here)
        self._dispatcher = keeper.remote(users, team.workers)
        self._started = 0
        self._deaths_in_a_row = 0
        self._begun: frozenset[int] = frozenset()
        self._places: dict[Any, _Place] = {}
        """By the reference to what the worker's `run` returns."""

    def results(self) -> Generator[Personalized, None, None]:
        """Everyone's result, as they come."""
        try:
            for _ in range(self._team.workers):
                self._start(0)
            news = self._dispatcher.news.remote()
            while self._count:
                ready, _ = self._ray.wait([news, *self._places], timeout=_PATIENCE_S)
                if not ready and not self._begun:
                    self._on_notice("no worker has begun: the cluster may have no room for one now; waiting")
                for reference in ready:
                    if reference != news:
                        yield from self._lost(reference)
                        continue
                    yield from self._handed_on(self._from_dispatcher(news))
                    news = self._dispatcher.news.remote()
        finally:
            for actor in (self._dispatcher, *(place.actor for place in self._places.values())):
                self._ray.kill(actor)

    def _start(self, failed_starts: int, pause_s: float = 0) -> None:
        self._started += 1
        kind = self._ray.remote(Worker).options(num_cpus=self._team.cores, num_gpus=self._team.gpus)
        actor = kind.remote(self._started, self._work, self._team, self._dispatcher)
        loaded = actor.load.remote(os.getcwd(), __version__, pause_s)
        self._places[actor.run.remote(loaded)] = _Place(self._started, actor, failed_starts)

    def _handed_on(self, news: News) -> Iterator[Personalized]:
        self._begun = news.begun
        if news.tokens:
            self._on_progress(Progress(news.tokens, news.examples))
        for result in news.results:
            self._count -= 1
            self._deaths_in_a_row = 0
            yield pickle.loads(result)

    def _lost(self, reference: Any) -> Iterator[Personalized]:
        """Takes note of a worker that has ended, and starts another in its place; yields whom it gives up."""
        place = self._places.pop(reference)
        reason = self._reason(reference)
        if reason is None:  # nobody is left
            return
        self._ray.kill(place.actor)  # it may only have been out of reach
        store_failed = isinstance(reason, StoreError)  # which says nothing about the users
        lost: Lost = self._from_dispatcher(self._dispatcher.lose.remote(place.number, suspicious=not store_failed))
        again = lost.again
        self._deaths_in_a_row = 0 if lost.given_up else self._deaths_in_a_row + 1
        for user_id in lost.given_up:
            self._count -= 1
            said = f"user {user_id}: workers died each time they trained it ({reason})"
            fix = "fewer --slots or --tokens-per-pass need less memory; the same command tries again"
            yield Personalized(user_id, "failed", None, f"{said}; {fix}")
        said = f"worker {place.number} died ({reason})"
        if again:
            said += f"; given out again: {', '.join(again[:5])}{', …' if len(again) > 5 else ''}"
        self._on_notice(said)
        failed = 0 if again or place.number in self._begun else place.failed_starts + 1
        too_many = self._deaths_in_a_row >= _DEATHS_IN_A_ROW * self._team.workers
        if failed < _FAILED_STARTS and not too_many:
            self._start(failed, _STORE_PAUSE_S if store_failed else 0)
        elif too_many or not self._places:
            if isinstance(reason, StoreError):
                raise reason
            what = f"workers keep dying ({reason})"
            raise OppuError(what, where="--ray", fix=f"see Ray's logs on the workers' machines; {_GO_ON}")

    def _reason(self, reference: Any) -> str | StoreError | None:
        """Why a worker's `run` has ended, in short; an error that would end every worker is raised here.

        The store may be there again for the next worker, unless nobody has reached it yet.
        """
        from ray.exceptions import RayError, RayTaskError

        try:
            failed: StoreError | None = self._ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, StoreError) and self._begun:
                return error.cause
            if isinstance(error.cause, OppuError):
                raise error.cause from None
            return (str(error.cause).splitlines() or [""])[0] or type(error.cause).__name__
        except RayError as error:
            return _in_short(error)
        return failed

    def _from_dispatcher(self, reference: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return self._ray.get(reference)
        except RayError as error:
            self._on_notice(f"the dispatcher died ({_in_short(error)}); beginning again with who is left")
            raise _DispatcherDied from None


def _in_short(error: Exception) -> str:
    """Of Ray's page about a death, what it says of the cause."""
    text = str(error)
    for sign, cause in (
        ("No module named 'oppu'", "oppu is not installed on its machine"),
        ("running low on memory", "out of memory"),
        ("node has died", "its machine is gone"),
        ("End of file", "killed from outside, perhaps for want of memory"),
    ):
        if sign in text:
            return cause
    named = re.search(r"^\s*(\w+(?:Error|Exception): .+)$", text, re.MULTILINE)
    return named[1] if named else type(error).__name__


def _check_shared(store: StorePlace) -> None:
    """ConfigError where workers of several machines would each write into a folder of their own."""
    import ray

    machines = addresses(ray.nodes(), ray.get_runtime_context().get_node_id())
    if store.of_one_machine is not None and len(machines) > 1:
        what = f"{len(machines)} machines cannot share this store: SQLite needs one machine, and so do file: URLs"
        fix = "give a PostgreSQL database with --store and object storage with --files"
        raise ConfigError(what, where=store.of_one_machine, fix=fix)
