"""Who is known, and what each user did: rows only, no files."""

import math
from collections.abc import Sequence

from sqlalchemy import Connection, delete, exists, insert, select

from oppu.errors import StoreError, UnknownUserError
from oppu.records import HistoryItem
from oppu.store.database import ConflictError, Database
from oppu.store.names import check_names, from_json, to_json
from oppu.store.schema import HISTORY_ITEMS, USERS

_ATTEMPTS = 5


def put_history(database: Database, user_id: str, task: str, items: Sequence[HistoryItem]) -> None:
    """Replaces the user's history in the task."""
    check_names(user_id=user_id, task=task)
    rows = [_row(user_id, task, position, item) for position, item in enumerate(items)]
    for attempt in range(_ATTEMPTS):
        try:
            with database.writing() as connection:
                claim(connection, user_id, task)
                connection.execute(
                    delete(HISTORY_ITEMS).where(HISTORY_ITEMS.c.user_id == user_id, HISTORY_ITEMS.c.task == task)
                )
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


def users(database: Database, task: str | None = None) -> tuple[str, ...]:
    """Everyone with a history or a module, in the task if one is given, in the order of their ids."""
    query = select(USERS.c.user_id).where(USERS.c.deleting.is_(False)).distinct().order_by(USERS.c.user_id)
    if task is not None:
        query = query.where(USERS.c.task == task)
    with database.reading() as connection:
        return tuple(connection.scalars(query))


def claim(connection: Connection, user_id: str, task: str) -> None:
    """Makes the user known in the task and locks the row; StoreError while a deletion is under way."""
    query = select(USERS.c.deleting).where(USERS.c.user_id == user_id, USERS.c.task == task).with_for_update()
    deleting = connection.scalar(query)
    if deleting is None:
        connection.execute(insert(USERS).values(user_id=user_id, task=task, deleting=False))
    elif deleting:
        raise StoreError(f"user '{user_id}' is being deleted", fix="open the store again, which ends the deletion")


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
