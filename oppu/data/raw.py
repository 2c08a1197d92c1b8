"""What every format is first read into: users, items and queries as the files have them, each with its place.

Values are text already; a value of another type is listed as a problem here and marked unreadable.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from oppu.data.problems import Place, Problems

Group = Literal["personal", "base"]


@dataclass(frozen=True, slots=True)
class Fields:
    """The text fields of an item or a query."""

    values: Mapping[str, str]
    unreadable: frozenset[str] = frozenset()
    """Fields that the file has, with something else than text in them: listed as problems already."""


@dataclass(frozen=True, slots=True)
class RawItem:
    """A history item before it is checked against the task."""

    id: str
    fields: Fields
    date: str | None
    place: Place


@dataclass(frozen=True, slots=True)
class RawQuery:
    """A query before it is checked against the task."""

    id: str
    fields: Fields
    """`input` as the data set words it, or the question's parts, or both."""
    gold: str | None
    date: str | None
    place: Place


@dataclass(frozen=True, slots=True)
class RawUser:
    """A user before the checks."""

    id: str
    items: tuple[RawItem, ...]
    queries: tuple[RawQuery, ...]
    place: Place


def as_text(value: object) -> str | None:
    """Text as it is, a whole number written out, None for everything else (text that UTF-8 cannot hold, too)."""
    if isinstance(value, str):
        return value if _is_utf8(value) else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def text_at(raw: Mapping[str, object], name: str, place: Place, problems: Problems) -> str | None:
    """The text under `name`, None without a problem when there is none, None with one when it is not text."""
    if name not in raw:
        return None
    text = as_text(raw[name])
    if text is None:
        problems.add(place, _not_text(name, raw[name]))
    return text


def required_text(raw: Mapping[str, object], name: str, place: Place, problems: Problems) -> str | None:
    """The text under `name`; a problem when it is missing, empty or no text."""
    text = text_at(raw, name, place, problems)
    if name not in raw:
        problems.add(place, f"missing field '{name}'")
    elif text is not None and not text.strip():
        problems.add(place, f"field '{name}' is empty")
        return None
    return text


def fields_of(raw: Mapping[str, object], without: Iterable[str], place: Place, problems: Problems) -> Fields:
    """All fields but `without`, as text."""
    left_out = frozenset(without)
    texts = {name: as_text(value) for name, value in raw.items() if name not in left_out}
    for name, text in texts.items():
        if text is None:
            problems.add(place, _not_text(name, raw[name]))
    values = {name: text or "" for name, text in texts.items()}
    return Fields(values, frozenset(name for name, text in texts.items() if text is None))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_text(name: str, value: object) -> str:
    if isinstance(value, str):
        return f"field '{name}' holds half of a surrogate pair, which is no text"
    kinds = {"bool": "true or false", "float": "a fractional number", "NoneType": "null", "list": "a list"}
    kind = kinds.get(type(value).__name__, "an object")
    return f"field '{name}' is {kind}, not text; write it as a string"
