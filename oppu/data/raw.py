"""What every format is first read into: users, items and queries as the files have them, each with its place.

A value that is not text is listed as a problem at once and stands as `Unreadable` from then on, so that no later check
speaks of it again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from oppu.data.problems import Place, Problems


class Unreadable(str):
    """Stands for a value that was listed as a problem; later checks pass over it."""

    __slots__ = ()


UNREADABLE = Unreadable()


@dataclass(frozen=True, slots=True)
class RawItem:
    """A history item before it is checked against the task."""

    id: str
    fields: Mapping[str, str]
    date: str | None
    place: Place


@dataclass(frozen=True, slots=True)
class RawQuery:
    """A query before it is checked against the task."""

    id: str
    fields: Mapping[str, str]
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


def text_at(raw: Mapping[str, object], name: str, place: Place, problems: Problems) -> str | None:
    """The text under `name`, a whole number written out; None when there is none; Unreadable, listed, when no text."""
    if name not in raw:
        return None
    value = raw[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and _is_utf8(value):
        return value
    problems.add(place, _not_text(name, value))
    return UNREADABLE


def required_text(raw: Mapping[str, object], name: str, place: Place, problems: Problems) -> str:
    """The text under `name`; Unreadable, listed, when it is missing, empty or no text."""
    text = text_at(raw, name, place, problems)
    if text is None:
        problems.add(place, f"missing field '{name}'")
    elif not text.strip() and not isinstance(text, Unreadable):
        problems.add(place, f"empty field '{name}'")
    return text if text and text.strip() else UNREADABLE


def fields_of(raw: Mapping[str, object], without: Iterable[str], place: Place, problems: Problems) -> dict[str, str]:
    """All fields but `without`, as text."""
    left_out = frozenset(without)
    texts = {name: text_at(raw, name, place, problems) for name in raw if name not in left_out}
    return {name: text for name, text in texts.items() if text is not None}


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_KINDS = {"bool": "true or false", "float": "a fractional number", "NoneType": "null", "list": "a list"}


def _not_text(name: str, value: object) -> str:
    if isinstance(value, str):
        return f"field '{name}' holds half of a surrogate pair, which is no text"
    return f"field '{name}' is {_KINDS.get(type(value).__name__, 'an object')}; write it as a string"
