"""Base models: a name, a fingerprint, where it lies and how it was made. Its files are written by others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, insert, select

from oppu.store import notes
from oppu.store.database import Database, utc_now
from oppu.store.names import check_names, from_json, new_base_folder, to_json
from oppu.store.places import Manifest, Place
from oppu.store.records import BaseRecord
from oppu.store.schema import BASES


def base_folder(place: Place, name: str) -> Path:
    """Where a base of this name is made; the name never leads out of the folder of bases."""
    check_names(name=name)
    return place.base_folder(name)


def put_base(
    database: Database, place: Place, name: str, fingerprint: str, folder: Path, record: Mapping[str, Any]
) -> BaseRecord:
    """Registers a base, in place of one of the same name; on object storage its files are brought there first."""
    check_names(name=name, fingerprint=fingerprint)
    row = {"name": name, "fingerprint": fingerprint, "record": to_json("the base's record", dict(record))}
    kept = place.base_path(folder)
    if kept is not None:
        _replace(database, row | {"path": kept, "files": "{}"})
    else:
        path = new_base_folder(name)
        with notes.noted(database, place, [path]) as token:
            manifest = place.write_base(path, folder)
            old = _replace(database, row | {"path": path, "files": json.dumps(manifest)}, token)
        if old is not None:
            notes.settle(database, place, old)
    (found,) = (each for each in bases(database, place) if each.name == name)
    return found


def base(database: Database, place: Place, name: str) -> BaseRecord | None:
    """The base of this name with its files on this machine, or None."""
    with database.reading() as connection:
        row = connection.execute(select(BASES).where(BASES.c.name == name)).first()
    return None if row is None else _record(place, row, fetch=True)


def bases(database: Database, place: Place) -> tuple[BaseRecord, ...]:
    """All bases, by name."""
    with database.reading() as connection:
        rows = connection.execute(select(BASES).order_by(BASES.c.name)).all()
    return tuple(_record(place, row, fetch=False) for row in rows)


def _replace(database: Database, row: dict[str, Any], token: str | None = None) -> str | None:
    """Commits the row. With files of its own, the token of a note of the old ones, which are to go now."""
    with database.writing() as connection:
        if token is not None:
            notes.end(connection, token)
        old = connection.scalar(select(BASES.c.path).where(BASES.c.name == row["name"]).with_for_update())
        connection.execute(delete(BASES).where(BASES.c.name == row["name"]))
        connection.execute(insert(BASES).values(**row, created=utc_now()))
        if token is None or old is None:
            return None
        return notes.make(connection, database.maker(), [old])


def _record(place: Place, row: Row[Any], *, fetch: bool) -> BaseRecord:
    values = dict(row._mapping)
    manifest: Manifest = {name: (size, digest) for name, (size, digest) in from_json(values.pop("files")).items()}
    path = place.local_base(values["path"], manifest, fetch=fetch)
    return BaseRecord(**values | {"path": path, "record": from_json(values["record"])})
