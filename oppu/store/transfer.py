"""Modules out of the store and into it: a folder that PEFT loads, with `oppu.json` beside it saying whose it is."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from oppu.errors import StoreError
from oppu.model.module import CONFIG, WEIGHTS, Module, module_files, module_of, read_module
from oppu.store.files import make_folders, os_errors, sha256_of, sync_folder, sync_tree, temporary_name
from oppu.store.modules import read_files
from oppu.store.places import Place
from oppu.store.records import ModuleRecord

CARD = "oppu.json"
_FORMAT = 1


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sha256: str
    size_bytes: int


class _Card(BaseModel):
    """What oppu.json says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    user_id: str
    task: str
    setting: str
    base_name: str
    base_fingerprint: str
    version: int
    created: str
    training: dict[str, Any]
    files: dict[str, _File]


def export_module(place: Place, record: ModuleRecord, folder: Path, module: Module | None = None) -> Path:
    """Writes the module into `folder`, which must not exist or be empty; it appears whole or not at all.

    `module`: what to write instead of the stored files.
    """
    files = read_files(place, record)
    module_of(files, where=str(record.path))  # names and shapes, too, are as they should be
    if module is not None:
        files = module_files(module, where=str(folder))
    target = folder.absolute()
    with os_errors(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise StoreError("is there already", where=str(target), fix="give a new or an empty folder")
        make_folders(target.parent)
        work = target.parent / temporary_name(target.name)
        work.mkdir()
        try:
            for name, data in files.items():
                (work / name).write_bytes(data)
            (work / CARD).write_text(_card(record, work).model_dump_json(indent=2) + "\n", encoding="utf-8")
            sync_tree(work)
            os.rename(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        sync_folder(target.parent)
    return target


def read_export(folder: Path, given: Mapping[str, Any]) -> tuple[Module, dict[str, Any]]:
    """The module in `folder` and what put_module needs to know of it: from oppu.json, `given` values (not None) first.

    A plain PEFT folder has no oppu.json; then the values must be given, but for base_name, which PEFT's config says.
    """
    known: dict[str, Any] = {"training": {}}
    with os_errors(folder):
        card = _read_card(folder) if (folder / CARD).exists() else None
        if card is not None:
            _check_files(folder, card)
            known = {name: getattr(card, name) for name in _KNOWN}
        module = read_module(folder)
    known.setdefault("base_name", module.config.get("base_model_name_or_path"))
    known |= {name: given[name] for name in _KNOWN if given.get(name) is not None}
    if given.get("training") is None:
        known["training"] = _still_true(known["training"], given)
    missing = [name for name in _KNOWN if known.get(name) is None]
    if missing:
        raise StoreError(f"no {CARD} says {', '.join(missing)}", where=str(folder), fix=f"give {', '.join(missing)}")
    return module, known


def _still_true(training: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says of the training, without what a given value takes the place of."""
    replaced = {"task": "task", "setting": "setting", "base_fingerprint": "quantize"}
    gone = {replaced[name] for name in replaced if given.get(name) is not None}
    rounded = {"quantize": given["quantize"]} if given.get("quantize") is not None else {}
    return {name: value for name, value in training.items() if name not in gone} | rounded


_KNOWN = ("user_id", "task", "setting", "base_name", "base_fingerprint", "training")


def _card(record: ModuleRecord, folder: Path) -> _Card:
    files = {
        name: _File(sha256=sha256_of(folder / name), size_bytes=(folder / name).stat().st_size)
        for name in (CONFIG, WEIGHTS)
    }
    known = {name: getattr(record, name) for name in _KNOWN}
    return _Card(
        **known | {"training": dict(record.training)},
        format=_FORMAT,
        version=record.version,
        created=record.created,
        files=files,
    )


def _read_card(folder: Path) -> _Card:
    path = folder / CARD
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError("is no valid JSON", where=str(path), fix="export the module again") from error
    if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > _FORMAT:
        raise StoreError(f"has format {found['format']}, made by a newer oppu", where=str(path), fix="update oppu")
    try:
        return _Card.model_validate(found)
    except ValidationError as error:
        problems = ", ".join(f"{'.'.join(map(str, e['loc']))} ({e['msg']})" for e in error.errors())
        raise StoreError(f"cannot be used: {problems}", where=str(path), fix="export the module again") from error


def _check_files(folder: Path, card: _Card) -> None:
    """The files must be the ones that were exported."""
    for name in (CONFIG, WEIGHTS):
        path, listed = folder / name, card.files.get(name)
        if not path.exists():
            raise StoreError("is missing", where=str(path), fix="export the module again")
        size_bytes = path.stat().st_size
        if listed is None or (size_bytes, sha256_of(path)) != (listed.size_bytes, listed.sha256):
            what = f"is not the file that {CARD} describes"
            raise StoreError(
                what, where=str(path), fix=f"export the module again, or remove {CARD} and say whose it is"
            )
