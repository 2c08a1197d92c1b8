"""Parts that the OPPU release and LaMP's own files share: a user's `profile` items and a file of `golds`."""

from collections.abc import Mapping
from pathlib import Path

from oppu.data.files import list_of_objects, read_json
from oppu.data.problems import Place, Problems
from oppu.data.raw import RawItem, RawQuery, fields_of, required_text, text_at


def profile_items(raw: Mapping[str, object], place: Place, problems: Problems) -> tuple[RawItem, ...]:
    """The items under `profile`: `[{id, date?, field: text…}]`."""
    if "profile" not in raw:
        problems.add(place, "missing field 'profile', the list of history items")
        return ()
    entries = list_of_objects(raw["profile"], place, "'profile'", problems)
    return tuple(_item(entry, position, place, problems) for position, entry in enumerate(entries))


def _item(raw: Mapping[str, object], position: int, user: Place, problems: Problems) -> RawItem:
    identifier = required_text(raw, "id", user.of_item("item at position", str(position)), problems)
    place = user.of_item("item", identifier or f"at position {position}")
    fields = fields_of(raw, ("id", "date"), place, problems)
    return RawItem(identifier or f"at position {position}", fields, text_at(raw, "date", place, problems), place)


def query(raw: Mapping[str, object], gold: str | None, place: Place, problems: Problems) -> RawQuery:
    """A `{id, input}` with its label; the caller has named it in `place`."""
    required_text(raw, "input", place, problems)
    known = {"input": raw["input"]} if "input" in raw else {}
    identifier = text_at(raw, "id", place, Problems()) or ""
    return RawQuery(identifier, fields_of(known, (), place, Problems()), gold, None, place)


def read_golds(path: Path, problems: Problems) -> dict[str, str]:
    """Labels by query id from `{"task", "golds": [{"id", "output"}]}`."""
    place = Place(path.name)
    value = read_json(path, problems)
    if value is None:
        return {}
    if not isinstance(value, dict) or "golds" not in value:
        problems.add(place, 'wrong shape; expected {"task": …, "golds": [{"id", "output"}, …]}')
        return {}
    golds: dict[str, str] = {}
    for entry in list_of_objects(value["golds"], place, "'golds'", problems):
        identifier = required_text(entry, "id", place, problems)
        at = place.of_item("query", identifier or "?")
        output = required_text(entry, "output", at, problems)
        if identifier in golds:
            problems.add(at, "duplicate label")
        if identifier is not None:
            golds[identifier] = output or ""
    return golds
