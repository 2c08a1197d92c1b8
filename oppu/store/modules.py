"""Modules: a folder of two files, and the row that says whose it is.

A put writes into a work folder under `tmp/`, then, under the write lock: row inserted, folder renamed to its place,
row committed. Killed before the rename it leaves a work folder; killed after it, a folder without a row, which the work
folder names. `settle` clears both, and the older versions are never touched.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select

from oppu.errors import OppuError, StoreError
from oppu.model.module import CONFIG, WEIGHTS, Module, check_module, read_module, write_module
from oppu.store.database import ConflictError, Database, utc_now
from oppu.store.files import (
    is_garbage,
    make_folders,
    os_errors,
    remove_tree,
    sha256_of,
    sync_folder,
    sync_tree,
    temporary_name,
)
from oppu.store.histories import claim
from oppu.store.names import check_names, from_json, module_folder, to_json
from oppu.store.records import ModuleRecord
from oppu.store.schema import MODULES, USERS

_ATTEMPTS = 5
_MODULE_FOLDER = re.compile(r"modules/[0-9a-f]{2}/[0-9a-f]{32}/[^/]+/[^/]+/[0-9a-f]{12}/v\d{4,}")


def put_module(
    database: Database,
    folder: Path,
    module: Module,
    *,
    user_id: str,
    task: str,
    setting: str,
    base_name: str,
    base_fingerprint: str,
    training: Mapping[str, Any],
) -> ModuleRecord:
    """Keeps `module` as the next version of (user_id, task, setting, base_fingerprint)."""
    check_names(user_id=user_id, task=task, setting=setting, base_name=base_name, base_fingerprint=base_fingerprint)
    values: dict[str, Any] = {"user_id": user_id, "task": task, "setting": setting, "base_name": base_name}
    values |= {"base_fingerprint": base_fingerprint, "training": to_json("the training record", dict(training))}
    check_module(module, where=f"the module of user '{user_id}' for {task}")
    with os_errors(folder), _work_folder(database, folder) as work:
        write_module(module, work / "module")
        sync_tree(work)
        files = work / "module" / CONFIG, work / "module" / WEIGHTS
        values |= {"size_bytes": sum(file.stat().st_size for file in files), "sha256": sha256_of(*files)}
        return _publish(database, folder, work, values)


def find_module(
    database: Database,
    folder: Path,
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
        records = [_record(folder, row) for row in connection.execute(query)]
    # within one setting and base the version counts, not the clock, which may have been set back
    return max(_newest(records), key=lambda record: record.created, default=None)


def modules(
    database: Database, folder: Path, user_id: str | None = None, task: str | None = None, newest_only: bool = False
) -> tuple[ModuleRecord, ...]:
    """The records, ordered by user, task, setting, base and version."""
    query = _visible()
    if user_id is not None:
        query = query.where(MODULES.c.user_id == user_id)
    if task is not None:
        query = query.where(MODULES.c.task == task)
    with database.reading() as connection:
        records = [_record(folder, row) for row in connection.execute(query)]
    return tuple(_newest(records) if newest_only else records)


def load_module(record: ModuleRecord) -> Module:
    """The module, after its size and digest were found to be the record's."""
    fix = "restore it from an export, or train the module again"
    with os_errors(record.path):
        if not record.path.is_dir():
            raise StoreError("the module's folder is gone", where=str(record.path), fix=fix)
        names = {path.name for path in record.path.iterdir()}
        if names != {CONFIG, WEIGHTS}:
            what = f"holds {', '.join(sorted(names)) or 'nothing'} instead of {CONFIG} and {WEIGHTS}"
            raise StoreError(what, where=str(record.path), fix=fix)
        files = record.path / CONFIG, record.path / WEIGHTS
        size_bytes = sum(file.stat().st_size for file in files)
        if size_bytes != record.size_bytes:
            what = f"its files have {size_bytes} bytes instead of {record.size_bytes}"
            raise StoreError(what, where=str(record.path), fix=fix)
        if sha256_of(*files) != record.sha256:
            raise StoreError("its files are not the ones that were put", where=str(record.path), fix=fix)
    return read_module(record.path)


