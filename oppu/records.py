"""The values that flow through oppu: what a user did, what is asked, and what the model is shown.

All frozen; nothing here knows of files, models or tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One thing a user did: h_u in section 2.1 of the paper."""

    id: str
    fields: Mapping[str, str]
    """What the item says, by field name (`text`, `title`, `category`, ...)."""
    time: float
    """Seconds since 1970 (UTC); in a history without dates, the item's position in it."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a user: q_u, with its answer r_u where it is known."""

    id: str
    input: str
    """The question as the data set words it."""
    fields: Mapping[str, str]
    """The question's parts, by field name, as the task's markers cut them out of `input`."""
    gold: str | None = None
    time: float | None = None
    """Seconds since 1970 (UTC); None: later than the whole history."""


@dataclass(frozen=True, slots=True)
class User:
    """A user with the history, oldest first, and the questions asked after it."""

    id: str
    history: tuple[HistoryItem, ...] = ()
    queries: tuple[Query, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Users to personalise for (`users`) and held-out users for task adaption (`base_users`)."""

    users: tuple[User, ...]
    base_users: tuple[User, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and, where it is known, the answer; the unit of training and of prediction."""

    user_id: str
    item_id: str
    """The history item or the query that it was made from."""
    prompt: str
    """Text that the loss does not count. Empty: next-token prediction over the whole answer."""
    answer: str | None
    retrieved: tuple[str, ...] = field(default=())
    """Ids of the history items shown in the prompt, best first."""
    options: tuple[tuple[str, str], ...] = field(default=())
    """Of a question whose labels stand for texts of its own: each label with its text."""

    @property
    def written(self) -> str | None:
        """The answer as the model reads it: a label's own text in place of the label, where there is one."""
        return None if self.answer is None else dict(self.options).get(self.answer, self.answer)


@dataclass(frozen=True, slots=True)
class Profile:
    """A textual profile s_u (section 2.2) that was made from a user's oldest items."""

    text: str
    time: float
    """Of the newest item that it was made from: only prompts of later times may show it."""
    items: int
    """How many items it was made from."""


UserProfile = str | tuple[Profile, ...]
"""What may be shown of a user: one text in every prompt, or the profiles along the history, oldest first."""
