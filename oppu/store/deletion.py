"""Forgetting a user: the intent is recorded, then files go, then rows, then what the database's own files still hold.

Killed in between, a marked user is hidden from everyone, and the next opening of the store ends the deletion. Retrieval
indexes are made in memory from the history and never stored, so none can be left.
"""

import logging

from sqlalchemy import ColumnElement, delete, func, select, text, update

from oppu.errors import OppuError, StoreError
from oppu.store.database import Database
from oppu.store.histories import unknown_user
from oppu.store.notes import settle_dead_puts
from oppu.store.places import Place
from oppu.store.records import Deleted
from oppu.store.schema import CHECKPOINTS, HISTORY_ITEMS, MODULES, PROFILES, USERS

_LOG = logging.getLogger("oppu.store")


def delete_user(database: Database, place: Place, user_id: str, task: str | None = None) -> Deleted:
    """Removes modules, checkpoints, profiles and history of the user (in this task), and says what went."""
    mine = [USERS.c.user_id == user_id] + ([] if task is None else [USERS.c.task == task])
    with database.writing() as connection:
        tasks = list(connection.scalars(select(USERS.c.task).where(*mine).order_by(USERS.c.task).with_for_update()))
        if not tasks:
            raise unknown_user(user_id, task)
        connection.execute(update(USERS).where(*mine).values(deleting=True))
        rows = connection.execute(
            select(MODULES.c.path, MODULES.c.size_bytes)
            .where(MODULES.c.user_id == user_id, MODULES.c.task.in_(tasks))
            .order_by(*MODULES.primary_key)
        ).all()
        items, profiles, under_way = (
            connection.scalar(select(func.count()).where(table.c.user_id == user_id, table.c.task.in_(tasks)))
            for table in (HISTORY_ITEMS, PROFILES, CHECKPOINTS)
        )
    for each in tasks:
        _finish(database, place, user_id, each)
    settle_dead_puts(database, place)
    if not database.wipe():
        what = f"user '{user_id}' is deleted, but another process keeps the write-ahead log, and old text in it, open"
        raise StoreError(what, where=place.where, fix="end that process and open the store again")
    return Deleted(
        user_id=user_id,
        task=task,
        modules=len(rows),
        history_items=int(items or 0),
        size_bytes=sum(row.size_bytes for row in rows),
        paths=tuple(place.shown(row.path) for row in rows),
        profiles=int(profiles or 0),
        checkpoints=int(under_way or 0),
    )


def finish_deletions(database: Database, place: Place) -> None:
    """Ends the deletions that a crash or a failing disk interrupted; what still fails is logged and stays hidden."""
    with database.reading() as connection:
        # the words of the index, so that a million users are not read for it
        marked = connection.execute(select(USERS.c.user_id, USERS.c.task).where(text("deleting"))).all()
    for user_id, task in marked:
        try:
            _finish(database, place, user_id, task)
        except OppuError as error:
            _LOG.warning("a deletion cannot be finished yet: %s", error)


def _finish(database: Database, place: Place, user_id: str, task: str) -> None:
    """Files first, then rows, with the user's row locked, so that no put can come between."""
    with database.writing() as connection:
        marked = select(USERS.c.deleting).where(USERS.c.user_id == user_id, USERS.c.task == task).with_for_update()
        if not connection.scalar(marked):  # another process was faster, and the user may have come back since
            return
        paths: list[str] = []
        for files in (MODULES, CHECKPOINTS):
            paths += connection.scalars(select(files.c.path).where(files.c.user_id == user_id, files.c.task == task))
        place.remove(paths)
        for table in (HISTORY_ITEMS, MODULES, PROFILES, CHECKPOINTS, USERS):
            mine: list[ColumnElement[bool]] = [table.c.user_id == user_id, table.c.task == task]
            connection.execute(delete(table).where(*mine))
