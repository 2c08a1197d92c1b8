"""All that is particular to PostgreSQL: row locks, and an advisory lock that says which process is alive.

A process that puts holds an advisory lock in a session of its own for as long as its store is open. The server lets
go of it when the process or its machine dies, so any other machine can tell a dead put from one under way. (Behind a
pooler this needs session pooling.)
"""

import secrets
import threading
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from oppu.errors import ConfigError, StoreError
from oppu.store.database import ConflictError

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_SCHEMA_LOCK = 0x6F707075  # "oppu"
_TRY_AGAIN = ("40001", "40P01")  # serialization failure, deadlock
_SECRETS = ("password", "sslpassword")


class PostgreSQL:
    """One database of a PostgreSQL server: the Dialect of a store that several machines use."""

    def __init__(self, address: str) -> None:
        self._url = _parsed(address)
        self._engine: Engine | None = None
        self._alive: tuple[int, Connection] | None = None
        self._lock = threading.Lock()
        try:
            import psycopg
        except ImportError:
            fix = "run `pip install 'oppu[cluster]'`"
            raise ConfigError("PostgreSQL needs psycopg, which is not installed", where=self.where, fix=fix) from None
        self.driver_errors: tuple[type[Exception], ...] = (psycopg.Error,)

    @property
    def where(self) -> str:
        """The address without its password."""
        return _shown(self._url)

    def engine(self) -> Engine:
        """Threads each have a connection of their own; one that the server has closed is replaced."""
        self._engine = create_engine(self._url, pool_size=8, max_overflow=24, pool_pre_ping=True)
        return self._engine

    def reader(self, engine: Engine) -> Engine:
        """One state for the whole transaction."""
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def writer(self, engine: Engine) -> Engine:
        """After a wait for a row, what the other transaction has committed is seen."""
        return engine.execution_options(isolation_level="READ COMMITTED")

    def lock_schema(self, connection: Connection) -> None:
        """Before the first table there is no row to lock."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})

    def statement(self, migration: str) -> str:
        """Text sorts by its code points, as in SQLite and in Python, whatever the database's language is."""
        return migration.replace(" TEXT", ' TEXT COLLATE "C"')

    def wipe(self, engine: Engine, timeout_ms: int | None) -> bool:
        """Nothing to do: the server's own vacuum reuses the space of deleted rows (docs/scale.md)."""
        return True

    def maker(self) -> str:
        """The number of an advisory lock that this process holds."""
        with self._lock:
            if self._alive is None or not _answers(self._alive[1]):
                self._alive = self._take_lock()
            return str(self._alive[0])

    def is_dead(self, connection: Connection, maker: str, started: str) -> bool:
        """Whether the maker's lock can be had; it is let go at the end of this transaction."""
        free = connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": int(maker)})
        return bool(free)

    def close(self) -> None:
        """Lets go of the lock."""
        if self._alive is not None:
            self._alive[1].close()
            self._alive = None

    def in_plain_words(self, error: Exception) -> StoreError:
        """By PostgreSQL's codes, and by psycopg's words where there was no connection."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        words = self._without_secrets(" ".join(str(cause).split()))
        state = getattr(cause, "sqlstate", None)
        if state in _TRY_AGAIN:
            return ConflictError(
                f"other processes were at the same rows ({words})", where=self.where, fix="run it again"
            )
        for sign, what, fix in (
            ("password", "does not let this user in", "check user and password"),
            ("does not exist", "lacks something", "create the database, and check its name and the user's"),
            ("permission denied", "does not allow this", "give the user the right to it, or open the store read-only"),
            ("read-only", "cannot be written", "use the primary server, not a replica"),
            ("No space left", "the server's disk is full", "free some space; nothing that was stored is lost"),
            ("connection", "cannot be reached", "check host, port and network, and that the server runs"),
            ("resolve", "cannot be reached", "check the host's name"),
        ):
            if sign in words:
                return StoreError(f"{what} ({words})", where=self.where, fix=fix)
        return StoreError(f"the database failed ({words})", where=self.where)

    def _take_lock(self) -> tuple[int, Connection]:
        """A lock of a number that nobody else has drawn, in a session that is idle otherwise."""
        assert self._engine is not None
        key = secrets.randbits(62)
        connection = self._engine.execution_options(isolation_level="AUTOCOMMIT").connect()
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
            connection.detach()  # closing it ends the session, and so the lock
        except SQLAlchemyError:
            connection.close()
            raise
        return key, connection

    def _without_secrets(self, words: str) -> str:
        for secret in _secrets_of(self._url):
            words = words.replace(secret, "***")
        return words


def _answers(connection: Connection) -> bool:
    """Whether the session, and so its lock, is still there: a server that was restarted has forgotten both."""
    try:
        connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        connection.close()
        return False
    return True


def without_password(address: str) -> str:
    """A database's address for messages, without its password."""
    return _shown(_parsed(address))


def _shown(url: URL) -> str:
    query = {key: "***" if key in _SECRETS else value for key, value in url.query.items()}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=True)


def _parsed(address: str) -> URL:
    try:
        return make_url(address).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):  # its words would show the password
        what = "the database's address cannot be read"
        raise StoreError(what, fix="write postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None


def _secrets_of(url: URL) -> list[str]:
    found: list[Any] = [url.password, *(url.query.get(key) for key in _SECRETS)]
    return [value for value in found if isinstance(value, str) and value]
