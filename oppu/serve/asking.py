"""From a request to the engine's work: whose module, which prompt, which limits.

The store is asked anew for every request, so a deleted user, a new module or a changed history counts at once. Only the
retrieval indexes are kept, each for as long as the history is the one that it was made of.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError

from oppu.answering import setting_of, task_of
from oppu.describe.stored import ProfilesOf
from oppu.errors import UnknownUserError
from oppu.examples import PLAIN, HistoryIndex, Setting, query_example
from oppu.model.base import Base
from oppu.model.tokens import encode
from oppu.predict import prompt_room
from oppu.records import HistoryItem, Query, User, UserProfile
from oppu.serve.engine import Choice, Generation
from oppu.serve.errors import ApiError, model_not_found
from oppu.serve.sampling import Sampling
from oppu.serve.schema import ChatRequest, CompletionRequest, Message
from oppu.store import ModuleRecord, Store
from oppu.tasks import Task

_USER = "user:"
_INDEXES = 256
_TASK_MAX_TOKENS = 2048
_COMPLETION_TOKENS = 16  # OpenAI's default
_CHAT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, ready for the engine."""

    work: Generation | Choice
    prompt_tokens: int
    retrieved: tuple[str, ...] = field(default=())
    """Ids of the history items in the prompt."""


