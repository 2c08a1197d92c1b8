"""Disks that are full or fail, and files that another process holds: nothing that was stored is lost."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from store_samples import HISTORY, module_folders, notes, same, tiny_module, whose

from oppu.errors import StoreError
from oppu.records import HistoryItem
from oppu.store import Store, write_atomically
from oppu.store.database import Database
from oppu.store.files import temporary_name
from oppu.store.sqlite import SQLite


def failing(code: int) -> object:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("place", ["pathlib.Path.write_bytes", "os.fsync", "pathlib.Path.mkdir"])
@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "the disk is full; free"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")],
)
def test_a_disk_that_fails_in_a_put_costs_nothing(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch, place: str, code: int, words: str
) -> None:
    old = folder_store.put_module(tiny_module(1), **whose("ann"))
    with monkeypatch.context() as patch:
        patch.setattr(place, failing(code))
        with pytest.raises(StoreError, match=words) as caught:
            folder_store.put_module(tiny_module(2), **whose("ann"))
    assert "\n" not in caught.value.line()
    assert folder_store.modules() == (old,)
    assert same(folder_store.load_module(old), tiny_module(1))
    assert module_folders(folder_store) == [old.location]
    assert notes(folder_store) == (1 if place == "os.fsync" else 0)  # nothing was synced: the next opening looks again
    assert folder_store.put_module(tiny_module(2), **whose("ann")).version == 2


def test_a_database_that_cannot_grow_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.put_history("ann", "movie_tagging", HISTORY)
        old = store.put_module(tiny_module(), **whose("ann"))
    monkeypatch.setattr("oppu.store.sqlite._PRAGMAS", ("PRAGMA max_page_count=1",))
    long = [HistoryItem(id="x", fields={"text": "x" * 100_000}, time=0.0)]
    with Store(tmp_path) as store:
        with pytest.raises(StoreError, match=r"oppu\.db: the disk is full"):
            store.put_history("ann", "movie_tagging", long)
        with pytest.raises(StoreError, match=r"oppu\.db: the disk is full"):
            store.put_module(tiny_module(), **whose("ann", training={"text": "x" * 100_000}))
        assert store.history("ann", "movie_tagging") == HISTORY
        assert store.modules() == (old,)
        assert module_folders(store) == [old.location]
        assert notes(store) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full_costs_nothing(small_disk: Path) -> None:
    with Store(small_disk / "store") as store:
        store.put_history("ann", "movie_tagging", HISTORY)
        old = store.put_module(tiny_module(1), **whose("ann"))
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1_000_000))
        with pytest.raises(StoreError, match="the disk is full"):
            store.put_module(tiny_module(2), **whose("ann"))
        with pytest.raises(StoreError, match="the disk is full"):
            store.put_history("ann", "movie_tagging", [replace(HISTORY[0], fields={"text": "x" * 600_000})])
        assert store.history("ann", "movie_tagging") == HISTORY
        assert same(store.load_module(old), tiny_module(1))
        filler.unlink()
        assert store.put_module(tiny_module(2), **whose("ann")).version == 2


def test_a_store_on_a_disk_that_cannot_be_written_is_still_read(small_disk: Path) -> None:
    with Store(small_disk / "store") as store:
        record = store.put_module(tiny_module(), **whose("ann"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match=r"oppu\.db: cannot be|read-only") as caught:
        Store(small_disk / "store")
    assert "\n" not in caught.value.line()
    with Store(small_disk / "store", read_only=True) as store:
        assert same(store.load_module(record), tiny_module())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing(errno.ENOSPC))
        with pytest.raises(StoreError, match=r"report\.json: the disk is full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_leftovers_of_a_killed_write_go_with_the_next_one(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    leftover = temporary_name("report.json").replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    living = temporary_name("report.json")
    for name in (leftover, living):
        (tmp_path / name).write_bytes(b"half")
    write_atomically(tmp_path / "report.json", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", living}


def test_a_locked_database_is_a_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oppu.store.sqlite.BUSY_TIMEOUT_MS", 50)
    with Store(tmp_path) as store:
        other = Database(SQLite(tmp_path / "oppu.db"))
        with other.writing(), pytest.raises(StoreError, match="another process keeps it locked"):
            store.put_history("ann", "movie_tagging", HISTORY)
        other.close()
        store.put_history("ann", "movie_tagging", HISTORY)
        assert store.history("ann", "movie_tagging") == HISTORY
