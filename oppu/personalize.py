"""From users' histories to a stored module for each of them, and from stored modules to answers.

A finished user is committed to the store by itself; a user whose module is already there, made from the same history
with the same settings, is not trained again. Who is under way is kept there every minute. So an interrupted run goes on
where it stopped.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import torch

from oppu import __version__
from oppu.describe.stored import ProfilesOf
from oppu.errors import ConfigError, ModelError, StoreError, UnknownUserError
from oppu.examples import PLAIN, Setting, query_examples, training_examples
from oppu.model.bank import Bank, portable
from oppu.model.base import Base, family_of, load_base
from oppu.model.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint
from oppu.model.devices import AUTO
from oppu.model.engine import Progress
from oppu.model.kinds import config_of, largest
from oppu.model.module import Module, is_peft
from oppu.model.tokens import encode
from oppu.predict import Question, answer, score_answers, score_labels
from oppu.records import Example, Query, User, UserProfile
from oppu.store import ModuleRecord, NewCheckpoint, Store
from oppu.tasks import Task, find_task
from oppu.train import Job, Machine, TrainConfig, train

_LOG = logging.getLogger("oppu.personalize")

USERS_TOGETHER = 16
"""Users whose questions are answered together, unless Machine.slots says otherwise."""
KEPT_TOGETHER = 16
"""Checkpoints in one transaction of the store; more would only take more memory."""

T = TypeVar("T")


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

    Users are read, and yielded, as slots become free; their histories are stored as well. Everyone under way is kept in
    the store every `machine.checkpoint_s`, and gone on with by the next call that is to make the same module.
    """
    settled: list[Personalized] = []
    fingerprints: dict[str, str] = {}

    def jobs() -> Iterator[Job]:
        for user in users:
            store.put_history(user.id, plan.task.name, user.history)
            examples = training_examples(plan.task, user, plan.setting, (profiles or {}).get(user.id), plan.newest)
            fingerprint = training_fingerprint(base, plan, examples)
            if not examples:
                settled.append(Personalized(user.id, "no history", None))
            elif record := _made_before(store, base, plan, user.id, fingerprint):
                _forget(store, base, plan, user.id)
                settled.append(Personalized(user.id, "kept", record))
            else:
                try:
                    tokens = encode(base.tokenizer, examples, min(plan.train.max_tokens, base.max_tokens))
                except ModelError as error:  # an answer that is too long
                    settled.append(Personalized(user.id, "failed", None, error.line()))
                    continue
                fingerprints[user.id] = fingerprint
                yield Job(user.id, tuple(tokens), begun=_begun(store, base, plan, user.id, fingerprint))

    def keep(under_way: Iterator[tuple[str, Checkpoint]]) -> None:
        _keep(store, base, plan, fingerprints, under_way)

    for trained in train(base, jobs(), plan.train, machine, on_progress, keep):
        if not all(bool(tensor.isfinite().all()) for tensor in trained.module.tensors.values()):
            reason = f"user {trained.user_id}: the training diverged; lower the learning rate"
            _forget(store, base, plan, trained.user_id)
            yield Personalized(trained.user_id, "failed", None, reason)
            continue
        fingerprint = fingerprints.pop(trained.user_id)
        if record := _made_before(store, base, plan, trained.user_id, fingerprint):  # by another process, just now
            _forget(store, base, plan, trained.user_id)
            yield Personalized(trained.user_id, "kept", record)
            continue
        record = store.put_module(
            trained.module,
            user_id=trained.user_id,
            task=plan.task.name,
            setting=plan.setting.name,
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            training={
                "fingerprint": fingerprint,
                "config": asdict(plan.train),
                "setting": asdict(plan.setting),
                "task": plan.task.model_dump(mode="json"),
                "newest": plan.newest,
                "quantize": base.quantize,
                "losses": list(trained.losses),
                "held_out_losses": list(trained.held_out_losses),
                "oppu": __version__,
            },
        )
        yield Personalized(trained.user_id, "trained", record)
        yield from _taken(settled)
    yield from _taken(settled)


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


