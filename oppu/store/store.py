"""A store knows who owns what: users' histories, their modules in versions, and base models.

On one machine it is a folder:

    oppu.db         SQLite: users, histories, profiles, one row per module version, checkpoints, bases, notes of puts
    modules/        <3 hex>/<32 hex of sha256(user id)>-<16 hex>/: two files in PEFT's format
    checkpoints/    <32 hex>-<16 hex>/: trainings under way; empty when nothing is
    bases/          base models, written by others

On more than one it is a PostgreSQL database and a URL for the files (docs/scale.md). Several processes may use one
store at once. Every error is a StoreError of one line without a password, and costs nothing that was stored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oppu.errors import StoreError
from oppu.model.module import Module
from oppu.records import HistoryItem
from oppu.store import bases, checkpoints, deletion, histories, modules, notes, profiles, transfer
from oppu.store.checkpoints import NewCheckpoint
from oppu.store.database import Database
from oppu.store.leftovers import settle_old_work_folders
from oppu.store.modules import NewModule
from oppu.store.opening import Opened, opened
from oppu.store.records import BaseRecord, Deleted, ModuleRecord, ProfileRecord

_OPENING_WAIT_MS = 200


class Store:
    """An open store. Close it, or use it in a `with` statement; threads may share it, forked processes may not."""

    def __init__(self, address: Path | str, files: str | None = None, *, read_only: bool = False) -> None:
        """Opens the store, makes it if it is not there, and ends what a killed process left half done.

        address: a folder; or postgresql://USER:PASSWORD@HOST/DATABASE with `files`, a URL (s3://BUCKET/PREFIX,
        file:///FOLDER). read_only: neither makes nor ends anything; what would write raises a StoreError.
        """
        self._opened: Opened = opened(address, files)
        self._place = self._opened.place
        self._database: Database = self._opened.database(read_only=read_only)
        if not read_only:
            self._end_what_was_left()

    @property
    def address(self) -> str:
        """With `files`, what opens this store in another process. It may hold a password: show `name` instead."""
        return self._opened.address

    @property
    def files(self) -> str | None:
        """Where module files and bases are, if not in the folder."""
        return self._opened.files

    @property
    def name(self) -> str:
        """The store, for messages: without a password."""
        return self._opened.name

    @property
    def folder(self) -> Path:
        """The folder of a store that is one; StoreError for one in a database."""
        if self._opened.folder is None:
            raise StoreError("is not a folder", where=self.name, fix="use `address` and `files`")
        return self._opened.folder

    def _end_what_was_left(self) -> None:
        try:
            if self._opened.folder is not None:
                settle_old_work_folders(self._database, self._opened.folder)
            notes.settle_dead_puts(self._database, self._place)
            deletion.finish_deletions(self._database, self._place)
            self._database.wipe(timeout_ms=_OPENING_WAIT_MS)  # a killed deletion may have left text in the log
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what users did

    def put_history(self, user_id: str, task: str, items: Sequence[HistoryItem]) -> None:
        """Replaces the history of the user in the task; an empty one makes the user known."""
        self.put_histories(task, {user_id: items})

    def put_histories(self, task: str, items_of: Mapping[str, Sequence[HistoryItem]]) -> None:
        """The same for many users, by user, in one transaction: all of them or none."""
        histories.put_histories(self._database, task, items_of)

    def history(self, user_id: str, task: str) -> tuple[HistoryItem, ...]:
        """The history as it was put. Empty for a user known by a module or another task; else UnknownUserError."""
        return histories.history(self._database, user_id, task)

    def users(self, task: str | None = None, *, after: str | None = None, limit: int | None = None) -> tuple[str, ...]:
        """Everyone of whom there is anything (in the task), sorted; or at most `limit` of those behind `after`."""
        return histories.users(self._database, task, after, limit)

    def knows(self, user_id: str, task: str | None = None) -> bool:
        """Whether the user has a history, a profile or a module (in the task)."""
        return histories.knows(self._database, user_id, task)

    # what is told of them

    def put_profiles(self, records: Sequence[ProfileRecord]) -> None:
        """Keeps profiles, each record in place of that of its user, task and way; one transaction, all or none."""
        profiles.put_profiles(self._database, records)

    def drop_profiles(self, task: str, made: str, users: Sequence[str]) -> None:
        """Removes what was told of these users for the task in this way; no error where there is nothing."""
        profiles.drop_profiles(self._database, task, made, users)

    def profiles(
        self, task: str, made: str | None = None, users: Sequence[str] | None = None
    ) -> tuple[ProfileRecord, ...]:
        """The profiles of a task (made in this way, of these users), by user and way."""
        return profiles.profiles(self._database, task, made, users)

    def ways_of_profiles(self, task: str) -> tuple[str, ...]:
        """In which ways the profiles of a task were made: every `ProfileRecord.made`."""
        return profiles.ways(self._database, task)

    # what is personal

    def put_module(
        self,
        module: Module,
        *,
        user_id: str,
        task: str,
        setting: str,
        base_name: str,
        base_fingerprint: str,
        training: Mapping[str, Any],
    ) -> ModuleRecord:
        """Keeps the module as the next version (1, 2, ...) of user, task, setting and base fingerprint; atomic.

        training: JSON on how it was made (config, seed, losses, fingerprint).
        """
        new = NewModule(module, user_id, task, setting, base_name, base_fingerprint, training)
        return self.put_modules([new])[0]

    def put_module_once(self, new: NewModule) -> tuple[ModuleRecord, bool]:
        """The same, unless the newest version has the fingerprint in `new.training` and is whole, whoever put it when.

        Returns the record of the module that is there now, and whether it is the new one. UnknownUserError where the
        user is not known (any more).
        """
        return modules.put_module_once(self._database, self._place, new)

    def put_modules(self, new: Sequence[NewModule]) -> tuple[ModuleRecord, ...]:
        """Keeps many modules, each as the next version of its own, in one transaction: all of them or none.

        For a bulk import, which is much faster so with small modules; a thousand at a time are a good number. Training
        commits each user by itself.
        """
        return modules.put_modules(self._database, self._place, new)

    def find_module(
        self,
        user_id: str,
        task: str,
        setting: str | None = None,
        base_fingerprint: str | None = None,
        version: int | None = None,
    ) -> ModuleRecord | None:
        """The newest module that fits what is given, or None."""
        return modules.find_module(self._database, self._place, user_id, task, setting, base_fingerprint, version)

    def modules(
        self, user_id: str | None = None, task: str | None = None, newest_only: bool = False
    ) -> tuple[ModuleRecord, ...]:
        """The modules (of a user, of a task), ordered by user, task, setting, base and version."""
        return modules.modules(self._database, self._place, user_id, task, newest_only)

    def load_module(self, record: ModuleRecord) -> Module:
        """The module of a record; StoreError unless size, sha256, names and shapes are all as they should be."""
        return modules.load_module(self._place, record)

    def export_module(self, record: ModuleRecord, folder: Path, module: Module | None = None) -> Path:
        """Writes a folder that `PeftModel.from_pretrained` loads, with oppu.json; it must not exist, or be empty.

        `module`: the same module in a form that PEFT knows, where its own kind is not PEFT's.
        """
        return transfer.export_module(self._place, record, folder, module)

    def import_module(
        self,
        folder: Path,
        *,
        user_id: str | None = None,
        task: str | None = None,
        setting: str | None = None,
        base_name: str | None = None,
        base_fingerprint: str | None = None,
        quantize: str | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> ModuleRecord:
        """Takes in an export, or any LoRA, IA3 or prompt tuning folder of PEFT, as the next version here.

        What is given goes before what oppu.json says; without oppu.json, user_id, task, setting and base_fingerprint
        must be given, and base_name where PEFT's config has none. `quantize`: how that base is rounded.
        """
        given = {
            "user_id": user_id, "task": task, "setting": setting,
            "base_name": base_name, "base_fingerprint": base_fingerprint, "quantize": quantize, "training": training,
        }  # fmt: skip
        module, known = transfer.read_export(folder, given)
        return self.put_module(module, **known)

    # what is under way

    def put_checkpoints(self, new: Sequence[NewCheckpoint]) -> None:
        """Keeps trainings under way, each in place of that of its user, task, setting and base; all or none, atomic.

        It goes when a module of its user, task, setting and base is put, and with the user. One of a user who is not
        known, or no longer, is not kept.
        """
        checkpoints.put_checkpoints(self._database, self._place, new)

    def checkpoint(
        self, user_id: str, task: str, setting: str, base_fingerprint: str, fingerprint: str
    ) -> bytes | None:
        """What was put last, if it is of the training with this fingerprint; StoreError where its file is damaged."""
        key = {"user_id": user_id, "task": task, "setting": setting, "base_fingerprint": base_fingerprint}
        return checkpoints.checkpoint(self._database, self._place, key, fingerprint)

    def drop_checkpoint(self, user_id: str, task: str, setting: str, base_fingerprint: str) -> None:
        """Removes it, if there is one."""
        key = {"user_id": user_id, "task": task, "setting": setting, "base_fingerprint": base_fingerprint}
        checkpoints.drop_checkpoint(self._database, self._place, key)

    def delete_user(self, user_id: str, task: str | None = None) -> Deleted:
        """Removes every module version, profile and history of the user (in the task), so that no file or row is left.

        A training under way goes with them. Retrieval indexes need no removal: they are made in memory from the
        history and never stored. Text is wiped from the database and its log too. Killed half-way, the user is hidden,
        and the next opening goes on. UnknownUserError for a stranger. A put that comes after the deletion makes the
        user known anew.
        """
        return deletion.delete_user(self._database, self._place, user_id, task)

    # what modules stand on

    def base_folder(self, name: str) -> Path:
        """Where the files of a base of this name are made, on this machine; written by others."""
        return bases.base_folder(self._place, name)

    def put_base(self, name: str, fingerprint: str, path: Path, record: Mapping[str, Any]) -> BaseRecord:
        """Registers a base, in place of one of the same name; record: JSON on how it was made.

        On object storage the files of the folder `path` are brought there.
        """
        return bases.put_base(self._database, self._place, name, fingerprint, path, record)

    def base(self, name: str) -> BaseRecord | None:
        """The base of this name, or None. From object storage its files are fetched once, into OPPU_CACHE."""
        return bases.base(self._database, self._place, name)

    def bases(self) -> tuple[BaseRecord, ...]:
        """All bases, by name; none is fetched."""
        return bases.bases(self._database, self._place)
