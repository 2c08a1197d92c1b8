"""From users' histories to a stored module for each of them, and from stored modules to answers.

A finished user is committed to the store by itself; a user whose module is already there, made from the same history with
the same settings, is not trained again. So an interrupted run goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from oppu import __version__
from oppu.examples import PLAIN, Setting, query_examples, training_examples
from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.tokens import encode
from oppu.predict import Question, answer
from oppu.records import Example, User
from oppu.store import ModuleRecord, Store
from oppu.tasks import Task
from oppu.train import Job, Machine, Progress, TrainConfig, train


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides a user's module, besides the base and the user."""

    task: Task
    train: TrainConfig
    setting: Setting = PLAIN
    newest: int | None = None
    """Train on the newest so many items; None: on all."""


@dataclass(frozen=True, slots=True)
class Personalized:
    """What became of a user."""

    user_id: str
    status: Literal["trained", "kept", "no history"]
    """kept: the store had the module already; no history: the user gets the base model."""
    record: ModuleRecord | None


def personalize(
    store: Store,
    base: Base,
    plan: Plan,
    users: Iterable[User],
    profiles: Mapping[str, str] | None = None,
    machine: Machine | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Personalized]:
    """Train a module for each user, many at once, and commit each to the store as it is finished.

    Users are read, and yielded, as slots become free; their histories are stored as well.
    """
    settled: list[Personalized] = []
    fingerprints: dict[str, str] = {}

    def jobs() -> Iterator[Job]:
        for user in users:
            store.put_history(user.id, plan.task.name, user.history)
            examples = training_examples(plan.task, user, plan.setting, (profiles or {}).get(user.id), plan.newest)
            fingerprint = training_fingerprint(base, plan, examples)
            record = find_module(store, base, plan, user.id)
            if not examples:
                settled.append(Personalized(user.id, "no history", None))
            elif record is not None and record.training.get("fingerprint") == fingerprint:
                settled.append(Personalized(user.id, "kept", record))
            else:
                fingerprints[user.id] = fingerprint
                tokens = encode(base.tokenizer, examples, min(plan.train.max_tokens, base.max_tokens))
                yield Job(user.id, tuple(tokens))

    for trained in train(base, jobs(), plan.train, machine, on_progress):
        record = store.put_module(
            trained.module,
            user_id=trained.user_id,
            task=plan.task.name,
            setting=plan.setting.name,
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            training={
                "fingerprint": fingerprints.pop(trained.user_id),
                "config": asdict(plan.train),
                "setting": asdict(plan.setting),
                "newest": plan.newest,
                "losses": list(trained.losses),
                "oppu": __version__,
            },
        )
        yield Personalized(trained.user_id, "trained", record)
        yield from _taken(settled)
    yield from _taken(settled)


def find_module(store: Store, base: Base, plan: Plan, user_id: str) -> ModuleRecord | None:
    """The user's newest module for the plan's task and setting on this very base."""
    return store.find_module(user_id, plan.task.name, plan.setting.name, base.fingerprint)


def training_fingerprint(base: Base, plan: Plan, examples: Sequence[Example]) -> str:
    """Over everything that decides the module: version, base, settings, and the examples word by word."""
    digest = hashlib.sha256(json.dumps([__version__, base.fingerprint, asdict(plan.train)]).encode())
    for example in examples:
        digest.update(f"\0{example.prompt}\0{example.answer}".encode())
    return digest.hexdigest()


def answer_users(
    base: Base,
    plan: Plan,
    users: Sequence[User],
    store: Store | None,
    profiles: Mapping[str, str] | None = None,
    machine: Machine | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> dict[str, list[str]]:
    """Answers to every user's questions, by user, in order; with the users' modules, or `store=None`: the base alone.

    A user without a module is answered by the base.
    """
    machine = machine or Machine()
    answers: dict[str, list[str]] = {}
    bank = Bank(base.model, plan.train.lora, machine.slots if store is not None else 1)
    with bank.attach():
        for first in range(0, len(users), machine.slots):
            group = users[first : first + machine.slots]
            questions: list[Question] = []
            for place, user in enumerate(group):
                record = find_module(store, base, plan, user.id) if store is not None else None
                if record is not None and store is not None:
                    bank.load(place, store.load_module(record))
                slot = place if record is not None else -1
                examples = query_examples(plan.task, user, plan.setting, (profiles or {}).get(user.id))
                questions += [Question(slot, example) for example in examples]
            limit = min(plan.train.max_tokens, base.max_tokens)
            outputs = iter(
                answer(
                    base,
                    plan.task,
                    questions,
                    max_tokens=limit,
                    tokens_per_pass=machine.tokens_per_pass,
                    on_done=on_done,
                )
            )
            for user in group:
                answers[user.id] = [next(outputs) for _ in user.queries]
    return answers


def _taken(settled: list[Personalized]) -> list[Personalized]:
    """What is in the list, which is emptied."""
    taken = settled[:]
    settled.clear()
    return taken
