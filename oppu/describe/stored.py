"""Profiles from the store into prompts: which ones are meant, and whether they belong to the histories at hand."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from oppu.errors import ConfigError, DataError
from oppu.profiles import read_profiles
from oppu.profiles.timeline import in_order, items_digest
from oppu.records import HistoryItem, Profile, User, UserProfile
from oppu.store import ProfileRecord, Store
from oppu.tasks import Task

STORE = "store"
"""Says in place of a file that the store's profiles are meant; `store:MADE` where they were made in several ways."""

ProfilesOf = Callable[[Store, Task, Sequence[User]], Mapping[str, UserProfile] | None]
"""What may be shown of these users, by user; None: no prompt is to show a profile."""


def profiles_from(source: str | None) -> ProfilesOf:
    """What a person says, a file, `store` or `store:MADE`, as profiles; None: there are none.

    A file is read, and refused, at once. For the store see `stored_profiles`.
    """
    if source is None:
        return lambda *_: None
    if is_stored(source):
        made = source.removeprefix(STORE).removeprefix(":") or None
        return lambda store, task, users: stored_profiles(store, task, users, made)
    read = read_profiles(Path(source))
    return lambda *_: read


def is_stored(source: str) -> bool:
    """Whether the store is meant, and no file."""
    return source == STORE or source.startswith(f"{STORE}:")


def stored_profiles(
    store: Store, task: Task, users: Sequence[User], made: str | None = None
) -> dict[str, tuple[Profile, ...]]:
    """The users' profiles of the task, by user; a user who has none is left out. `made`: None where there is one way.

    A history may have grown since, but what a profile was made from must still be its beginning, word by word: a time
    says nothing in another history. DataError with every user for whom it is not so.
    """
    way = _way(store, task, made)
    records = {record.user_id: record for record in store.profiles(task.name, way, [user.id for user in users])}
    found: dict[str, tuple[Profile, ...]] = {}
    problems: list[str] = []
    for user in users:
        record = records.get(user.id)
        if record is None:
            continue
        if is_of(record, user.history):
            found[user.id] = record.profiles
        else:
            problems.append(f"the profile of user '{user.id}' was made from another history")
    if problems:
        raise DataError(problems, where=store.name, fix="run `oppu profile` with these data again")
    return found


def is_of(record: ProfileRecord, history: Sequence[HistoryItem]) -> bool:
    """Whether what the profile was made from is the beginning of the history."""
    return items_digest(in_order(history)[: len(record.item_ids)]) == record.items_digest


def _way(store: Store, task: Task, made: str | None) -> str:
    ways = store.ways_of_profiles(task.name)
    if not ways:
        what = f"there are no profiles of task {task.name}"
        raise ConfigError(what, where=store.name, fix="run `oppu profile` first")
    if made is None and len(ways) == 1:
        return ways[0]
    if made is None:
        what = f"the profiles of task {task.name} were made in {len(ways)} ways: {', '.join(ways)}"
        raise ConfigError(what, where=store.name, fix=f"say which, for example --profiles {STORE}:{ways[0]}")
    if made not in ways:
        what = f"no profiles of task {task.name} were made by '{made}'"
        raise ConfigError(what, where=store.name, fix=f"use one of: {', '.join(ways)}")
    return made
