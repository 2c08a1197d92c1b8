"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder.

A temporary's name carries the host and the process that made it, so garbage is told from work under way.
"""

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from oppu.errors import StoreError

_TEMPORARY = re.compile(r"\.(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,9})-[0-9a-f]{8}\.tmp$")
_OLD_S = 24 * 3600

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space and run it again; nothing that was stored is lost"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run it again; nothing that was stored is lost"),
    errno.EROFS: ("the file system is read-only", "use a folder that can be written"),
    errno.EACCES: ("permission denied", "use a folder that you may write"),
    errno.EEXIST: ("a file of that name is in the way", "use another folder"),
    errno.ENOTDIR: ("a file is where a folder should be", "use another folder"),
    errno.EPERM: ("permission denied", "use a folder that you may write"),
}


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces the content of `path`; a reader, or a crash at any moment, finds the old bytes or the new ones.

    The folder must exist. StoreError where it cannot be written; the old file is then untouched.
    """
    temporary = path.parent / temporary_name(path.name)
    with os_errors(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        if is_garbage(leftover):
            leftover.unlink(missing_ok=True)


@contextmanager
def os_errors(where: Path) -> Iterator[None]:
    """Turns an OSError into a StoreError that says what, where and what to do."""
    try:
        yield
    except OSError as error:
        what, fix = _CAUSES.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StoreError(what, where=str(error.filename or where), fix=fix) from error


def temporary_name(stem: str) -> str:
    """A hidden name beside `stem` that no other process and no other call uses."""
    return f".{stem}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def is_garbage(path: Path) -> bool:
    """Whether a temporary's process is dead, or, where that cannot be known (another host), the temporary a day old."""
    match = _TEMPORARY.search(path.name)
    if match is None:
        return False
    if match["host"] == _host() and not _is_alive(int(match["pid"])):
        return True
    try:
        return time.time() - path.stat().st_mtime > _OLD_S
    except FileNotFoundError:
        return False


def this_process() -> str:
    """This host and process, as `is_dead` reads it."""
    return f"{_host()}-{os.getpid()}"


def is_dead(maker: str, started: str) -> bool:
    """Whether a process (`this_process`) is gone, or, where that cannot be known (another host), a day old."""
    host, _, pid = maker.partition("-")
    if host == _host() and not _is_alive(int(pid)):
        return True
    return (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds() > _OLD_S


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Syncs the files of `folder`, those in its folders too, and then the folders."""
    for path in folder.iterdir():
        sync_tree(path) if path.is_dir() else sync_folder(path)  # fsync takes a file's descriptor just as well
    sync_folder(folder)


def sync_file_system(folder: Path) -> bool:
    """Syncs the whole file system of `folder` at once, where the system can (Linux); False: it cannot."""
    call = _syncfs()
    if call is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if call(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)
    return True


@cache
def _syncfs() -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def make_folders(folder: Path) -> None:
    """Makes `folder` and what is missing above it, each synced into its parent."""
    if not folder.is_dir():
        make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def remove_tree(folder: Path, *, root: Path) -> None:
    """Removes `folder`, if it is there, and the folders above it that it leaves empty, up to `root`."""
    if folder.exists():
        shutil.rmtree(folder)
    parent = folder.parent
    while parent != root and root in parent.parents:
        with suppress(FileNotFoundError):
            if any(parent.iterdir()):
                break
            parent.rmdir()
        parent = parent.parent
    sync_folder(parent)


def sha256_of(*paths: Path) -> str:
    """The digest of the files' bytes one after another: `cat PATHS | sha256sum`."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