class Asker:
    """Knows the base, the store and the tasks. Threads may share it."""

    def __init__(
        self, store: Store, base: Base, tasks: Iterable[Task] = (), profiles: ProfilesOf | None = None
    ) -> None:
        """`profiles`: for modules that were trained with textual profiles; looked up anew for every request."""
        self.base = base
        self.tasks = {task.name: task for task in tasks}
        self._store = store
        self._profiles = profiles
        self._indexes: OrderedDict[tuple[str, str, Setting], HistoryIndex] = OrderedDict()
        self._lock = threading.Lock()

    def models(self) -> list[str]:
        """All names that a request may use."""
        return [self.base.name, *(_USER + user for user in self._store.users())]

    def check_model(self, model: str) -> None:
        """ApiError 404 unless a request may use the name."""
        self._module(self._user_of(model), None)

    def completion(self, request: CompletionRequest) -> Asked:
        """The work of `POST /v1/completions`."""
        if request.task is not None:
            return self._task_question(request, request.text)
        if not request.text:
            raise ApiError(400, "the prompt is empty", param="prompt")
        tokens = self.base.tokenizer(request.text).input_ids
        return self._free_text(request, tokens, _COMPLETION_TOKENS)

    def chat(self, request: ChatRequest) -> Asked:
        """The work of `POST /v1/chat/completions`."""
        if request.task is not None:
            said = [message.text for message in request.messages if message.role == "user"]
            if not said:
                raise ApiError(400, "a task needs a message of the user", param="messages")
            return self._task_question(request, said[-1])
        text, special = _conversation(self.base, request.messages)
        tokens = self.base.tokenizer(text, add_special_tokens=special).input_ids
        return self._free_text(request, tokens, _CHAT_TOKENS)

    def forget_deleted(self) -> None:
        """Drop what is kept of users who have been deleted since they asked; StoreError where that cannot be told."""
        with self._lock:
            kept = {(user, task) for user, task, _ in self._indexes if user}
        for user, task in kept:
            if not self._store.knows(user, task):
                self._forget(user, task)

    def deleted(self, records: Iterable[ModuleRecord]) -> list[ModuleRecord]:
        """Those of these modules that the store has no longer; StoreError where that cannot be told."""
        return [record for record in records if not self._has(record)]

    def _has(self, record: ModuleRecord) -> bool:
        kept = self._store.modules(record.user_id, record.task)
        return any(each.path == record.path and each.sha256 == record.sha256 for each in kept)

    def _free_text(self, request: CompletionRequest | ChatRequest, tokens: list[int], default: int) -> Asked:
        module = self._module(self._user_of(request.model), None)
        room = self.base.max_tokens - _virtual_tokens(module) - len(tokens)
        limit = request.limit if request.limit is not None else min(default, room)
        if limit > room or limit < 1:
            raise ApiError(
                400,
                f"the prompt has {len(tokens)} tokens, which with {limit or 1} to write is more than the model's "
                f"{self.base.max_tokens}",
                code="context_length_exceeded",
                fix="shorten the prompt or lower max_tokens",
            )
        return Asked(Generation(module, tuple(tokens), limit, _sampling(request), request.stops), len(tokens))

    def _task_question(self, request: CompletionRequest | ChatRequest, text: str) -> Asked:
        user = self._user_of(request.model)
        module = self._module(user, request.task)
        task = self._task(str(request.task), module)
        setting = _setting(self.base, module)
        history = self._store.history(user, task.name) if user is not None else ()
        index = self._index(user or "", task, history, setting)
        query = Query("question", text, task.fields_of(text))
        profile = self._profile(user, task, history) if setting.profile else None
        example = query_example(index, user or "", query, profile)
        max_tokens = min(_max_tokens(module), self.base.max_tokens)
        if task.kind != "text":
            room = prompt_room(self.base, task, example, max_tokens - _virtual_tokens(module))
            if room < 1:
                fix = "shorten the texts to choose from"
                raise ApiError(400, "an allowed answer is too long", code="context_length_exceeded", fix=fix)
            prompt = encode(self.base.tokenizer, [example], room, answers=False)[0]
            return Asked(Choice(module, task, example, max_tokens), len(prompt.tokens), example.retrieved)
        most = max_tokens - _virtual_tokens(module)
        wanted = request.limit or task.max_answer_tokens
        room = most - min(wanted, task.max_answer_tokens, most - 1)  # a large limit takes nothing from the prompt
        tokens = encode(self.base.tokenizer, [example], room, answers=False)[0].tokens
        limit = min(wanted, most - len(tokens))
        # as `predict.generate` does it: an answer is one line
        sampling = replace(_sampling(request), no_repeat=task.no_repeat_ngram)
        work = Generation(module, tokens, limit, sampling, ("\n", *request.stops), strip=True)
        return Asked(work, len(tokens), example.retrieved)

    def _profile(self, user: str | None, task: Task, history: tuple[HistoryItem, ...]) -> UserProfile | None:
        """What may be shown of the user."""
        if user is None or self._profiles is None:
            return None
        return (self._profiles(self._store, task, [User(user, history)]) or {}).get(user)

    def _user_of(self, model: str) -> str | None:
        """The user whom a model's name names; None for the base."""
        if model == self.base.name:
            return None
        if not model.startswith(_USER):
            raise model_not_found(model)
        return model.removeprefix(_USER)

    def _module(self, user: str | None, task: str | None) -> ModuleRecord | None:
        """The user's newest module on this base (for the task); None: the base answers. ApiError 404 for a stranger."""
        if user is None:
            return None
        records = self._store.modules(user, task, newest_only=True)
        ours = [record for record in records if record.base_fingerprint == self.base.fingerprint]
        if ours:
            return max(ours, key=lambda record: record.created)
        try:
            self._store.history(user, task or "")  # knows everyone who has anything in any task
        except UnknownUserError:
            self._forget(user)
            raise model_not_found(_USER + user) from None
        return None

    def _task(self, name: str, module: ModuleRecord | None) -> Task:
        """The task as the module was trained for it, else as the server knows it."""
        if module is not None and module.training.get("task") is not None:
            return task_of(module)
        if name not in self.tasks:
            raise ApiError(400, f"unknown task '{name}'", param="task", fix=f"use one of: {', '.join(self.tasks)}")
        return self.tasks[name]

    def _index(self, user: str, task: Task, history: tuple[HistoryItem, ...], setting: Setting) -> HistoryIndex:
        """The retrieval index over this history, made anew if the history or the task is another than last time."""
        key = user, task.name, setting
        with self._lock:
            kept = self._indexes.get(key)
            if kept is not None and kept.history == history and kept.task == task:
                self._indexes.move_to_end(key)
                return kept
        made = HistoryIndex(task, history, setting)
        with self._lock:
            self._indexes[key] = made
            if len(self._indexes) > _INDEXES:
                self._indexes.popitem(last=False)
        return made

    def _forget(self, user: str, task: str | None = None) -> None:
        """Drop what is kept of a user who was deleted (in the task)."""
        with self._lock:
            for key in [key for key in self._indexes if key[0] == user and task in (None, key[1])]:
                del self._indexes[key]


def _sampling(request: CompletionRequest | ChatRequest) -> Sampling:
    given: dict[str, Any] = {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _setting(base: Base, module: ModuleRecord | None) -> Setting:
    """What stood in the prompts that the module, or else the base, was trained on."""
    if module is not None:
        return setting_of(module)
    record = base.record.get("config", {})
    return Setting(**record["setting"]) if record.get("setting") else PLAIN


def _max_tokens(module: ModuleRecord | None) -> int:
    """The longest sequence in the module's training."""
    config = module.training.get("config", {}) if module is not None else {}
    return int(config.get("max_tokens", _TASK_MAX_TOKENS))


def _virtual_tokens(module: ModuleRecord | None) -> int:
    """Of a soft prompt that is known to be one; they stand before the text and take its room."""
    config = module.training.get("config", {}) if module is not None else {}
    return int(config.get("module", {}).get("virtual_tokens", 0))


def _conversation(base: Base, messages: list[Message]) -> tuple[str, bool]:
    """The messages as text, and whether the tokenizer shall add its special tokens."""
    turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
    if base.tokenizer.chat_template is None:
        return "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns) + "assistant:", True
    try:
        text = base.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", param="messages") from None
    return str(text), False
