"""Modules: a folder of two files, and the row that says whose it is.

A put notes the folders that it is about to write, writes them, and then, in one transaction, inserts the rows and
removes the note: the row is the commit point. Killed before, it leaves a note and folders without rows, which `notes`
clears; the older versions are never touched. The same transaction ends the training's checkpoint, if there is one, and
can find that the module is there already, put by another process: then the new files go.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select

from oppu.errors import StoreError
from oppu.model.module import CONFIG, WEIGHTS, Module, module_files, module_of
from oppu.store import checkpoints, notes
from oppu.store.database import ConflictError, Database, utc_now
from oppu.store.histories import claim, cut, unknown_user
from oppu.store.names import check_names, from_json, new_module_folder, to_json
from oppu.store.places import Place
from oppu.store.records import ModuleRecord
from oppu.store.schema import MODULES, USERS

_ATTEMPTS = 5
_KEY = checkpoints.KEY


@dataclass(frozen=True, slots=True)
class NewModule:
    """A module to be put, and whose it is."""

    module: Module
    user_id: str
    task: str
    setting: str
    base_name: str
    base_fingerprint: str
    training: Mapping[str, Any]
    """JSON on how it was made (config, seed, losses, fingerprint)."""


def put_modules(database: Database, place: Place, new: Sequence[NewModule]) -> tuple[ModuleRecord, ...]:
    """Keeps each module as the next version of (user_id, task, setting, base_fingerprint): all of them or none."""
    return tuple(record for record, _ in _put(database, place, new, once=False) if record) if new else ()


def put_module_once(database: Database, place: Place, new: NewModule) -> tuple[ModuleRecord, bool]:
    """The same for one module, unless the newest version has its training's fingerprint and is not damaged.

    Returns the record of the module that is there now, and whether it is the new one. UnknownUserError for a user of
    whom nothing is known: who was deleted while the module was trained stays deleted.
    """
    ((record, is_new),) = _put(database, place, [new], once=True)
    if record is None:
        raise unknown_user(new.user_id, new.task)
    return record, is_new


def find_module(
    database: Database,
    place: Place,
    user_id: str,
    task: str,
    setting: str | None = None,
    base_fingerprint: str | None = None,
    version: int | None = None,
) -> ModuleRecord | None:
    """The newest module that fits, or None."""
    query = _visible().where(MODULES.c.user_id == user_id, MODULES.c.task == task)
    if setting is not None:
        query = query.where(MODULES.c.setting == setting)
    if base_fingerprint is not None:
        query = query.where(MODULES.c.base_fingerprint == base_fingerprint)
    if version is not None:
        query = query.where(MODULES.c.version == version)
    with database.reading() as connection:
        records = [_record(place, row) for row in connection.execute(query)]
    # within one setting and base the version counts, not the clock, which may have been set back
    return max(_newest(records), key=lambda record: record.created, default=None)


def modules(
    database: Database, place: Place, user_id: str | None = None, task: str | None = None, newest_only: bool = False
) -> tuple[ModuleRecord, ...]:
    """The records, ordered by user, task, setting, base and version."""
    query = _visible()
    if user_id is not None:
        query = query.where(MODULES.c.user_id == user_id)
    if task is not None:
        query = query.where(MODULES.c.task == task)
    with database.reading() as connection:
        records = [_record(place, row) for row in connection.execute(query)]
    return tuple(_newest(records) if newest_only else records)


def read_files(place: Place, record: ModuleRecord) -> dict[str, bytes]:
    """The module's two files by name, after size and digest were found to be the record's."""
    fix = "restore it from an export, or train the module again"
    files = place.read(record.location, (CONFIG, WEIGHTS))
    size_bytes, digest = _size_and_digest(files)
    if size_bytes != record.size_bytes:
        what = f"its files have {size_bytes} bytes instead of {record.size_bytes}"
        raise StoreError(what, where=str(record.path), fix=fix)
    if digest != record.sha256:
        raise StoreError("its files are not the ones that were put", where=str(record.path), fix=fix)
    return files


def load_module(place: Place, record: ModuleRecord) -> Module:
    """The module, after size, digest, names and shapes were all found to be as they should be."""
    return module_of(read_files(place, record), where=str(record.path))


def _put(
    database: Database, place: Place, new: Sequence[NewModule], *, once: bool
) -> list[tuple[ModuleRecord | None, bool]]:
    """For each the record of the module that is there now, and whether it is the new one; None: its user is unknown."""
    found = [_prepared(each) for each in new]
    rows = [row for row, _ in found]
    with notes.noted(database, place, [row["path"] for row in rows]) as token:
        place.write({row["path"]: files for row, files in found})
        committed, left = _commit(database, place, token, rows, once=once)
    checkpoints.settle_quietly(database, place, left)
    pairs = zip(rows, committed, strict=True)
    return [
        (None, False) if there is None else (_put_record(place, there), there["path"] == row["path"])
        for row, there in pairs
    ]


def _prepared(new: NewModule) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The row, but for version and time, and the files."""
    values: dict[str, Any] = {name: getattr(new, name) for name in (*_KEY, "base_name")}
    check_names(**values)
    training = to_json("the training record", dict(new.training))
    files = module_files(new.module, where=f"the module of user '{new.user_id}' for {new.task}")
    size_bytes, digest = _size_and_digest(files)
    path = new_module_folder(new.user_id)
    return values | {"training": training, "size_bytes": size_bytes, "sha256": digest, "path": path}, files


