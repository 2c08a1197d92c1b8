"""Files on object storage, or whatever else fsspec reaches by a URL: s3://, gs://, az://, sftp://, ...

An object appears whole or not at all, and no list of objects is ever asked for: rows and notes name all that there is.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from oppu.errors import ConfigError, OppuError, StoreError
from oppu.model.embedded import cache_folder
from oppu.store.files import os_errors, sync_tree
from oppu.store.names import path_part
from oppu.store.places import CHECKPOINT, Manifest

_REFUSED = {
    "memory": "is forgotten when the process ends",
    "http": "cannot be written",
    "https": "cannot be written",
}
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Objects:
    """A Place behind a URL. The URL's own library finds keys and endpoint in the environment, as its manual says."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        scheme = url.split("://")[0]
        if scheme in _REFUSED:
            raise StoreError(
                f"'{scheme}' {_REFUSED[scheme]}", where=self.where, fix="use s3://BUCKET/PREFIX or file://"
            )
        if re.search(r"[*?\[\]]", url):
            raise StoreError("holds characters that stand for others (* ? [ ])", where=self.where, fix="leave them out")
        self._fs, self._root = self._opened(scheme)

    @property
    def where(self) -> str:
        """The URL, without a password."""
        return re.sub(r"(?<=://)[^/@]*@", "***@", self._url)

    def make(self) -> None:
        """Nothing: object storage has no folders, and the bucket is made by its owner."""

    def shown(self, path: str) -> str:
        """The folder's URL."""
        return f"{self.where}/{path}"

    def write(self, folders: Mapping[str, Mapping[str, bytes]]) -> None:
        """All objects at once, as many at a time as the URL's library does."""
        data = {f"{self._root}/{path}/{name}": data for path, files in folders.items() for name, data in files.items()}
        with self._errors():
            self._make_parents(data)
            self._fs.pipe(data)

    def read(self, path: str, names: Sequence[str]) -> dict[str, bytes]:
        """The named objects; what else lies there is not looked for."""
        keys = {name: f"{self._root}/{path}/{name}" for name in names}
        try:
            with self._errors(path):
                found = self._fs.cat(list(keys.values()))
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                what, fix = "the module's files are gone", "restore it from an export, or train the module again"
                raise StoreError(what, where=self.shown(path), fix=fix) from error
            raise
        return {name: found[self._fs._strip_protocol(key)] for name, key in keys.items()}

    def remove(self, paths: Sequence[str]) -> None:
        """Both files of a module, or the one of a checkpoint, by name; the files of a base by its list."""
        with self._errors():
            for path in paths:
                for key in self._keys(path):
                    with suppress(FileNotFoundError):
                        self._fs.rm_file(key)

    def base_folder(self, name: str) -> Path:
        """In the cache of this machine: `write_base` brings it here."""
        return cache_folder() / "made" / path_part(name)

    def base_path(self, folder: Path) -> str | None:
        """Other machines do not see a folder of this one."""
        return None

    def write_base(self, path: str, folder: Path) -> Manifest:
        """Each file of the folder; large ones in parts, as the URL's library does."""
        with os_errors(folder):
            if not folder.is_dir():
                raise StoreError("is no folder", where=str(folder), fix="give the folder of the base's files")
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            manifest = {file.relative_to(folder).as_posix(): _size_and_digest(file) for file in files}
        keys = [f"{self._root}/{path}/{name}" for name in manifest]
        with self._errors():
            self._make_parents([*keys, self._list_key(path)])
            self._fs.pipe({self._list_key(path): json.dumps(list(manifest)).encode()})  # first: `remove` goes by it
            for name, key in zip(manifest, keys, strict=True):
                self._fs.put_file(str(folder / name), key)
        return manifest

    def local_base(self, path: str, manifest: Manifest, *, fetch: bool) -> Path:
        """In the cache, under a digest of the list of files; made whole or not at all."""
        digest = sha256(json.dumps(sorted(manifest.items())).encode()).hexdigest()
        target = cache_folder() / "bases" / f"{path.split('/')[1]}-{digest[:16]}"
        if target.is_dir() or not fetch:
            return target
        with os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            making = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                self._fetch(path, manifest, making)
                sync_tree(making)
                making.chmod(0o755)
                with suppress(OSError):  # another process may have been faster
                    os.rename(making, target)
            finally:
                shutil.rmtree(making, ignore_errors=True)
            if not target.is_dir():
                raise StoreError(
                    "cannot be made", where=str(target), fix="set OPPU_CACHE to a folder that you may write"
                )
        return target

    def _fetch(self, path: str, manifest: Manifest, folder: Path) -> None:
        for name, expected in manifest.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._errors(path):
                self._fs.get_file(f"{self._root}/{path}/{name}", str(file))
            if _size_and_digest(file) != tuple(expected):
                where = f"{self.shown(path)}/{name}"
                raise StoreError("is not the file that was put", where=where, fix="adapt the base again")

    def _keys(self, path: str) -> list[str]:
        from oppu.model.module import CONFIG, WEIGHTS

        names = [CHECKPOINT] if path.startswith("checkpoints/") else [CONFIG, WEIGHTS]
        if path.startswith("bases/"):
            try:
                names = json.loads(self._fs.cat_file(self._list_key(path)))
            except FileNotFoundError:
                return []
        keys = [f"{self._root}/{path}/{name}" for name in names]
        return [*keys, self._list_key(path)] if path.startswith("bases/") else keys

    def _list_key(self, path: str) -> str:
        """The object that lists a base's files, beside them."""
        return f"{self._root}/{path}.json"

    def _make_parents(self, keys: Any) -> None:
        """For file systems with real folders (sftp, smb); object storage has none."""
        if not getattr(self._fs, "async_impl", False):
            for parent in {key.rsplit("/", 1)[0] for key in keys}:
                self._fs.makedirs(parent, exist_ok=True)

    def _opened(self, scheme: str) -> tuple[Any, str]:
        try:
            import fsspec
            from fsspec.core import url_to_fs

            fsspec.get_filesystem_class(scheme)
        except ImportError:
            package = _PACKAGES.get(scheme, "fsspec")
            fix = f"run `pip install 'oppu[cluster]' {package}`"
            raise ConfigError(
                f"'{scheme}' needs {package}, which is not installed", where=self.where, fix=fix
            ) from None
        except ValueError:
            raise StoreError(
                f"'{scheme}' is no known protocol", where=self.where, fix="use s3://BUCKET/PREFIX"
            ) from None
        with self._errors():
            fs, root = url_to_fs(self._url, use_listings_cache=False)
        return fs, str(root).rstrip("/")

    @contextmanager
    def _errors(self, path: str = "") -> Iterator[None]:
        try:
            yield
        except OppuError:
            raise
        except Exception as error:  # each library behind fsspec has errors of its own, without a common class
            words = " ".join(str(error).split()) or type(error).__name__
            where = self.shown(path) if path else self.where
            raise StoreError(f"the storage failed ({words})", where=where, fix=_fix_for(words)) from error


def _fix_for(words: str) -> str:
    for signs, fix in (
        (("redential", "Forbidden", "denied", "AccessDenied", "SignatureDoesNotMatch"), "check the storage's keys"),
        (("ucket",), "make the bucket, and check its name"),
        (("onnect", "endpoint", "resolve"), "check the storage's address (for S3: AWS_ENDPOINT_URL) and the network"),
    ):
        if any(sign in words for sign in signs):
            return fix
    return "run it again; nothing that was stored is lost"


def _size_and_digest(file: Path) -> tuple[int, str]:
    digest = sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return file.stat().st_size, digest.hexdigest()
