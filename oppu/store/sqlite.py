"""All that is particular to SQLite: one file (WAL), one write lock, and text that is overwritten when it is deleted.

A writing transaction begins IMMEDIATE: it holds the one write lock from its first statement, so what it reads cannot
change under it.
"""

import os
import sqlite3
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError

from oppu.errors import StoreError
from oppu.store.files import is_dead, this_process

BUSY_TIMEOUT_MS = 30_000

_PRAGMAS = (
    "PRAGMA synchronous=FULL",  # a committed row survives a loss of power
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # deleted text is overwritten with zeros
)


class SQLite:
    """One SQLite file: the Dialect of a store in a folder."""

    driver_errors: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only

    @property
    def where(self) -> str:
        """The file."""
        return str(self._path)

    def engine(self) -> Engine:
        """Transactions begin IMMEDIATE where they write."""
        path, read_only = self._path, self._read_only
        # a reader decides anew each time how to open the file: one that is taken as immutable is never read again
        pool = NullPool if read_only else QueuePool
        engine = create_engine("sqlite://", creator=lambda: _connect(path, read_only), poolclass=pool)
        event.listen(engine, "begin", _begin)
        return engine

    def reader(self, engine: Engine) -> Engine:
        """A transaction of SQLite sees one state in any case."""
        return engine

    def writer(self, engine: Engine) -> Engine:
        """Under the write lock."""
        return engine.execution_options(oppu_writes=True)

    def lock_schema(self, connection: Connection) -> None:
        """The write lock is held already."""

    def statement(self, migration: str) -> str:
        """As it is."""
        return migration

    def wipe(self, engine: Engine, timeout_ms: int | None) -> bool:
        """Moves the write-ahead log into the database file and empties it; False: a reader elsewhere kept it."""
        connection = engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS if timeout_ms is None else timeout_ms}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (busy, _, _) = cursor.fetchall()[0]
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            cursor.close()
        finally:
            connection.close()
        return not busy

    def maker(self) -> str:
        """Host and process number."""
        return this_process()

    def is_dead(self, connection: Connection, maker: str, started: str) -> bool:
        """By the process number; where that says nothing (another host), by age."""
        return is_dead(maker, started)

    def close(self) -> None:
        """The last connection of all processes folds the log into the database file when the engine closes it."""

    def in_plain_words(self, error: Exception) -> StoreError:
        """By the words that SQLite uses."""
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
                return StoreError(f"{what} ({cause})", where=self.where, fix=fix)
        return StoreError(f"the database failed ({cause})", where=self.where)


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
