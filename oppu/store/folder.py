"""Files in a folder: of this machine, or of a file system that all machines have mounted."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from oppu.errors import StoreError
from oppu.store.files import make_folders, os_errors, remove_tree, sync_file_system, sync_folder, sync_tree
from oppu.store.names import path_part
from oppu.store.places import Manifest

_MANY = 8
"""From so many folders on, syncing the file system once costs less than syncing each file."""


class Folder:
    """A Place in the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.root)

    def make(self) -> None:
        """The folders of modules and bases."""
        with os_errors(self.root):
            for name in ("modules", "bases"):
                make_folders(self.root / name)

    def shown(self, path: str) -> Path:
        """The folder's own path."""
        return self.root / path

    def write(self, folders: Mapping[str, Mapping[str, bytes]]) -> None:
        """Files, then the folders that name them, are synced."""
        with os_errors(self.root):
            for path, files in folders.items():
                target = self.root / path
                target.mkdir(parents=True)
                for name, data in files.items():
                    (target / name).write_bytes(data)
            if len(folders) < _MANY or not sync_file_system(self.root):
                for path in folders:
                    sync_tree(self.root / path)
                for parent in {(self.root / path).parent for path in folders}:
                    sync_folder(parent)
                    sync_folder(parent.parent)

    def read(self, path: str, names: Sequence[str]) -> dict[str, bytes]:
        """The files, where the folder holds these and no others."""
        folder, fix = self.root / path, "restore it from an export, or train the module again"
        with os_errors(folder):
            if not folder.is_dir():
                raise StoreError("the module's folder is gone", where=str(folder), fix=fix)
            found = set(os.listdir(folder))
            if found != set(names):
                what = f"holds {', '.join(sorted(found)) or 'nothing'} instead of {' and '.join(names)}"
                raise StoreError(what, where=str(folder), fix=fix)
            return {name: (folder / name).read_bytes() for name in names}

    def remove(self, paths: Sequence[str]) -> None:
        """The folders of the first level stay: another process may be about to write into one that is empty now."""
        with os_errors(self.root):
            for path in paths:
                folder = self.root / path
                if folder.parent.is_dir():
                    remove_tree(folder, root=self.root.joinpath(*Path(path).parts[:2]))

    def base_folder(self, name: str) -> Path:
        """Under bases/, where it stays."""
        return self.root / "bases" / path_part(name)

    def base_path(self, folder: Path) -> str | None:
        """Relative where it lies in here, so that it moves with the store."""
        place = folder.absolute()
        return str(place.relative_to(self.root) if place.is_relative_to(self.root) else place)

    def write_base(self, path: str, folder: Path) -> Manifest:
        """Only needed where base_path says None."""
        shutil.copytree(folder, self.root / path)
        return {}

    def local_base(self, path: str, manifest: Manifest, *, fetch: bool) -> Path:
        """Where it is."""
        return self.root / path
