"""Who is known, and what each user did: rows only, no files."""

import math
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Connection, delete, exists, insert, select, text

from oppu.errors import StoreError, UnknownUserError
from oppu.records import HistoryItem
from oppu.store.database import ConflictError, Database
from oppu.store.names import check_names, from_json, to_json
from oppu.store.schema import HISTORY_ITEMS, USERS

_ATTEMPTS = 5
_MOST = 10_000
"""Values in one statement; databases take 32,766 (SQLite) and 65,535 (PostgreSQL)."""
_MAKE_KNOWN = text("INSERT INTO users (user_id, task, deleting) VALUES (:user_id, :task, FALSE) ON CONFLICT DO NOTHING")


def put_histories(database: Database, task: str, histories: Mapping[str, Sequence[HistoryItem]]) -> None:
    """Replaces the histories of these users in the task: all of them or none."""
    for user_id in histories:
        check_names(user_id=user_id, task=task)
    rows = [
        _row(user_id, task, position, item)
        for user_id, items in histories.items()
        for position, item in enumerate(items)
    ]
    users = sorted(histories)
    for attempt in range(_ATTEMPTS):
        try:
            with database.writing() as connection:
                claim(connection, [(user_id, task) for user_id in users])
                for some in cut(users):
                    mine = HISTORY_ITEMS.c.user_id.in_(some), HISTORY_ITEMS.c.task == task
                    connection.execute(delete(HISTORY_ITEMS).where(*mine))
                if rows:
                    connection.execute(insert(HISTORY_ITEMS), rows)
            return
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise


def history(database: Database, user_id: str, task: str) -> tuple[HistoryItem, ...]:
    """The items as they were put; none for a user known from elsewhere; UnknownUserError for a stranger."""
    items = (
        select(HISTORY_ITEMS.c.item_id, HISTORY_ITEMS.c.fields, HISTORY_ITEMS.c.time)
        .join(USERS, (USERS.c.user_id == HISTORY_ITEMS.c.user_id) & (USERS.c.task == HISTORY_ITEMS.c.task))
        .where(HISTORY_ITEMS.c.user_id == user_id, HISTORY_ITEMS.c.task == task, USERS.c.deleting.is_(False))
        .order_by(HISTORY_ITEMS.c.position)
    )
    with database.reading() as connection:
        rows = connection.execute(items).all()
        known = connection.scalar(select(exists().where(USERS.c.user_id == user_id, USERS.c.deleting.is_(False))))
    if not known:
        raise unknown_user(user_id)
    return tuple(HistoryItem(id=row.item_id, fields=from_json(row.fields), time=row.time) for row in rows)


def users(
    database: Database, task: str | None = None, after: str | None = None, limit: int | None = None
) -> tuple[str, ...]:
    """Everyone known, in the task if one is given, in the order of their ids; or some of them."""
    query = select(USERS.c.user_id).where(USERS.c.deleting.is_(False)).distinct().order_by(USERS.c.user_id)
    if task is not None:
        query = query.where(USERS.c.task == task)
    if after is not None:
        query = query.where(USERS.c.user_id > after)
    with database.reading() as connection:
        return tuple(connection.scalars(query.limit(limit)))


def knows(database: Database, user_id: str, task: str | None = None) -> bool:
    """Whether the user has a history, a profile or a module, in the task if one is given."""
    query = select(USERS.c.task).where(USERS.c.user_id == user_id, USERS.c.deleting.is_(False)).limit(1)
    if task is not None:
        query = query.where(USERS.c.task == task)
    with database.reading() as connection:
        return connection.scalar(query) is not None


def claim(connection: Connection, whose: Sequence[tuple[str, str]]) -> None:
    """Makes (user, task)s known and locks their rows; StoreError while a deletion of one is under way.

    In the order of ids, so that two processes with several users in common wait for each other and never both.
    """
    for task in sorted({task for _, task in whose}):
        mine = sorted({user_id for user_id, of in whose if of == task})
        connection.execute(_MAKE_KNOWN, [{"user_id": user_id, "task": task} for user_id in mine])
        found: dict[str, bool] = {}
        for some in cut(mine):
            query = select(USERS.c.user_id, USERS.c.deleting).where(USERS.c.user_id.in_(some), USERS.c.task == task)
            found |= dict(connection.execute(query.order_by(USERS.c.user_id).with_for_update()).tuples().all())
        for user_id in mine:
            if user_id not in found:
                raise ConflictError(f"user '{user_id}' was deleted at this moment", fix="run it again")
            if found[user_id]:
                fix = "open the store again, which ends the deletion"
                raise StoreError(f"user '{user_id}' is being deleted", fix=fix)


def unknown_user(user_id: str, task: str | None = None) -> UnknownUserError:
    """The error for a user of whom the store knows nothing."""
    place = "" if task is None else f" in task '{task}'"
    return UnknownUserError(f"user '{user_id}' is unknown{place}", fix="put a history or a module first")


def _row(user_id: str, task: str, position: int, item: HistoryItem) -> dict[str, object]:
    check_names(item_id=item.id)
    if not math.isfinite(item.time):
        raise StoreError(f"item '{item.id}' of user '{user_id}' has time {item.time}", fix="give seconds since 1970")
    fields = to_json(f"item '{item.id}' of user '{user_id}'", dict(item.fields))
    return {
        "user_id": user_id, "task": task, "position": position,
        "item_id": item.id, "time": item.time, "fields": fields,
    }  # fmt: skip


def cut(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many as one statement takes."""
    for start in range(0, len(ids), _MOST):
        yield ids[start : start + _MOST]
