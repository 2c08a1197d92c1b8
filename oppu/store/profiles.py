"""Textual profiles, by user, task and the way they were made: rows only, with the items that they were made from."""

import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, delete, insert, select

from oppu.errors import StoreError
from oppu.records import Profile
from oppu.store.database import ConflictError, Database, utc_now
from oppu.store.histories import claim, cut
from oppu.store.names import check_names
from oppu.store.records import ProfileRecord
from oppu.store.schema import PROFILES, USERS

_ATTEMPTS = 5


def put_profiles(database: Database, records: Sequence[ProfileRecord]) -> None:
    """Keeps each record in place of the one of its user, task and `made`: all of them or none. `created` is now."""
    rows = [_row(record) for record in records]
    for attempt in range(_ATTEMPTS):
        try:
            with database.writing() as connection:
                claim(connection, sorted({(record.user_id, record.task) for record in records}))
                for task, made in sorted({(record.task, record.made) for record in records}):
                    whose = [r.user_id for r in records if (r.task, r.made) == (task, made)]
                    for some in cut(whose):
                        old = PROFILES.c.user_id.in_(some), PROFILES.c.task == task, PROFILES.c.made == made
                        connection.execute(delete(PROFILES).where(*old))
                created = utc_now()
                if rows:
                    connection.execute(insert(PROFILES), [row | {"created": created} for row in rows])
            return
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise


def drop_profiles(database: Database, task: str, made: str, users: Sequence[str]) -> None:
    """Removes these users' records of the task, made in this way; no error where there are none."""
    for attempt in range(_ATTEMPTS):
        try:
            with database.writing() as connection:
                for some in cut(users):
                    whose = PROFILES.c.user_id.in_(some), PROFILES.c.task == task, PROFILES.c.made == made
                    connection.execute(delete(PROFILES).where(*whose))
            return
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise


def profiles(
    database: Database, task: str, made: str | None = None, users: Sequence[str] | None = None
) -> tuple[ProfileRecord, ...]:
    """The records of a task (made in this way, of these users), by user and way."""
    query = _visible(select(PROFILES)).where(PROFILES.c.task == task)
    if made is not None:
        query = query.where(PROFILES.c.made == made)
    query = query.order_by(PROFILES.c.user_id, PROFILES.c.made)
    with database.reading() as connection:
        if users is None:
            rows = list(connection.execute(query))
        else:
            found = [connection.execute(query.where(PROFILES.c.user_id.in_(some))) for some in cut(sorted(users))]
            rows = [row for result in found for row in result]
    return tuple(_record(row) for row in rows)


def ways(database: Database, task: str) -> tuple[str, ...]:
    """Every `made` of the task's profiles, sorted."""
    query = _visible(select(PROFILES.c.made)).where(PROFILES.c.task == task).distinct().order_by(PROFILES.c.made)
    with database.reading() as connection:
        return tuple(connection.scalars(query))


def _visible(query: Select[Any]) -> Select[Any]:
    """Those of users that are not being deleted."""
    join = (USERS.c.user_id == PROFILES.c.user_id) & (USERS.c.task == PROFILES.c.task)
    return query.join(USERS, join).where(USERS.c.deleting.is_(False))


def _row(record: ProfileRecord) -> dict[str, Any]:
    check_names(user_id=record.user_id, task=record.task, made=record.made)
    for profile in record.profiles:
        if not math.isfinite(profile.time):
            fix = "give seconds since 1970"
            raise StoreError(f"a profile of user '{record.user_id}' has time {profile.time}", fix=fix)
    return {
        "user_id": record.user_id,
        "task": record.task,
        "made": record.made,
        "how": record.how,
        "items_digest": record.items_digest,
        "item_ids": json.dumps(record.item_ids),
        "texts": json.dumps([[profile.text, profile.time, profile.items] for profile in record.profiles]),
    }


def _record(row: Row[Any]) -> ProfileRecord:
    return ProfileRecord(
        user_id=row.user_id,
        task=row.task,
        made=row.made,
        how=row.how,
        items_digest=row.items_digest,
        item_ids=tuple(json.loads(row.item_ids)),
        profiles=tuple(Profile(text, float(time), items) for text, time, items in json.loads(row.texts)),
        created=row.created,
    )
