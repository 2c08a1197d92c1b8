"""Base models: a name, a fingerprint, where it lies and how it was made. Its files are written by others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, insert, select

from oppu.store.database import Database, utc_now
from oppu.store.names import check_names, from_json, path_part, to_json
from oppu.store.records import BaseRecord
from oppu.store.schema import BASES


def base_folder(folder: Path, name: str) -> Path:
    """Where a base of this name belongs; the name never leads out of `bases/`."""
    check_names(name=name)
    return folder / "bases" / path_part(name)


def put_base(
    database: Database, folder: Path, name: str, fingerprint: str, path: Path, record: Mapping[str, Any]
) -> BaseRecord:
    """Registers a base, in place of one of the same name; a path inside the store moves with the store."""
    check_names(name=name, fingerprint=fingerprint)
    place = path.absolute()
    row = {
        "name": name,
        "fingerprint": fingerprint,
        "path": str(place.relative_to(folder) if place.is_relative_to(folder) else place),
        "created": utc_now(),
        "record": to_json("the base's record", dict(record)),
    }
    with database.writing() as connection:
        connection.execute(delete(BASES).where(BASES.c.name == name))
        connection.execute(insert(BASES).values(row))
    return BaseRecord(name=name, fingerprint=fingerprint, path=place, created=row["created"], record=dict(record))


def base(database: Database, folder: Path, name: str) -> BaseRecord | None:
    """The base of this name, or None."""
    with database.reading() as connection:
        row = connection.execute(select(BASES).where(BASES.c.name == name)).first()
    return None if row is None else _record(folder, row)


def bases(database: Database, folder: Path) -> tuple[BaseRecord, ...]:
    """All bases, by name."""
    with database.reading() as connection:
        return tuple(_record(folder, row) for row in connection.execute(select(BASES).order_by(BASES.c.name)))


def _record(folder: Path, row: Row[Any]) -> BaseRecord:
    values = dict(row._mapping)
    return BaseRecord(**values | {"path": folder / values["path"], "record": from_json(values["record"])})
