"""Parts that the OPPU release and LaMP's own files share: `profile` items, queries, and a file of `golds`."""

from collections.abc import Mapping
from pathlib import Path

from oppu.data.files import list_of_objects, read_json
from oppu.data.problems import Place, Problems
from oppu.data.raw import (
    UNREADABLE,
    RawItem,
    RawQuery,
    Unreadable,
    fields_of,
    required_text,
    text_at,
)


def profile_items(user: Mapping[str, object], place: Place, problems: Problems) -> tuple[RawItem, ...]:
    """The history under `profile`: `[{id, date?, field: text, …}]`."""
    if "profile" not in user:
        problems.add(place, "missing field 'profile', the list of history items")
        return ()
    entries = list_of_objects(user["profile"], "'profile'", place, problems)
    return tuple(_item(entry, number, place, problems) for number, entry in enumerate(entries, start=1))


def _item(raw: Mapping[str, object], number: int, user: Place, problems: Problems) -> RawItem:
    identifier, place = named(raw, "id", "item", number, user, problems)
    date = text_at(raw, "date", place, problems)
    return RawItem(identifier, fields_of(raw, ("id", "date"), place, problems), date, place)


def query(
    raw: Mapping[str, object], number: int, golds: Mapping[str, str] | None, user: Place, problems: Problems
) -> RawQuery:
    """A `{id, input}` with its label from `golds`, or from its own `gold` where there is no such file."""
    identifier, place = named(raw, "id", "query", number, user, problems)
    gold = text_at(raw, "gold", place, problems) if golds is None else golds.get(identifier)
    return RawQuery(identifier, {"input": required_text(raw, "input", place, problems)}, gold, None, place)


def named(
    raw: Mapping[str, object], key: str, kind: str, number: int, parent: Place, problems: Problems
) -> tuple[str, Place]:
    """The id of an entry and its place; without a usable id, its number (from 1) stands in for it."""
    by_number = f"{kind} no. {number}"
    identifier = required_text(raw, key, parent.of_item(by_number), problems)
    if isinstance(identifier, Unreadable):
        return by_number, parent.of_item(by_number)
    return identifier, parent.of_item(f"{kind} '{identifier}'")


def read_golds(path: Path, problems: Problems) -> dict[str, str] | None:
    """Labels by query id from `{"task", "golds": [{"id", "output"}]}`; None when the file as a whole is of no use."""
    place = Place(path.name)
    value = read_json(path, problems)
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("golds"), list):
        problems.add(place, 'wrong shape; expected {"task": …, "golds": [{"id", "output"}, …]}')
        return None
    golds: dict[str, str] = {}
    for number, entry in enumerate(list_of_objects(value["golds"], "'golds'", place, problems), start=1):
        identifier, at = named(entry, "id", "query", number, place, problems)
        output = text_at(entry, "output", at, problems)
        if identifier in golds:
            problems.add(at, "duplicate label")
        if output is None:
            problems.add(at, "missing field 'output'")
        golds[identifier] = UNREADABLE if output is None else output
    return golds
