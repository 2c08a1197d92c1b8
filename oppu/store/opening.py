"""From an address to a database and a place for files: a folder with SQLite, or PostgreSQL with a URL.

Both strings as they are given open the same store in another process or on another machine.
"""

from dataclasses import dataclass
from pathlib import Path

from oppu.errors import StoreError
from oppu.store.database import Database, Dialect
from oppu.store.folder import Folder
from oppu.store.places import Place, open_place
from oppu.store.postgresql import SCHEMES, PostgreSQL, without_password
from oppu.store.sqlite import SQLite

DATABASE = "oppu.db"


@dataclass(frozen=True, slots=True)
class Opened:
    """What an address stands for; no connection is made yet."""

    address: str
    files: str | None
    name: str
    """For messages, without a password."""
    folder: Path | None
    """Of a store that is a folder."""
    place: Place

    def database(self, *, read_only: bool) -> Database:
        """The database, brought to the newest schema; what must be there for the files is made first."""
        if self.folder is not None and read_only and not (self.folder / DATABASE).is_file():
            raise StoreError("is no store", where=self.name, fix="check the path")
        if not read_only:
            self.place.make()
        return Database(self._dialect(read_only), read_only=read_only)

    def _dialect(self, read_only: bool) -> Dialect:
        if self.folder is not None:
            return SQLite(self.folder / DATABASE, read_only=read_only)
        return PostgreSQL(self.address)


def opened(address: Path | str, files: str | None) -> Opened:
    """What the address stands for; StoreError where it is neither a folder nor a database with a URL for files."""
    if is_folder(address):
        if files is not None:
            fix = "leave out --files, or give a database (postgresql://...) as the store"
            raise StoreError("a store in a folder keeps its files there", where=str(address), fix=fix)
        folder = Path(address).absolute()
        return Opened(str(folder), None, str(folder), folder, Folder(folder))
    scheme = str(address).split("://")[0]
    if scheme not in SCHEMES:
        fix = "give a folder, or postgresql://USER:PASSWORD@HOST/DATABASE"
        raise StoreError(f"'{scheme}://' is no database that a store can use", fix=fix)
    name = without_password(str(address))
    if files is None:
        fix = "give --files, for example s3://BUCKET/PREFIX"
        raise StoreError("a store in a database needs a place for its files", where=name, fix=fix)
    return Opened(str(address), files, name, None, open_place(files))


def is_folder(address: Path | str) -> bool:
    """Whether the address is a folder's, and not a database's."""
    return isinstance(address, Path) or "://" not in address


def shown_address(address: Path | str) -> str:
    """The address for messages: without a password."""
    return str(address) if is_folder(address) else without_password(str(address))
