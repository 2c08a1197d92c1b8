"""Modules of lessons, finished and under way, in a study's folder: a killed study goes on where it stood.

They stay until others are trained, or the study is finished: its measurements hold answers, not modules. Where a disk
fails the study goes on, and it is said.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from oppu.errors import ModelError, StoreError
from oppu.evaluate.under_way import FOLDER
from oppu.store.files import make_folders, os_errors, write_atomically

if TYPE_CHECKING:
    from oppu.model.checkpoint import Checkpoint
    from oppu.model.module import Module

_CHECKPOINT = "checkpoint.safetensors"
_LOG = logging.getLogger("oppu.evaluate")


class Kept:
    """Of each training its module or its checkpoint, by its key: over everything that decides the module."""

    def __init__(self, out: Path) -> None:
        """`out`: the study's folder."""
        self._folder = out / FOLDER

    def module(self, key: str) -> "Module | None":
        """The finished module; a damaged one does not count."""
        from oppu.model.module import CONFIG, WEIGHTS, module_of

        folder = self._of(key)
        try:
            return module_of({name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}, where=str(folder))
        except FileNotFoundError:
            return None
        except (OSError, StoreError) as error:
            _LOG.warning("%s: the module cannot be used, so it is trained again (%s)", folder, error)
            return None

    def begun(self, key: str) -> "Checkpoint | None":
        """Where the training was interrupted; a damaged checkpoint does not count."""
        from oppu.model.checkpoint import read_checkpoint

        file = self._of(key) / _CHECKPOINT
        try:
            return read_checkpoint(file.read_bytes(), _digest(key)) if file.is_file() else None
        except (OSError, ModelError) as error:
            _LOG.warning("%s: the checkpoint cannot be used, so the training begins anew (%s)", file, error)
            return None

    def put_module(self, key: str, module: "Module") -> None:
        """A finished module, in place of its checkpoint."""
        from oppu.model.module import module_files

        def write() -> None:
            for name, data in module_files(module, where=str(self._of(key))).items():
                self._write(key, name, data)
            (self._of(key) / _CHECKPOINT).unlink(missing_ok=True)

        self._try(write)

    def put_checkpoint(self, key: str, checkpoint: "Checkpoint") -> None:
        """A training under way."""
        from oppu.model.checkpoint import checkpoint_bytes

        self._try(lambda: self._write(key, _CHECKPOINT, checkpoint_bytes(checkpoint, _digest(key))))

    def forget_others(self, keys: Iterable[str]) -> None:
        """Keep what is of these keys alone."""
        wanted = {self._of(key) for key in keys}
        for folder in self._folder.glob("*/"):
            if folder not in wanted:
                shutil.rmtree(folder, ignore_errors=True)

    def seconds(self, of: str) -> float:
        """Of training, spent before on a measurement that was interrupted; 0 where it was another one."""
        try:
            found = json.loads((self._folder / "seconds.json").read_bytes())
            return float(found["seconds"]) if found["of"] == _digest(of) else 0.0
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def put_seconds(self, of: str, seconds: float) -> None:
        """Spent so far on the measurement."""
        text = json.dumps({"of": _digest(of), "seconds": seconds}).encode()
        self._try(lambda: write_atomically(self._folder / "seconds.json", text))

    def _of(self, key: str) -> Path:
        return self._folder / _digest(key)[:24]

    def _write(self, key: str, name: str, data: bytes) -> None:
        make_folders(self._of(key))
        write_atomically(self._of(key) / name, data)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            with os_errors(self._folder):
                make_folders(self._folder)
                write()
        except StoreError as error:
            _LOG.warning("what is under way cannot be kept; the study goes on (%s)", error.line())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
