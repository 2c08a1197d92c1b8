"""Where module files and bases lie: a folder (folder.py) or object storage (objects.py), behind one protocol.

A path is relative to the place, and is new at every put: nothing is ever written over. So a reader finds a module whole
or not at all, without a rename, which object storage does not have.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from oppu.errors import StoreError

Manifest = Mapping[str, tuple[int, str]]
"""Files of a base by name: bytes, sha256."""

CHECKPOINT = "checkpoint.safetensors"
"""The one file of a training under way."""


class Place(Protocol):
    """Keeps folders of files. Every error is a StoreError."""

    @property
    def where(self) -> str:
        """The place, as messages name it: without a password."""

    def make(self) -> None:
        """Makes what must be there before the first put."""

    def shown(self, path: str) -> Path | str:
        """A folder as records name it."""

    def write(self, folders: Mapping[str, Mapping[str, bytes]]) -> None:
        """Writes folders of files, by path and name; when this returns, they survive a loss of power."""

    def read(self, path: str, names: Sequence[str]) -> dict[str, bytes]:
        """The files of a folder; StoreError where one is missing, or where others lie beside them."""

    def remove(self, paths: Sequence[str]) -> None:
        """Removes folders with all that is in them; those that are gone already are no error."""

    def base_folder(self, name: str) -> Path:
        """The folder of this machine in which a base is made."""

    def base_path(self, folder: Path) -> str | None:
        """How a row names a base made in `folder`; None: it must be brought here (`write_base`)."""

    def write_base(self, path: str, folder: Path) -> Manifest:
        """Brings the files of `folder` here."""

    def local_base(self, path: str, manifest: Manifest, *, fetch: bool) -> Path:
        """The base's folder on this machine; fetched once, if it shall be, and checked against the manifest."""


def open_place(address: str) -> Place:
    """The place of a URL or of an absolute folder that all machines have mounted."""
    from oppu.store.folder import Folder
    from oppu.store.objects import Objects

    if address.startswith("file://"):
        address = address.removeprefix("file://")
    if "://" in address:
        return Objects(address)
    if not address.startswith("/"):
        fix = "give a URL like s3://BUCKET/PREFIX, or file:///FOLDER for a folder that all machines have mounted"
        raise StoreError("is no place for files", where=address, fix=fix)
    return Folder(Path(address))