def stored_module(
    store: Store, user_id: str, task: str | None = None, setting: str | None = None, version: int | None = None
) -> ModuleRecord:
    """The user's newest module that fits what is given; UnknownUserError or StoreError where there is none."""
    found = [
        record
        for record in store.modules(user_id, task)
        if setting in (None, record.setting) and version in (None, record.version)
    ]
    if found:
        return max(found, key=lambda record: record.created)
    if not store.knows(user_id):
        raise UnknownUserError(f"unknown user '{user_id}'", where=store.name, fix="see `oppu modules list`")
    raise StoreError(f"user {user_id} has no such module", where=store.name, fix="see `oppu modules list --all`")


def ask(
    store: Store,
    user_id: str,
    question: str,
    *,
    task: Task | None = None,
    k: int | None = None,
    profile: UserProfile | None = None,
    profiles: ProfilesOf | None = None,
    use_module: bool = True,
    device: torch.device | str = AUTO,
    dtype: torch.dtype | str = AUTO,
    quantize: str | None = None,
) -> str:
    """One answer for one user, with the base, the task and the prompts that the user's module was trained with.

    `k`: the module trained with so many retrieved items; None: the newest module. `profile`, or
    else `profiles`: for a module that was trained with profiles. `device`, `dtype`, `quantize`: see `load_base`; None
    quantizes the base as it was for the module. ModelError where the base is no longer the one that the module was
    trained on.
    """
    records = [
        record
        for record in store.modules(user_id, None if task is None else task.name)
        if k in (None, setting_of(record).k)
    ]
    record = max(records, key=lambda r: r.created) if records else stored_module(store, user_id, "", None)
    known = task if task is not None else task_of(record)
    if setting_of(record).profile and profile is None and profiles is None:
        raise ConfigError(
            "the module was trained with a profile in every prompt",
            where=f"user {user_id}",
            fix="give it, or `--profiles store` for the one that `oppu profile` made",
        )
    quantized = quantize if quantize is not None else record.training.get("quantize")
    base = base_of(store, record.base_name, device=device, dtype=dtype, quantize=quantized)
    if use_module:
        _check_base(base, record)
    plan = Plan(known, TrainConfig(), setting_of(record))
    user = User(user_id, store.history(user_id, record.task), (Query("question", question, known.fields_of(question)),))
    if setting_of(record).profile and profile is None and profiles is not None:
        profile = (profiles(store, known, [user]) or {}).get(user_id)
    shown = {user_id: profile} if profile is not None else None
    return answer_users(base, plan, [user], store if use_module else None, shown, Machine(slots=1))[user_id][0]


def export_module(store: Store, record: ModuleRecord, folder: Path) -> Path:
    """Writes a folder that `PeftModel.from_pretrained` loads; for a kind that PEFT lacks, the base is needed."""
    module = store.load_module(record)
    if is_peft(module):
        return store.export_module(record, folder)
    base = base_of(store, record.base_name)
    _check_base(base, record)
    return store.export_module(record, folder, portable(base.model, module))


def task_of(record: ModuleRecord) -> Task:
    """The task that a module was trained for, as it was then."""
    kept = record.training.get("task")
    return Task.model_validate(kept) if kept is not None else find_task(record.task)


