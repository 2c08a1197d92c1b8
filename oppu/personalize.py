"""From users' histories to a stored module for each of them.

A finished user is committed to the store by itself; a user whose module is already there, made from the same history
with the same settings, is not trained again. Who is under way is kept there every minute. So an interrupted run goes on
where it stopped.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import torch

from oppu import __version__
from oppu.errors import DataError, ModelError, StoreError, UnknownUserError
from oppu.examples import PLAIN, Setting, training_examples
from oppu.model.base import Base, family_of, load_base
from oppu.model.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint
from oppu.model.devices import AUTO
from oppu.model.engine import Progress
from oppu.model.tokens import encode
from oppu.records import Example, User, UserProfile
from oppu.store import ModuleRecord, NewCheckpoint, NewModule, Store
from oppu.tasks import Task
from oppu.train import Job, Machine, TrainConfig, Trained, train

_LOG = logging.getLogger("oppu.personalize")

KEPT_TOGETHER = 16
"""Checkpoints in one transaction of the store; more would only take more memory."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides a user's module, besides the base and the user."""

    task: Task
    train: TrainConfig
    setting: Setting = PLAIN
    newest: int | None = None
    """Train on the newest so many items; None: on all."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Of the modules of users who shall have another rank than the settings say."""

    def __post_init__(self) -> None:
        """ConfigError for ranks of modules that have none."""
        self.together()

    def alone(self, user_id: str) -> "Plan":
        """What decides this user's module, as if there were nobody else."""
        rank = self.ranks.get(user_id)
        train = self.train if rank is None else replace(self.train, module=self.train.module.of_rank(rank))
        return replace(self, train=train, ranks={})

    def together(self) -> TrainConfig:
        """The settings with room for everybody's module."""
        largest = max(self.ranks.values(), default=0)
        module = self.train.module
        return replace(self.train, module=module.of_rank(largest)) if largest > module.rank else self.train


@dataclass(frozen=True, slots=True)
class Personalized:
    """What became of a user."""

    user_id: str
    status: Literal["trained", "kept", "no history", "failed"]
    """kept: the store had the module already; no history: the user gets the base model; failed: see `reason`."""
    record: ModuleRecord | None
    reason: str = ""
    """Why there is no module, in one line; the other users go on."""


def personalize(
    store: Store,
    base: Base,
    plan: Plan,
    users: Iterable[User],
    profiles: Mapping[str, UserProfile] | None = None,
    machine: Machine | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Personalized]:
    """Train a module for each user, many at once, and commit each to the store as it is finished.

    Users are read as slots become free; their histories are stored as well. Who is not to be trained is yielded before
    the next user is read, so nobody is held in memory but those in the slots. Everyone under way is kept in the store
    every `machine.checkpoint_s`, and gone on with by the next call that is to make the same module. DataError where a
    user is given again while under way.
    """
    fingerprints: dict[str, str] = {}

    def jobs() -> Iterator[Job | Personalized]:
        for user in users:
            if user.id in fingerprints:
                raise DataError([f"user {user.id} is given twice"], fix="give each user once, with all items")
            store.put_history(user.id, plan.task.name, user.history)
            examples = training_examples(plan.task, user, plan.setting, (profiles or {}).get(user.id), plan.newest)
            own = plan.alone(user.id)
            fingerprint = training_fingerprint(base, own, examples)
            if not examples:
                yield Personalized(user.id, "no history", None)
            elif record := _made_before(store, base, plan, user.id, fingerprint):
                _forget(store, base, plan, user.id)
                yield Personalized(user.id, "kept", record)
            else:
                try:
                    tokens = encode(base.tokenizer, examples, plan.train.tokens_for(base))
                except ModelError as error:  # an answer that is too long
                    yield Personalized(user.id, "failed", None, error.line())
                    continue
                fingerprints[user.id] = fingerprint
                begun = _begun(store, base, plan, user.id, fingerprint)
                yield Job(user.id, tuple(tokens), own.train.module, begun)

    def keep(under_way: Iterator[tuple[str, Checkpoint]]) -> None:
        _keep(store, base, plan, fingerprints, under_way)

    for trained in train(base, jobs(), plan.together(), machine, on_progress, keep):
        if isinstance(trained, Personalized):
            yield trained
            continue
        fingerprint = fingerprints.pop(trained.user_id)
        if not all(bool(tensor.isfinite().all()) for tensor in trained.module.tensors.values()):
            reason = f"user {trained.user_id}: the training diverged; lower the learning rate"
            _forget(store, base, plan, trained.user_id)
            yield Personalized(trained.user_id, "failed", None, reason)
            continue
        training = _how_it_was_made(base, plan.alone(trained.user_id), fingerprint, trained)
        whose = trained.user_id, plan.task.name, plan.setting.name, base.name, base.fingerprint
        try:
            record, is_new = store.put_module_once(NewModule(trained.module, *whose, training))
        except UnknownUserError:
            reason = f"user {trained.user_id}: was deleted while the module was trained; nothing of it is kept"
            yield Personalized(trained.user_id, "failed", None, reason)
            continue
        yield Personalized(trained.user_id, "trained" if is_new else "kept", record)  # kept: put by another process