def _size_and_digest(files: Mapping[str, bytes]) -> tuple[int, str]:
    digest = hashlib.sha256(files[CONFIG])
    digest.update(files[WEIGHTS])
    return len(files[CONFIG]) + len(files[WEIGHTS]), digest.hexdigest()


def _commit(
    database: Database, place: Place, token: str, rows: Sequence[dict[str, Any]], *, once: bool
) -> tuple[list[dict[str, Any] | None], str | None]:
    """Inserts the rows with their versions, and removes the note, in one transaction.

    once: not those whose module is there, whose row is returned instead, nor those of users who are not known, for whom
    None is. The second value: the token of a note of the files that are of no use any more, if there are some.
    """
    for _ in range(_ATTEMPTS):
        with suppress(ConflictError), database.writing() as connection:
            notes.end(connection, token)
            whose = {(row["user_id"], row["task"]) for row in rows}
            if once:
                whose &= checkpoints.known_of(connection, rows)
            else:
                claim(connection, sorted(whose))
            kept = [row for row in rows if (row["user_id"], row["task"]) in whose]
            there = _there_already(connection, place, kept) if once else {}
            added = _numbered(connection, [row for row in kept if row["path"] not in there])
            if added:
                connection.execute(insert(MODULES), added)
            unwanted = [row["path"] for row in rows if row not in kept]
            gone = [*unwanted, *there, *checkpoints.take_away(connection, rows)]
            committed = there | {row["path"]: row for row in added}
            left = notes.make(connection, database.maker(), gone) if gone else None
            return [committed.get(row["path"]) for row in rows], left
    raise StoreError("other processes kept taking the version", where=database.dialect.where, fix="run it again")


def _there_already(connection: Connection, place: Place, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the path of a new row, the newest row of its key, if that is of the same training and its files are whole."""
    found = {}
    for row in rows:
        mine = select(MODULES).where(*(MODULES.c[name] == row[name] for name in _KEY))
        newest = connection.execute(mine.order_by(MODULES.c.version.desc()).limit(1)).first()
        fingerprint = from_json(row["training"]).get("fingerprint")
        if newest is None or fingerprint is None or from_json(newest.training).get("fingerprint") != fingerprint:
            continue
        with suppress(StoreError):  # a damaged one is replaced
            load_module(place, _record(place, newest))
            found[row["path"]] = dict(newest._mapping)
    return found


def _numbered(connection: Connection, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the time and their versions; their users' rows are locked."""
    taken, created, numbered = _versions(connection, rows), utc_now(), []
    for row in rows:
        key = tuple(row[name] for name in _KEY)
        taken[key] = taken.get(key, 0) + 1
        numbered.append(row | {"version": taken[key], "created": created})
    return numbered


def _versions(connection: Connection, rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], int]:
    """The last version of each user, task, setting and base, where there is one."""
    columns = [MODULES.c[name] for name in _KEY]
    found: dict[tuple[str, ...], int] = {}
    for task in {row["task"] for row in rows}:
        for some in cut(sorted({row["user_id"] for row in rows if row["task"] == task})):
            mine = MODULES.c.user_id.in_(some), MODULES.c.task == task
            query = select(*columns, func.max(MODULES.c.version)).where(*mine).group_by(*columns)
            found |= {tuple(key): version for *key, version in connection.execute(query)}
    return found


def _visible() -> Select[Any]:
    """Rows of users that are not being deleted, in order."""
    join = (USERS.c.user_id == MODULES.c.user_id) & (USERS.c.task == MODULES.c.task)
    return select(MODULES).join(USERS, join).where(USERS.c.deleting.is_(False)).order_by(*MODULES.primary_key)


def _newest(records: list[ModuleRecord]) -> list[ModuleRecord]:
    """The last version of each user, task, setting and base; `records` come in order."""
    return list({(r.user_id, r.task, r.setting, r.base_fingerprint): r for r in records}.values())


def _record(place: Place, row: Row[Any]) -> ModuleRecord:
    return _put_record(place, dict(row._mapping))


def _put_record(place: Place, row: Mapping[str, Any]) -> ModuleRecord:
    changed = {"location": row["path"], "path": place.shown(row["path"]), "training": from_json(row["training"])}
    return ModuleRecord(**dict(row) | changed)
