"""Users' questions -> answers, each with the user's own module from the store, many users in one batch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from oppu.describe.stored import ProfilesOf
from oppu.errors import ConfigError, ModelError, StoreError, UnknownUserError
from oppu.examples import Setting, query_examples
from oppu.model.bank import Bank, portable
from oppu.model.base import Base
from oppu.model.devices import AUTO
from oppu.model.kinds import config_of, largest
from oppu.model.module import Module, is_peft
from oppu.personalize import Plan, base_of, find_module
from oppu.predict import Question, answer, score_answers, score_labels
from oppu.records import Example, Query, User, UserProfile
from oppu.store import ModuleRecord, Store
from oppu.tasks import Task, find_task
from oppu.train import Machine, TrainConfig

USERS_TOGETHER = 16
"""Users whose questions are answered together, unless Machine.slots says otherwise."""
T = TypeVar("T")


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
    plan, module = Plan(known, TrainConfig(), setting_of(record)), {user_id: record} if use_module else {}
    user = User(user_id, store.history(user_id, record.task), (Query("question", question, known.fields_of(question)),))
    if setting_of(record).profile and profile is None and profiles is not None:
        profile = (profiles(store, known, [user]) or {}).get(user_id)
    shown = {user_id: profile} if profile is not None else None
    return answer_users(base, plan, [user], store, shown, Machine(slots=1), records=module)[user_id][0]


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


def answer_users(
    base: Base,
    plan: Plan,
    users: Sequence[User],
    store: Store | None,
    profiles: Mapping[str, UserProfile] | None = None,
    machine: Machine | None = None,
    on_answer: Callable[[str, str, str], None] = lambda user_id, query_id, output: None,
    records: Mapping[str, ModuleRecord] | None = None,
) -> dict[str, list[str]]:
    """Answers to every user's questions, by user, in order; with the users' modules, or `store=None`: the base alone.

    A user without a module is answered by the base. `records`: the users' modules; None: the newest of the plan.
    `on_answer(user, query, output)`: called with ids and answers, as questions are answered.
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

    return _with_modules(base, plan, users, store, profiles, machine, answered, records)


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
    records: Mapping[str, ModuleRecord] | None = None,
) -> dict[str, list[T]]:
    """What `use(questions, virtual tokens)` says to every user's questions, with so many users' modules at a time."""
    found: dict[str, list[T]] = {}
    together = machine.slots or USERS_TOGETHER
    for first in range(0, len(users), together):
        group = users[first : first + together]
        modules = _modules_of(base, plan, group, store, records)
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


def _modules_of(
    base: Base, plan: Plan, users: Sequence[User], store: Store | None, records: Mapping[str, ModuleRecord] | None
) -> list[Module | None]:
    """Each user's module, where there is one."""
    if store is None:
        return [None] * len(users)
    found = [find_module(store, base, plan, user.id) if records is None else records.get(user.id) for user in users]
    return [store.load_module(record) if record is not None else None for record in found]