def setting_of(record: ModuleRecord) -> Setting:
    """The prompts that a module was trained with; of a module from elsewhere, the setting's name says them."""
    kept = record.training.get("setting")
    return Setting(**kept) if kept is not None else Setting.named(record.setting)


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
    profiles: Mapping[str, UserProfile] | None = None,
    machine: Machine | None = None,
    on_answer: Callable[[str, str, str], None] = lambda user_id, query_id, output: None,
) -> dict[str, list[str]]:
    """Answers to every user's questions, by user, in order; with the users' modules, or `store=None`: the base alone.

    A user without a module is answered by the base. `on_answer(user, query, output)`: called with ids and answers, as
    questions are answered.
    """
    machine = machine or Machine()

    def answered(questions: list[Question], virtual_tokens: int) -> list[str]:
        return answer(
            base,
            plan.task,
            questions,
            max_tokens=min(plan.train.max_tokens, base.max_tokens),
            tokens_per_pass=machine.tokens_per_pass,
            virtual_tokens=virtual_tokens,
            on_answer=lambda place, text: told(questions[place].example, text),
        )

    def told(example: Example, output: str) -> None:
        on_answer(example.user_id, example.item_id, output)

    return _with_modules(base, plan, users, store, profiles, machine, answered)


def score_users(
    base: Base,
    plan: Plan,
    users: Sequence[User],
    store: Store | None,
    profiles: Mapping[str, UserProfile] | None = None,
    machine: Machine | None = None,
) -> dict[str, list[float]]:
    """log p of each question's own answer, by user, in order; asked as by `answer_users`.

    Of a label or rating: among the allowed ones. Of a text: the mean over its tokens, its end among them.
    """
    machine = machine or Machine()
    limit = min(plan.train.max_tokens, base.max_tokens)

    def scored(questions: list[Question], virtual_tokens: int) -> list[float]:
        if plan.task.kind == "text":
            return score_answers(base, questions, limit, machine.tokens_per_pass, virtual_tokens)
        lines = score_labels(base, plan.task, questions, limit, machine.tokens_per_pass, virtual_tokens)
        places = [plan.task.labels.index(str(question.example.answer)) for question in questions]
        return [float(line[place]) for line, place in zip(lines.log_softmax(-1), places, strict=True)]

    return _with_modules(base, plan, users, store, profiles, machine, scored)


def _with_modules(
    base: Base,
    plan: Plan,
    users: Sequence[User],
    store: Store | None,
    profiles: Mapping[str, UserProfile] | None,
    machine: Machine,
    use: Callable[[list[Question], int], list[T]],
) -> dict[str, list[T]]:
    """What `use(questions, virtual tokens)` says to every user's questions, with so many users' modules at a time."""
    found: dict[str, list[T]] = {}
    together = machine.slots or USERS_TOGETHER
    for first in range(0, len(users), together):
        group = users[first : first + together]
        modules = _modules_of(base, plan, group, store)
        questions = [
            Question(place if modules[place] is not None else -1, example)
            for place, user in enumerate(group)
            for example in query_examples(plan.task, user, plan.setting, (profiles or {}).get(user.id))
        ]
        shape = largest([config_of(module) for module in modules if module is not None] or [plan.train.module])
        bank = Bank(base.model, shape, len(group))
        for place, module in enumerate(modules):
            if module is not None:
                bank.load(place, module)
        with bank.attach():
            said = iter(use(questions, shape.virtual_tokens))
        for user in group:
            found[user.id] = [next(said) for _ in user.queries]
    return found


def _check_base(base: Base, record: ModuleRecord) -> None:
    """ModelError where the base is no longer the one that the module was trained on."""
    if base.fingerprint != record.base_fingerprint:
        raise ModelError(
            f"the module of user {record.user_id} was trained on another base ({record.base_fingerprint[:12]}) than "
            f"the one that is called so now ({base.fingerprint[:12]})",
            where=base.name,
            fix="personalize again on this base",
        )


def _modules_of(base: Base, plan: Plan, users: Sequence[User], store: Store | None) -> list[Module | None]:
    """Each user's module, where there is one."""
    records = [find_module(store, base, plan, user.id) if store is not None else None for user in users]
    return [store.load_module(record) if store is not None and record is not None else None for record in records]


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


def _taken(settled: list[Personalized]) -> list[Personalized]:
    """What is in the list, which is emptied."""
    taken = settled[:]
    settled.clear()
    return taken
