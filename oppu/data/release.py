"""The OPPU release: test users, their labels, and the other users, in three JSON files of one folder.

`user_top_100_history.json`:       `[{user_id, profile: [{id, date?, …}], query: [{id, input}]}]`
`user_top_100_history_label.json`: `{task, golds: [{id, output}]}`, optional; without it queries may carry a `gold`
`user_others.json`:                as the first, optional; every query carries its `gold`
"""

from collections.abc import Mapping
from pathlib import Path

from oppu.data.benchmark import profile_items, query, read_golds
from oppu.data.checks import checked_users, list_shared_users
from oppu.data.files import list_of_objects, read_json
from oppu.data.problems import Place, Problems
from oppu.data.raw import RawUser, Unreadable, required_text
from oppu.records import Dataset
from oppu.tasks import Task

USERS = "user_top_100_history.json"
LABELS = "user_top_100_history_label.json"
OTHERS = "user_others.json"


def read_release(folder: Path, task: Task, problems: Problems) -> Dataset:
    """The folder's users; problems are listed, not raised."""
    labels, others = folder / LABELS, folder / OTHERS
    golds = read_golds(labels, problems) if labels.exists() else None
    personal = _users(folder / USERS, golds, problems)
    base = _users(others, None, problems) if others.exists() else ()
    list_shared_users(personal, base, problems)
    return Dataset(
        checked_users(personal, task, problems, need_history=True, need_labels=golds is not None, merge_repeats=True),
        checked_users(base, task, problems, need_labels=True, merge_repeats=True),
    )


def _users(path: Path, golds: Mapping[str, str] | None, problems: Problems) -> tuple[RawUser, ...]:
    value = read_json(path, problems)
    if value is None:
        return ()
    entries = list_of_objects(value, "the file", Place(path.name), problems)
    return tuple(_user(entry, number, golds, Place(path.name), problems) for number, entry in enumerate(entries, 1))


def _user(
    raw: Mapping[str, object], number: int, golds: Mapping[str, str] | None, file: Place, problems: Problems
) -> RawUser:
    by_number = f"no. {number}"
    identifier = required_text(raw, "user_id", file.of_user(by_number), problems)
    if isinstance(identifier, Unreadable):
        identifier = by_number
    place = file.of_user(identifier)
    if "query" not in raw:
        problems.add(place, "missing field 'query', the list of questions")
    entries = list_of_objects(raw.get("query", []), "'query'", place, problems)
    queries = tuple(query(entry, position, golds, place, problems) for position, entry in enumerate(entries, start=1))
    return RawUser(identifier, profile_items(raw, place, problems), queries, place)
