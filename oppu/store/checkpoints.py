"""Trainings under way: for each user, task, setting and base one file, which the next one replaces.

A put writes new files, and then, in one transaction, puts rows in place of the old ones and notes the old files, which
go. A checkpoint goes with the commit of its module, and with its user; it never makes a user known.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select

from oppu.errors import OppuError, StoreError
from oppu.store import notes
from oppu.store.database import Database, utc_now
from oppu.store.histories import cut
from oppu.store.names import check_names, new_checkpoint_folder
from oppu.store.places import CHECKPOINT, Place
from oppu.store.schema import CHECKPOINTS, USERS

KEY = ("user_id", "task", "setting", "base_fingerprint")


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A training under way, as bytes, and whose it is."""

    user_id: str
    task: str
    setting: str
    base_fingerprint: str
    fingerprint: str
    """Over everything that decides the module."""
    data: bytes


def put_checkpoints(database: Database, place: Place, new: Sequence[NewCheckpoint]) -> None:
    """Keeps each in place of that of its user, task, setting and base; who was deleted meanwhile is left out."""
    if not new:
        return
    rows = [_row(each) for each in new]
    files = {row["path"]: {CHECKPOINT: each.data} for row, each in zip(rows, new, strict=True)}
    with notes.noted(database, place, list(files)) as token:
        place.write(files)
        with database.writing() as connection:
            notes.end(connection, token)
            known = known_of(connection, rows)
            kept = [row for row in rows if (row["user_id"], row["task"]) in known]
            gone = [row["path"] for row in rows if row not in kept] + take_away(connection, kept)
            if kept:
                connection.execute(insert(CHECKPOINTS), kept)
            left = notes.make(connection, database.maker(), gone) if gone else None
    settle_quietly(database, place, left)


def checkpoint(database: Database, place: Place, key: Mapping[str, str], fingerprint: str) -> bytes | None:
    """What was put last for this key, if it is of the training with this fingerprint; StoreError if it is damaged."""
    query = (
        select(CHECKPOINTS)
        .join(USERS, (USERS.c.user_id == CHECKPOINTS.c.user_id) & (USERS.c.task == CHECKPOINTS.c.task))
        .where(_is(key), CHECKPOINTS.c.fingerprint == fingerprint, USERS.c.deleting.is_(False))
    )
    with database.reading() as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    try:
        data = place.read(row.path, (CHECKPOINT,))[CHECKPOINT]
    except StoreError as error:
        raise StoreError("its file cannot be read", where=str(place.shown(row.path))) from error
    if (len(data), sha256(data).hexdigest()) != (row.size_bytes, row.sha256):
        raise StoreError("its file is not the one that was put", where=str(place.shown(row.path)))
    return data


def drop_checkpoint(database: Database, place: Place, key: Mapping[str, str]) -> None:
    """Removes what was put for this key, if there is something."""
    with database.reading() as connection:
        if connection.scalar(select(CHECKPOINTS.c.path).where(_is(key))) is None:
            return
    with database.writing() as connection:
        gone = take_away(connection, [key])
        left = notes.make(connection, database.maker(), gone) if gone else None
    settle_quietly(database, place, left)


def take_away(connection: Connection, keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Removes the rows with these keys; returns the paths of their files, which the caller notes and removes."""
    wanted = {tuple(key[name] for name in KEY) for key in keys}
    paths = []
    for task in sorted({key["task"] for key in keys}):
        for some in cut(sorted({key["user_id"] for key in keys if key["task"] == task})):
            mine = CHECKPOINTS.c.user_id.in_(some), CHECKPOINTS.c.task == task
            for row in connection.execute(select(CHECKPOINTS).where(*mine).with_for_update()).mappings().all():
                if tuple(row[name] for name in KEY) in wanted:
                    connection.execute(delete(CHECKPOINTS).where(CHECKPOINTS.c.path == row["path"]))
                    paths.append(str(row["path"]))
    return paths


def settle_quietly(database: Database, place: Place, token: str | None) -> None:
    """Clears what a note names; what cannot be cleared now, another process clears when it opens the store."""
    if token is not None:
        with suppress(OppuError, OSError):
            notes.settle(database, place, token)


def _row(new: NewCheckpoint) -> dict[str, Any]:
    key = {name: getattr(new, name) for name in KEY}
    check_names(**key, fingerprint=new.fingerprint)
    return key | {
        "fingerprint": new.fingerprint,
        "created": utc_now(),
        "size_bytes": len(new.data),
        "sha256": sha256(new.data).hexdigest(),
        "path": new_checkpoint_folder(new.user_id),
    }


def known_of(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Those (user, task)s of the rows who are known and not being deleted; their rows are locked."""
    known: set[tuple[str, str]] = set()
    for task in sorted({row["task"] for row in rows}):
        for some in cut(sorted({row["user_id"] for row in rows if row["task"] == task})):
            query = select(USERS.c.user_id).where(
                USERS.c.user_id.in_(some), USERS.c.task == task, USERS.c.deleting.is_(False)
            )
            found = connection.scalars(query.order_by(USERS.c.user_id).with_for_update())
            known |= {(user_id, task) for user_id in found}
    return known


def _is(key: Mapping[str, str]) -> ColumnElement[bool]:
    return and_(*(CHECKPOINTS.c[name] == key[name] for name in KEY))
