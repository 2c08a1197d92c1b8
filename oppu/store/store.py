"""A folder that knows who owns what: users' histories, their modules in versions, and base models.

    oppu.db     SQLite: users, histories, one row per module version, bases
    modules/    <2 hex>/<32 hex of sha256(user id)>/<task>/<setting>/<base>/v0001/: two files in PEFT's format
    bases/      base models, written by others
    tmp/        puts under way

Several processes may use one store at once. Every error is a StoreError of one line, and costs nothing that was stored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oppu.errors import StoreError
from oppu.model.module import Module
from oppu.records import HistoryItem
from oppu.store import bases, deletion, histories, modules, transfer
from oppu.store.database import Database
from oppu.store.files import make_folders, os_errors
from oppu.store.records import BaseRecord, Deleted, ModuleRecord

_OPENING_WAIT_MS = 200


class Store:
    """An open store. Close it, or use it in a `with` statement; threads may share it, forked processes may not."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Opens the store, makes it if it is not there, and ends what a killed process left half done.

        read_only: neither makes nor ends anything; what would write raises a StoreError.
        """
        self.folder = folder.absolute()
        if read_only and not self._database_path.is_file():
            raise StoreError("is no store", where=str(self.folder), fix="check the path")
        if not read_only:
            self._make_folders()
        self._database = Database(self._database_path, read_only=read_only)
        if not read_only:
            self._end_what_was_left()

    @property
    def _database_path(self) -> Path:
        return self.folder / "oppu.db"

    def _make_folders(self) -> None:
        with os_errors(self.folder):
            for name in ("modules", "bases", "tmp"):
                make_folders(self.folder / name)

    def _end_what_was_left(self) -> None:
        try:
            with os_errors(self.folder):
                modules.settle_dead_puts(self._database, self.folder)
                deletion.finish_deletions(self._database, self.folder)
            self._database.checkpoint(timeout_ms=_OPENING_WAIT_MS)  # a killed deletion may have left text in the log
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
        histories.put_history(self._database, user_id, task, items)

    def history(self, user_id: str, task: str) -> tuple[HistoryItem, ...]:
        """The history as it was put. Empty for a user known by a module or another task; else UnknownUserError."""
        return histories.history(self._database, user_id, task)

    def users(self, task: str | None = None) -> tuple[str, ...]:
        """Everyone with a history or a module (in the task), sorted."""
        return histories.users(self._database, task)

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
        return modules.put_module(
            self._database,
            self.folder,
            module,
            user_id=user_id,
            task=task,
            setting=setting,
            base_name=base_name,
            base_fingerprint=base_fingerprint,
            training=training,
        )

    def find_module(
        self,
        user_id: str,
        task: str,
        setting: str | None = None,
        base_fingerprint: str | None = None,
        version: int | None = None,
    ) -> ModuleRecord | None:
        """The newest module that fits what is given, or None."""
        return modules.find_module(self._database, self.folder, user_id, task, setting, base_fingerprint, version)

    def modules(
        self, user_id: str | None = None, task: str | None = None, newest_only: bool = False
    ) -> tuple[ModuleRecord, ...]:
        """The modules (of a user, of a task), ordered by user, task, setting, base and version."""
        return modules.modules(self._database, self.folder, user_id, task, newest_only)

    def load_module(self, record: ModuleRecord) -> Module:
        """The module of a record; StoreError unless size, sha256, names and shapes are all as they should be."""
        return modules.load_module(record)

    def export_module(self, record: ModuleRecord, folder: Path, module: Module | None = None) -> Path:
        """Writes a folder that `PeftModel.from_pretrained` loads, with oppu.json; it must not exist, or be empty.

        `module`: the same module in a form that PEFT knows, where its own kind is not PEFT's.
        """
        return transfer.export_module(record, folder, module)

    def import_module(
        self,
        folder: Path,
        *,
        user_id: str | None = None,
        task: str | None = None,
        setting: str | None = None,
        base_name: str | None = None,
        base_fingerprint: str | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> ModuleRecord:
        """Takes in an export, or any LoRA, IA3 or prompt tuning folder of PEFT, as the next version here.

        What is given goes before what oppu.json says; without oppu.json, user_id, task, setting and base_fingerprint
        must be given, and base_name where PEFT's config has none.
        """
        given = {
            "user_id": user_id, "task": task, "setting": setting,
            "base_name": base_name, "base_fingerprint": base_fingerprint, "training": training,
        }  # fmt: skip
        module, known = transfer.read_export(folder, given)
        return self.put_module(module, **known)

    def delete_user(self, user_id: str, task: str | None = None) -> Deleted:
        """Removes every module version and the history of the user (in the task), so that no file or row is left.

        Retrieval indexes need no removal: they are made in memory from the history and never stored. Text is wiped
        from the database and its log too. Killed half-way, the user is hidden, and the next opening goes on.
        UnknownUserError for a stranger. A put that comes after the deletion makes the user known anew.
        """
        return deletion.delete_user(self._database, self.folder, user_id, task)

    # what modules stand on

    def base_folder(self, name: str) -> Path:
        """Where the files of a base of this name belong, under bases/; made and written by others."""
        return bases.base_folder(self.folder, name)

    def put_base(self, name: str, fingerprint: str, path: Path, record: Mapping[str, Any]) -> BaseRecord:
        """Registers a base, in place of one of the same name; record: JSON on how it was made."""
        return bases.put_base(self._database, self.folder, name, fingerprint, path, record)

    def base(self, name: str) -> BaseRecord | None:
        """The base of this name, or None."""
        return bases.base(self._database, self.folder, name)

    def bases(self) -> tuple[BaseRecord, ...]:
        """All bases, by name."""
        return bases.bases(self._database, self.folder)
