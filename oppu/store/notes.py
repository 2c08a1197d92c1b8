"""Notes of puts under way: which paths a put is about to write, so that what a dead one left is found without a search.

A put makes its note, writes, and removes the note in the transaction that inserts its rows: either the rows are there
or the note is. A note whose process is dead is settled: what it names and no row has goes, and so does the note. Who
has locked the note decides, so a put that was taken for dead (its machine was cut off) fails and leaves no row.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, delete, insert, select

from oppu.errors import OppuError, StoreError
from oppu.store.database import Database, utc_now
from oppu.store.places import Place
from oppu.store.schema import BASES, CHECKPOINTS, MODULES, PUTS


@contextmanager
def noted(database: Database, place: Place, paths: Sequence[str]) -> Iterator[str]:
    """A note for the time of a put; whoever commits must `end` it. Failed, what was written is cleared."""
    maker = database.maker()
    with database.writing() as connection:
        token = make(connection, maker, paths)
    try:
        yield token
    except BaseException:
        with suppress(OppuError, OSError):  # what cannot be cleared now, the next opening clears
            settle(database, place, token, paths)
        raise


def make(connection: Connection, maker: str, paths: Sequence[str]) -> str:
    """A note; returns its token."""
    token = secrets.token_hex(16)
    row = {"token": token, "maker": maker, "started": utc_now(), "paths": json.dumps(list(paths))}
    connection.execute(insert(PUTS).values(row))
    return token


def end(connection: Connection, token: str) -> None:
    """Removes the note with what the transaction commits; StoreError where another process took the put for dead."""
    if connection.execute(delete(PUTS).where(PUTS.c.token == token)).rowcount != 1:
        raise StoreError("the connection was lost, and another process cleared the put", fix="run it again")


def settle(database: Database, place: Place, token: str, written: Sequence[str] = ()) -> None:
    """Ends a put that was not committed: what it wrote goes, then its note.

    `written`: what the put's own process wrote. Another one may have taken it for dead and settled the note earlier.
    """
    with database.writing() as connection:
        paths = connection.scalar(select(PUTS.c.paths).where(PUTS.c.token == token).with_for_update())
        listed = written if paths is None else json.loads(paths)  # None: committed, or settled by another process
        place.remove([path for path in listed if not _has_row(connection, path)])
        connection.execute(delete(PUTS).where(PUTS.c.token == token))


def settle_dead_puts(database: Database, place: Place) -> None:
    """Settles the notes of dead processes."""
    with database.reading() as connection:
        notes = connection.execute(select(PUTS.c.token, PUTS.c.maker, PUTS.c.started)).all()
        dead = [note.token for note in notes if database.dialect.is_dead(connection, note.maker, note.started)]
    for token in dead:
        settle(database, place, token)


def _has_row(connection: Connection, path: str) -> bool:
    return any(
        connection.scalar(select(table.c.path).where(table.c.path == path)) is not None
        for table in (MODULES, BASES, CHECKPOINTS)
    )
