"""The database behind a store: connections, transactions, migrations, and its errors in plain words.

What differs between databases is a `Dialect`: SQLite in sqlite.py, PostgreSQL in postgresql.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy import Connection, Engine, func, insert, inspect, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from oppu.errors import StoreError
from oppu.store import schema


class ConflictError(StoreError):
    """Another process put the same row first."""


class Dialect(Protocol):
    """What one kind of database does in its own way."""

    @property
    def where(self) -> str:
        """The database, as messages name it: without a password."""

    driver_errors: tuple[type[Exception], ...]
    """What the driver raises where SQLAlchemy does not stand between."""

    def engine(self) -> Engine:
        """Connections; none is made yet."""

    def reader(self, engine: Engine) -> Engine:
        """The same connections, for transactions that see one state and change nothing."""

    def writer(self, engine: Engine) -> Engine:
        """The same connections, for transactions that write."""

    def lock_schema(self, connection: Connection) -> None:
        """Keeps other processes from migrating until the transaction ends."""

    def statement(self, migration: str) -> str:
        """A migration's statement in this database's words."""

    def in_plain_words(self, error: Exception) -> StoreError:
        """What went wrong, without a password; a ConflictError where trying again helps."""

    def wipe(self, engine: Engine, timeout_ms: int | None) -> bool:
        """Removes from the database's own files what was deleted; False: another process keeps it for now."""

    def maker(self) -> str:
        """This process, as notes of puts name it."""

    def is_dead(self, connection: Connection, maker: str, started: str) -> bool:
        """Whether the process that made a note is gone."""

    def close(self) -> None:
        """Lets go of what is held besides the engine."""


class Database:
    """A database, opened and brought to the newest schema."""

    def __init__(self, dialect: Dialect, *, read_only: bool = False) -> None:
        self.dialect = dialect
        self._read_only = read_only
        self._engine = dialect.engine()
        self._reader, self._writer = dialect.reader(self._engine), dialect.writer(self._engine)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._errors(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end and undone by any exception.

        SQLite gives it the one write lock from its first statement. In PostgreSQL it locks the rows that it asks for
        (`with_for_update`), and sees at each statement what others have committed.
        """
        if self._read_only:
            raise StoreError("was opened read-only", where=self.dialect.where, fix="open it without read_only")
        with self._errors(), self._writer.begin() as connection:
            yield connection

    def wipe(self, *, timeout_ms: int | None = None) -> bool:
        """Removes from the database's own files what was deleted; False: another process keeps it for now."""
        with self._errors():
            return self.dialect.wipe(self._engine, timeout_ms)

    def maker(self) -> str:
        """This process, as notes of puts name it; the database or the system knows when it is gone."""
        with self._errors():
            return self.dialect.maker()

    def close(self) -> None:
        """Closes all connections."""
        self.dialect.close()
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        known: tuple[type[Exception], ...] = (SQLAlchemyError, *self.dialect.driver_errors)
        try:
            yield
        except IntegrityError as error:
            what = f"a row is there already or does not fit ({' '.join(str(error.orig).split())})"
            raise ConflictError(what, where=self.dialect.where) from error
        except known as error:
            raise self.dialect.in_plain_words(error) from error

    def _migrate(self) -> None:
        """Applies the migrations that are missing, all or none; refuses a newer schema and a stranger's database."""
        where = self.dialect.where
        with self.reading() as connection:
            if _applied(connection, where) == len(schema.MIGRATIONS):
                return
        if self._read_only:
            raise StoreError("its schema is older than this oppu", where=where, fix="open it once for writing")
        with self.writing() as connection:
            self.dialect.lock_schema(connection)
            done = _applied(connection, where)  # again, under the lock: another process may have been faster
            if done == 0 and not inspect(connection).has_table(schema.APPLIED.name):
                connection.execute(CreateTable(schema.APPLIED))
            for number, statements in enumerate(schema.MIGRATIONS[done:], start=done + 1):
                for statement in statements:
                    connection.exec_driver_sql(self.dialect.statement(statement))
                connection.execute(insert(schema.APPLIED).values(number=number, applied=utc_now()))


def utc_now() -> str:
    """Now, in UTC, ISO 8601 with microseconds, so that text sorts as time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _applied(connection: Connection, where: str) -> int:
    """The number of the last migration applied; 0 in an empty database."""
    tables = inspect(connection).get_table_names()
    if schema.APPLIED.name not in tables:
        if tables:
            fix = "give the store a folder or a database of its own"
            raise StoreError("is a database, but not a store's", where=where, fix=fix)
        return 0
    number = connection.scalar(select(func.max(schema.APPLIED.c.number))) or 0
    if number > len(schema.MIGRATIONS):
        what = f"was made by a newer oppu (schema {number}, this one knows up to {len(schema.MIGRATIONS)})"
        raise StoreError(what, where=where, fix="update oppu")
    return int(number)
