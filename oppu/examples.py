"""A user's history and questions as Examples; for an item of time t only items of time < t exist.

`Setting` says what stands in a prompt besides the question: nothing (k=0), retrieved items, a profile.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from oppu.errors import ConfigError
from oppu.profiles import shown_profile
from oppu.prompts import build_prompt, context_lines, options, training_pair, with_context
from oppu.records import Example, HistoryItem, Query, User, UserProfile
from oppu.retrieval import RETRIEVERS, Retriever, make_retriever
from oppu.tasks import Task


@dataclass(frozen=True, slots=True)
class Setting:
    """What the model is shown besides the question (section 2.2): phi_t, phi_r or phi_p."""

    k: int = 0
    """Number of retrieved items."""
    retriever: str = "bm25"
    profile: bool = False
    """Whether the user's textual profile is shown."""
    seed: int = 0
    """For the random retriever."""

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ConfigError(f"k is {self.k}, but nobody can retrieve fewer items than none", fix="use k >= 0")
        if self.retriever not in RETRIEVERS:
            raise ConfigError(f"unknown retriever '{self.retriever}'", fix=f"use one of: {', '.join(RETRIEVERS)}")

    @property
    def name(self) -> str:
        """A short name for files and records: `plain`, `bm25-k1`, `bm25-k1-profile`, `profile`."""
        parts = [f"{self.retriever}-k{self.k}"] if self.k else []
        return "-".join([*parts, *(["profile"] if self.profile else [])]) or "plain"

    @classmethod
    def named(cls, name: str) -> Self:
        """The setting (of seed 0) that has this `name`; ConfigError where there is none."""
        match = re.fullmatch(r"plain|(?:(?P<retriever>.+)-k(?P<k>\d+))?-?(?P<profile>profile)?", name)
        parts = match.groupdict() if match else {}
        setting = cls(int(parts.get("k") or 0), parts.get("retriever") or "bm25", bool(parts.get("profile")))
        if setting.name != name:
            raise ConfigError(f"'{name}' is no setting's name", fix="use for example plain, profile or bm25-k1")
        return setting


PLAIN = Setting()


class HistoryIndex:
    """A user's history with a retriever over it."""

    def __init__(self, task: Task, history: Sequence[HistoryItem], setting: Setting) -> None:
        self.task = task
        self.history = tuple(history)
        self.setting = setting
        self._retriever: Retriever | None = None
        if setting.k:
            texts = [_document(task, item) for item in history]
            self._retriever = make_retriever(setting.retriever, texts, [i.time for i in history], setting.seed)

    def retrieve(self, text: str, before: float | None) -> tuple[HistoryItem, ...]:
        """D_u = R(q_u, H_u, k): at most k items earlier than `before` (None: all), best first."""
        if self._retriever is None:
            return ()
        return tuple(self.history[i] for i in self._retriever.top(text, self.setting.k, before))


def training_examples(
    task: Task,
    user: User,
    setting: Setting = PLAIN,
    profile: UserProfile | None = None,
    newest: int | None = None,
) -> list[Example]:
    """Each history item as a training pair under `setting`, oldest first; `newest` keeps the last so many.

    Of a `profile` along the history, each prompt shows what was made before its item.
    """
    index = HistoryIndex(task, user.history, setting)
    items = user.history if newest is None else user.history[max(0, len(user.history) - newest) :]
    examples = []
    for item in items:
        prompt, answer = training_pair(task, item)
        # the search text is the item's input alone: its answer must not choose what stands in its prompt
        retrieved = index.retrieve(task.search_text(_without_answer(task, item)), item.time)
        context = context_lines(task, retrieved, shown_profile(profile, item.time) if setting.profile else None)
        examples.append(
            Example(user.id, item.id, with_context(prompt, context) if context else prompt, answer, _ids(retrieved))
        )
    return examples


def query_examples(
    task: Task, user: User, setting: Setting = PLAIN, profile: UserProfile | None = None
) -> list[Example]:
    """The user's questions as prompts, the gold answer as the example's answer."""
    index = HistoryIndex(task, user.history, setting)
    return [query_example(index, user.id, query, profile) for query in user.queries]


def query_example(index: HistoryIndex, user_id: str, query: Query, profile: UserProfile | None = None) -> Example:
    """One question as a prompt, with what `index` retrieves for it and the profile made before it."""
    task = index.task
    retrieved = index.retrieve(task.search_text(query.fields), query.time)
    shown = shown_profile(profile, query.time) if index.setting.profile else None
    prompt = build_prompt(task, query.fields, retrieved, shown)
    return Example(user_id, query.id, prompt, query.gold, _ids(retrieved), options(task, query.fields))


def _document(task: Task, item: HistoryItem) -> str:
    return task.search_text(item.fields)


def _without_answer(task: Task, item: HistoryItem) -> dict[str, str]:
    """The item's fields that its own prompt may show; all of them where there is no prompt (tweets)."""
    form = task.form_for(item.fields)
    return dict(item.fields) if form is None or not form.prompt else form.asking(item.fields)


def _ids(items: Sequence[HistoryItem]) -> tuple[str, ...]:
    return tuple(item.id for item in items)