def settle_dead_puts(database: Database, folder: Path) -> None:
    """Clears what the puts of dead processes left under `tmp/`."""
    for work in (folder / "tmp").iterdir():
        if is_garbage(work):
            settle(database, folder, work)


def settle(database: Database, folder: Path, work: Path) -> None:
    """Ends a put that was interrupted: a folder that has its place but no row goes, and so does the work folder."""
    path = _place_of(work)
    if path is not None:
        with database.writing() as connection:
            if not _has_row(connection, path):
                remove_tree(folder / path, root=folder / "modules")
    shutil.rmtree(work, ignore_errors=True)


def _place_of(work: Path) -> str | None:
    """Where the work folder's module went; None if it did not, or if another process has cleared the work folder."""
    with suppress(FileNotFoundError):
        path = (work / "target").read_text(encoding="ascii")
        if not (work / "module").exists() and _MODULE_FOLDER.fullmatch(path):
            return path
    return None


@contextmanager
def _work_folder(database: Database, folder: Path) -> Iterator[Path]:
    work = folder / "tmp" / temporary_name("put")
    work.mkdir()
    try:
        yield work
    except BaseException:
        with suppress(OppuError, OSError):  # what cannot be cleared now, the next opening clears
            settle(database, folder, work)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _publish(database: Database, folder: Path, work: Path, values: dict[str, Any]) -> ModuleRecord:
    """Gives the work folder's module its version, its row and its place."""
    for _ in range(_ATTEMPTS):
        with suppress(ConflictError), database.writing() as connection:
            claim(connection, values["user_id"], values["task"])
            row = values | {"version": _next_version(connection, values), "created": utc_now()}
            path = str(module_folder(**{name: row[name] for name in _KEY}))
            connection.execute(insert(MODULES).values(**row, path=path))
            _rename(folder, work, path)
            return ModuleRecord(**row | {"path": folder / path, "training": from_json(row["training"])})
    raise StoreError("other processes kept taking the version", where=str(folder), fix="run it again")


def _rename(folder: Path, work: Path, path: str) -> None:
    """Moves the module to its place; `target` is on disk first, so that a crash right after can be undone."""
    (work / "target").write_text(path, encoding="ascii")
    sync_tree(work)
    target = folder / path
    if target.exists():  # no row has this path, and the lock is ours: left by a put that died
        shutil.rmtree(target)
    make_folders(target.parent)
    os.rename(work / "module", target)
    sync_folder(target.parent)


_KEY = ("user_id", "task", "setting", "base_fingerprint", "version")


def _next_version(connection: Connection, values: Mapping[str, Any]) -> int:
    same = [MODULES.c[name] == values[name] for name in _KEY if name != "version"]
    return int(connection.scalar(select(func.max(MODULES.c.version)).where(*same)) or 0) + 1


def _has_row(connection: Connection, path: str) -> bool:
    return connection.scalar(select(MODULES.c.version).where(MODULES.c.path == path)) is not None


def _visible() -> Select[Any]:
    """Rows of users that are not being deleted, in order."""
    join = (USERS.c.user_id == MODULES.c.user_id) & (USERS.c.task == MODULES.c.task)
    return select(MODULES).join(USERS, join).where(USERS.c.deleting.is_(False)).order_by(*MODULES.primary_key)


def _newest(records: list[ModuleRecord]) -> list[ModuleRecord]:
    """The last version of each user, task, setting and base; `records` come in order."""
    return list({(r.user_id, r.task, r.setting, r.base_fingerprint): r for r in records}.values())


def _record(folder: Path, row: Row[Any]) -> ModuleRecord:
    values = dict(row._mapping)
    return ModuleRecord(**values | {"path": folder / values["path"], "training": from_json(values["training"])})
