"""The SQLite file (WAL) behind a store: connections, transactions, migrations, and its errors in plain words.

Everything particular to SQLite is in this file. A writing transaction begins IMMEDIATE: it holds the one write lock
from its first statement, so what it reads cannot change under it.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, QueuePool, create_engine, event, func, insert, inspect, select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from oppu.errors import StoreError
from oppu.store import schema

BUSY_TIMEOUT_MS = 30_000

_PRAGMAS = (
    "PRAGMA synchronous=FULL",  # a committed row survives a loss of power
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # deleted text is overwritten with zeros
)


class ConflictError(StoreError):
    """Another process put the same row first."""


class Database:
    """One SQLite file, opened and brought to the newest schema."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._engine = create_engine("sqlite://", creator=lambda: _connect(path, read_only), poolclass=QueuePool)
        event.listen(self._engine, "begin", _begin)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction under the write lock: committed at the end, undone by any exception."""
        if self._read_only:
            raise StoreError("was opened read-only", where=str(self._path.parent), fix="open it without read_only")
        with self._errors(), self._engine.execution_options(oppu_writes=True).begin() as connection:
            yield connection

    def checkpoint(self, *, timeout_ms: int) -> bool:
        """Moves the write-ahead log into the database file and empties it; False: a reader elsewhere kept it."""
        with self._errors():
            connection = self._engine.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute(f"PRAGMA busy_timeout={timeout_ms}")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                (busy, _, _) = cursor.fetchall()[0]
                cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
                cursor.close()
            finally:
                connection.close()
        return not busy

    def close(self) -> None:
        """Closes all connections; the last one of all processes folds the log into the database file."""
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise ConflictError(
                f"a row is there already or does not fit ({error.orig})", where=str(self._path)
            ) from error
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise _in_plain_words(error, self._path) from error

    def _migrate(self) -> None:
        """Applies the migrations that are missing, all or none; refuses a newer schema and a stranger's database."""
        with self.reading() as connection:
            if _applied(connection, self._path) == len(schema.MIGRATIONS):
                return
        if self._read_only:
            raise StoreError(
                "its schema is older than this oppu", where=str(self._path), fix="open it once for writing"
            )
        with self.writing() as connection:
            done = _applied(connection, self._path)  # again, under the lock: another process may have been faster
            if done == 0 and not inspect(connection).has_table(schema.APPLIED.name):
                connection.execute(CreateTable(schema.APPLIED))
            for number, statements in enumerate(schema.MIGRATIONS[done:], start=done + 1):
                for statement in statements:
                    connection.exec_driver_sql(statement)
                connection.execute(insert(schema.APPLIED).values(number=number, applied=utc_now()))


def utc_now() -> str:
    """Now, in UTC, ISO 8601 with microseconds, so that text sorts as time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _applied(connection: Connection, path: Path) -> int:
    """The number of the last migration applied; 0 in an empty database."""
    tables = inspect(connection).get_table_names()
    if schema.APPLIED.name not in tables:
        if tables:
            raise StoreError(
                "is a database, but not a store's", where=str(path), fix="give the store a folder of its own"
            )
        return 0
    number = connection.scalar(select(func.max(schema.APPLIED.c.number))) or 0
    if number > len(schema.MIGRATIONS):
        what = f"was made by a newer oppu (schema {number}, this one knows up to {len(schema.MIGRATIONS)})"
        raise StoreError(what, where=str(path), fix="update oppu")
    return int(number)


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("oppu_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection whose transactions SQLAlchemy begins and ends (isolation_level None)."""
    uri = path.absolute().as_uri() + "?" + (_read_only_options(path) if read_only else "mode=rwc")
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000
    )
    try:
        if not read_only:
            _use_write_ahead_log(connection)
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def _read_only_options(path: Path) -> str:
    """A folder that nobody can write holds no log: SQLite must then be told not to look for one."""
    log = path.with_name(path.name + "-wal")
    return "mode=ro" if os.access(path.parent, os.W_OK) or log.exists() else "mode=ro&immutable=1"


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switches to WAL; SQLite does not wait for its lock here, so two processes creating a store at once take turns."""
    for attempt in range(100):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == 99:
                raise
            time.sleep(0.05)


def _in_plain_words(error: SQLAlchemyError | sqlite3.Error, path: Path) -> StoreError:
    cause = str(error.orig if isinstance(error, DBAPIError) else error)
    for sign, what, fix in (
        ("not a database", "is no SQLite database", "move it away, or restore it from a copy"),
        ("malformed", "is damaged", "restore it from a copy"),
        ("full", "the disk is full", "free some space and run it again; nothing that was stored is lost"),
        ("locked", "another process keeps it locked", "wait for it and run it again"),
        ("readonly", "cannot be written", "use a folder that you may write, or open the store read-only"),
        ("unable to open", "cannot be opened", "check that the folder exists and that you may read and write it"),
    ):
        if sign in cause:
            return StoreError(f"{what} ({cause})", where=str(path), fix=fix)
    return StoreError(f"the database failed ({cause})", where=str(path))