def base_of(
    store: Store,
    name: str,
    *,
    device: torch.device | str = AUTO,
    dtype: torch.dtype | str = AUTO,
    quantize: str | None = None,
) -> Base:
    """A base by its name in the store; else as `load_base` finds it: embedded, a folder, or on the hub."""
    record = store.base(name)
    found = str(record.path) if record is not None else name
    return load_base(found, device=device, dtype=dtype, quantize=quantize)


def family_in(store: Store, name: str) -> str:
    """The family of the base that `base_of` finds, without loading it."""
    record = store.base(name)
    return family_of(str(record.path)) if record is not None else family_of(name)


def longest_histories(users: Sequence[User], count: int | None) -> list[User]:
    """The `count` users with the longest histories (section 4), longest first; ties by user id. None: all."""
    ordered = sorted(users, key=lambda user: (-len(user.history), user.id))
    return ordered if count is None else ordered[:count]


def find_module(store: Store, base: Base, plan: Plan, user_id: str) -> ModuleRecord | None:
    """The user's newest module for the plan's task and setting on this very base."""
    return store.find_module(user_id, plan.task.name, plan.setting.name, base.fingerprint)


def training_fingerprint(base: Base, plan: Plan, examples: Sequence[Example]) -> str:
    """Over everything that decides the module: version, base, precision, settings, and the examples word by word."""
    parts = [__version__, base.fingerprint, asdict(plan.train)]  # the base's says how its weights were rounded
    if base.model.dtype != torch.float32:
        parts.append(str(base.model.dtype))
    digest = hashlib.sha256(json.dumps(parts).encode())
    for example in examples:
        digest.update(f"\0{example.prompt}\0{example.answer}".encode())
    return digest.hexdigest()


def _made_before(store: Store, base: Base, plan: Plan, user_id: str, fingerprint: str) -> ModuleRecord | None:
    """The user's module where it was made from the same; a damaged one does not count and is trained again."""
    record = find_module(store, base, plan, user_id)
    if record is None or record.training.get("fingerprint") != fingerprint:
        return None
    try:
        store.load_module(record)
    except StoreError:
        return None
    return record


def _how_it_was_made(base: Base, plan: Plan, fingerprint: str, trained: Trained) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "config": asdict(plan.train),
        "setting": asdict(plan.setting),
        "task": plan.task.model_dump(mode="json"),
        "newest": plan.newest,
        "quantize": base.quantize,
        "losses": list(trained.losses),
        "held_out_losses": list(trained.held_out_losses),
        "oppu": __version__,
    }


def _begun(store: Store, base: Base, plan: Plan, user_id: str, fingerprint: str) -> Checkpoint | None:
    """Where this very training was interrupted; a damaged checkpoint does not count."""
    try:
        data = store.checkpoint(user_id, plan.task.name, plan.setting.name, base.fingerprint, fingerprint)
        return None if data is None else read_checkpoint(data, fingerprint)
    except (StoreError, ModelError) as error:
        what = "user %s: the checkpoint cannot be used, so the training begins anew (%s)"
        _LOG.warning(what, user_id, error.line())
        return None


def _keep(
    store: Store,
    base: Base,
    plan: Plan,
    fingerprints: Mapping[str, str],
    under_way: Iterator[tuple[str, Checkpoint]],
) -> None:
    """Put everyone who is under way into the store; where that fails the training goes on."""
    while some := list(islice(under_way, KEPT_TOGETHER)):
        new = [
            NewCheckpoint(
                user_id,
                plan.task.name,
                plan.setting.name,
                base.fingerprint,
                fingerprints[user_id],
                checkpoint_bytes(checkpoint, fingerprints[user_id]),
            )
            for user_id, checkpoint in some
        ]
        try:
            store.put_checkpoints(new)
        except StoreError as error:
            _LOG.warning("what is under way cannot be kept; the training goes on (%s)", error.line())
            return


def _forget(store: Store, base: Base, plan: Plan, user_id: str) -> None:
    """Of a training that will not go on."""
    store.drop_checkpoint(user_id, plan.task.name, plan.setting.name, base.fingerprint)
