"""The store gives back exactly what was put, and says clearly what it cannot do."""

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from sqlalchemy import inspect
from store_samples import HISTORY, held, module_folders, notes, same, tiny_module, told_of, under_way, whose

from oppu.errors import StoreError, UnknownUserError
from oppu.model.module import Module
from oppu.records import HistoryItem, Profile
from oppu.store import Store, schema, write_atomically
from oppu.store.database import Database
from oppu.store.files import temporary_name
from oppu.store.sqlite import SQLite


def test_a_history_comes_back_as_it_was_put_and_is_replaced(store: Store) -> None:
    store.put_history("ann", "movie_tagging", HISTORY)
    assert store.history("ann", "movie_tagging") == HISTORY
    store.put_history("ann", "movie_tagging", HISTORY[1:2])
    assert store.history("ann", "movie_tagging") == HISTORY[1:2]


def test_an_unknown_user_is_an_error_and_a_user_with_nothing_is_not(store: Store) -> None:
    with pytest.raises(UnknownUserError, match="user 'ann' is unknown"):
        store.history("ann", "movie_tagging")
    store.put_history("ann", "movie_tagging", ())
    store.put_module(tiny_module(), **whose("bob"))
    assert store.history("ann", "movie_tagging") == ()
    assert store.history("bob", "movie_tagging") == ()
    assert store.find_module("ann", "movie_tagging") is None


def test_users_are_those_with_a_history_or_a_module(store: Store) -> None:
    store.put_history("cid", "movie_tagging", HISTORY)
    store.put_history("ann", "news_headline", HISTORY)
    store.put_module(tiny_module(), **whose("bob"))
    assert store.users() == ("ann", "bob", "cid")
    assert store.users("movie_tagging") == ("bob", "cid")


def test_a_module_comes_back_as_it_was_put_after_reopening(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        put = store.put_module(tiny_module(), **whose("ann"))
    with Store(tmp_path / "store", read_only=True) as store:
        found = store.find_module("ann", "movie_tagging")
        assert found == put
        assert same(store.load_module(found), tiny_module())
    assert (put.version, put.base_name, put.training) == (1, "tiny", {"seed": 1, "losses": [0.5, 0.25]})
    assert put.size_bytes == sum(path.stat().st_size for path in put.path.iterdir())
    assert not (tmp_path / "store" / "tmp").exists()


def test_versions_count_within_user_task_setting_and_base(store: Store) -> None:
    first = store.put_module(tiny_module(1), **whose("ann"))
    second = store.put_module(tiny_module(2), **whose("ann"))
    others = [
        store.put_module(tiny_module(), **whose("bob")),
        store.put_module(tiny_module(), **whose("ann", task="news_headline")),
        store.put_module(tiny_module(), **whose("ann", setting="k1")),
        store.put_module(tiny_module(), **whose("ann", base_fingerprint="0" * 64)),
    ]
    assert [first.version, second.version] == [1, 2]
    assert [record.version for record in others] == [1, 1, 1, 1]
    assert same(store.load_module(first), tiny_module(1))
    assert same(store.load_module(second), tiny_module(2))


def test_the_newest_module_that_fits_is_found(store: Store) -> None:
    first = store.put_module(tiny_module(), **whose("ann"))
    second = store.put_module(tiny_module(), **whose("ann"))
    other = store.put_module(tiny_module(), **whose("ann", setting="k1"))
    assert store.find_module("ann", "movie_tagging") == other
    assert store.find_module("ann", "movie_tagging", "k0") == second
    assert store.find_module("ann", "movie_tagging", setting="k0", version=1) == first
    assert store.find_module("ann", "movie_tagging", base_fingerprint="other") is None
    assert store.modules() == (first, second, other)
    assert store.modules(user_id="ann", task="movie_tagging", newest_only=True) == (second, other)
    assert store.modules(user_id="bob") == ()


def test_ids_and_names_of_any_letters_stay_inside_the_store(folder_store: Store, tmp_path: Path) -> None:
    hostile = "../../☃ /etc"
    record = folder_store.put_module(
        tiny_module(), **whose(hostile, task=hostile, setting="..", base_fingerprint="../x")
    )
    folder_store.put_module(
        tiny_module(), **whose(hostile, task="../../☃  /etc", setting="..", base_fingerprint="../y")
    )
    assert record.path.resolve().is_relative_to((folder_store.folder / "modules").resolve())
    assert folder_store.base_folder("../../up").parent == folder_store.folder / "bases"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len({found.path for found in folder_store.modules()}) == 2
    assert same(folder_store.load_module(record), tiny_module())


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_names_that_no_database_keeps_are_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="user_id"):
        store.put_history(name, "movie_tagging", HISTORY)
    with pytest.raises(StoreError, match="setting"):
        store.put_module(tiny_module(), **whose(setting=name))


def test_a_module_that_is_no_module_is_refused_before_anything_is_written(store: Store) -> None:
    broken = Module(dict.fromkeys(tiny_module().tensors, torch.tensor(float("nan"))), tiny_module().config)
    with pytest.raises(StoreError, match="the module of user 'ann' for movie_tagging: 4 bad tensors"):
        store.put_module(broken, **whose("ann"))
    with pytest.raises(StoreError, match="training record is no JSON"):
        store.put_module(tiny_module(), **whose("ann", training={"when": object()}))
    assert store.users() == ()
    assert module_folders(store) == []


def test_a_time_that_is_no_number_is_refused_and_the_old_history_stays(store: Store) -> None:
    store.put_history("ann", "movie_tagging", HISTORY)
    with pytest.raises(StoreError, match="item 'x' of user 'ann' has time nan"):
        store.put_history("ann", "movie_tagging", [HistoryItem(id="x", fields={}, time=float("nan"))])
    assert store.history("ann", "movie_tagging") == HISTORY


def test_a_damaged_module_is_refused(folder_store: Store) -> None:
    record = folder_store.put_module(tiny_module(), **whose())
    weights = record.path / "adapter_model.safetensors"
    whole = weights.read_bytes()

    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match="not the ones that were put"):
        folder_store.load_module(record)
    weights.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="bytes instead of"):
        folder_store.load_module(record)
    weights.write_bytes(whole)
    (record.path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(StoreError, match=r"holds .*adapter_model\.bin"):
        folder_store.load_module(record)
    shutil.rmtree(record.path)
    with pytest.raises(StoreError, match="gone"):
        folder_store.load_module(record)


def test_a_damaged_config_is_refused(folder_store: Store) -> None:
    record = folder_store.put_module(tiny_module(), **whose())
    config = record.path / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 9'))
    with pytest.raises(StoreError, match="not the ones that were put"):
        folder_store.load_module(record)


def test_bases_are_registered_and_move_with_the_store(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        folder = store.base_folder("Org/Tiny-1")
        folder.mkdir()
        put = store.put_base("Org/Tiny-1", "f1", folder, {"from": "tiny"})
        store.put_base("away", "f2", tmp_path / "elsewhere", {})
        assert store.put_base("away", "f3", tmp_path / "elsewhere", {}) == store.base("away")
        assert store.base("Org/Tiny-1") == put
        assert store.base("none") is None
    (tmp_path / "store").rename(tmp_path / "moved")
    with Store(tmp_path / "moved") as store:
        assert [(base.name, base.fingerprint) for base in store.bases()] == [("Org/Tiny-1", "f1"), ("away", "f3")]
        moved = store.base("Org/Tiny-1")
        assert moved == replace(put, path=store.base_folder("Org/Tiny-1"))
        assert moved.path.is_dir()
        assert store.bases()[1].path == tmp_path / "elsewhere"


# profiles


def test_profiles_come_back_as_they_were_put_and_are_replaced(store: Store) -> None:
    first, other = told_of("ann", "likes \0 \ud800 ☃"), told_of("bob", made="model:x")
    store.put_profiles([first, other])
    (found,) = store.profiles("movie_tagging", "count")
    assert replace(found, created="") == first
    assert found.created.startswith("20")
    assert [r.user_id for r in store.profiles("movie_tagging")] == ["ann", "bob"]
    assert [r.user_id for r in store.profiles("movie_tagging", users=["bob", "eve"])] == ["bob"]
    assert store.ways_of_profiles("movie_tagging") == ("count", "model:x")
    second = told_of("ann", "likes rain")
    store.put_profiles([second, told_of("cid")])
    assert [r.profiles[0].text for r in store.profiles("movie_tagging", "count")] == ["likes rain", "likes films"]
    assert store.knows("cid", "movie_tagging")
    assert store.profiles("news_headline") == ()


def test_profiles_of_which_one_is_wrong_are_not_put_at_all(store: Store) -> None:
    wrong = replace(told_of("bob"), profiles=(Profile("likes films", float("nan"), 1),))
    with pytest.raises(StoreError, match="a profile of user 'bob' has time nan"):
        store.put_profiles([told_of("ann"), wrong])
    assert store.profiles("movie_tagging") == ()


# what is under way


def test_a_checkpoint_comes_back_as_it_was_put_and_is_replaced(store: Store) -> None:
    for user in ("ann", "bob"):
        store.put_history(user, "movie_tagging", HISTORY)
    store.put_checkpoints([under_way("ann"), under_way("bob"), under_way("ann", b"in company", setting="k1")])
    store.put_checkpoints([under_way("ann", b"further")])
    assert (held(store, "ann"), held(store, "bob"), held(store, "ann", setting="k1")) == (
        b"further", b"under way", b"in company",
    )  # fmt: skip
    assert held(store, "ann", fingerprint="q" * 64) is None
    assert held(store, "ann", base_fingerprint="e" * 64) is None
    assert len(module_folders(store, "checkpoints")) == 3
    assert notes(store) == 0


def test_a_checkpoint_goes_with_its_module_and_no_other_does(store: Store) -> None:
    store.put_history("ann", "movie_tagging", HISTORY)
    store.put_history("ann", "news_headline", HISTORY)
    others: list[dict[str, str]] = [{"setting": "k1"}, {"base_fingerprint": "e" * 64}, {"task": "news_headline"}]
    store.put_checkpoints([under_way(), *(under_way(**other) for other in others)])
    store.put_module(tiny_module(), **whose("ann"))
    assert held(store) is None
    assert [held(store, **other) for other in others] == [b"under way"] * 3
    assert len(module_folders(store, "checkpoints")) == 3
    for other in others:
        gone = under_way(**other)
        store.drop_checkpoint("ann", gone.task, gone.setting, gone.base_fingerprint)
    store.drop_checkpoint("ann", "movie_tagging", "k0", "f" * 64)  # there is none
    assert [held(store, **other) for other in others] == [None] * 3
    assert module_folders(store, "checkpoints") == []
    assert notes(store) == 0


def test_a_checkpoint_makes_nobody_known(store: Store) -> None:
    store.put_history("ann", "movie_tagging", HISTORY)
    store.put_history("bob", "movie_tagging", HISTORY)
    store.put_checkpoints([under_way("bob")])
    store.delete_user("bob")  # while a module of bob's is trained
    store.put_checkpoints([under_way("bob"), under_way("ann"), under_way("ann", task="news_headline")])
    assert store.users() == ("ann",)
    assert (held(store, "ann"), held(store, "bob")) == (b"under way", None)
    assert len(module_folders(store, "checkpoints")) == 1
    assert notes(store) == 0


def test_a_damaged_checkpoint_is_named(folder_store: Store) -> None:
    folder_store.put_history("ann", "movie_tagging", HISTORY)
    folder_store.put_checkpoints([under_way()])
    (folder,) = module_folders(folder_store, "checkpoints")
    file = folder_store.folder / folder / "checkpoint.safetensors"
    for damage in (lambda: file.write_bytes(b"under w@y"), lambda: file.write_bytes(b"under")):
        damage()
        with pytest.raises(StoreError, match=f"{folder}: its file is not the one that was put"):
            held(folder_store)
    file.unlink()
    with pytest.raises(StoreError, match="its file cannot be read"):
        held(folder_store)
    folder_store.put_checkpoints([under_way("ann", b"anew")])
    assert held(folder_store) == b"anew"


# opening


def test_the_tables_are_those_that_the_migrations_make(store: Store) -> None:
    with store._database.reading() as connection:
        found = inspect(connection)
        assert set(found.get_table_names()) == set(schema.USERS.metadata.tables)
        for table in schema.USERS.metadata.tables.values():
            assert [column["name"] for column in found.get_columns(table.name)] == [c.name for c in table.columns]
            key = found.get_pk_constraint(table.name)["constrained_columns"]
            assert key == [column.name for column in table.primary_key]


def test_an_older_store_is_brought_up_to_date_and_keeps_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.put_history("ann", "movie_tagging", HISTORY)
    second = ("CREATE TABLE later (name TEXT)",)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, second))
    with pytest.raises(StoreError, match="open it once for writing"):
        Store(tmp_path, read_only=True)
    for _ in range(2):
        with Store(tmp_path) as store:
            assert store.history("ann", "movie_tagging") == HISTORY
            with store._database.reading() as connection:
                assert inspect(connection).has_table("later")


def test_a_store_of_the_schema_before_profiles_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:2])
        patch.setattr("oppu.store.checkpoints.take_away", lambda *_: [])  # they came later, too
        with Store(tmp_path) as store:
            store.put_history("ann", "movie_tagging", HISTORY)
            record = store.put_module(tiny_module(), **whose("ann"))
    with Store(tmp_path) as store:
        assert store.history("ann", "movie_tagging") == HISTORY
        assert store.modules() == (record,)
        store.put_profiles([told_of("ann")])
        assert len(store.profiles("movie_tagging")) == 1
        store.put_checkpoints([under_way("ann")])
        assert held(store, "ann") == b"under way"


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.put_history("ann", "movie_tagging", HISTORY)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("DROP TABLE history_items", "no SQL")))
        with pytest.raises(StoreError, match="syntax error"):
            Store(tmp_path)
    with Store(tmp_path) as store:
        assert store.history("ann", "movie_tagging") == HISTORY


def test_a_store_of_a_newer_oppu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("CREATE TABLE later (name TEXT)",)))
        Store(tmp_path).close()
    with pytest.raises(StoreError, match=r"made by a newer oppu \(schema 5, this one knows up to 4\); update oppu"):
        Store(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "oppu.db").write_text("these are notes of mine, not a database\n" * 100)
    with pytest.raises(StoreError, match=r"oppu\.db: is no SQLite database") as caught:
        Store(tmp_path)
    assert "\n" not in caught.value.line()
    assert (tmp_path / "oppu.db").read_text().startswith("these are notes")


def test_a_database_of_someone_else_is_refused_and_kept(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "oppu.db")
    connection.execute("CREATE TABLE users (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="not a store's"):
        Store(tmp_path)


def test_a_damaged_database_is_refused_in_one_line(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for user in range(50):
            store.put_history(f"user-{user}", "movie_tagging", HISTORY)
    whole = (tmp_path / "oppu.db").read_bytes()
    (tmp_path / "oppu.db").write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(StoreError, match="is damaged") as caught, Store(tmp_path) as store:
        store.history("user-1", "movie_tagging")
    assert "\n" not in caught.value.line()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="a file of that name is in the way"):
        Store(tmp_path / "store")


def test_a_read_only_store_makes_nothing_and_takes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store"):
        Store(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    Store(tmp_path / "store").close()
    with Store(tmp_path / "store", read_only=True) as store:
        for act in (
            lambda: store.put_history("ann", "movie_tagging", HISTORY),
            lambda: store.put_module(tiny_module(), **whose()),
            lambda: store.put_base("tiny", "f", tmp_path, {}),
            lambda: store.delete_user("ann"),
        ):
            with pytest.raises(StoreError, match="opened read-only"):
                act()
        assert store.users() == ()
    assert not (tmp_path / "store" / "tmp").exists()


def test_garbage_of_dead_processes_goes_and_work_of_living_ones_stays(tmp_path: Path) -> None:
    Store(tmp_path).close()
    dead = subprocess.Popen(["true"])
    dead.wait()
    living_name = temporary_name("put")
    dead_name = living_name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    foreign_name = ".put.00000000-1-00000000.tmp"  # of another host: only its age tells
    for name in (living_name, dead_name, foreign_name):
        (tmp_path / "tmp" / name / "module").mkdir(parents=True)
    Store(tmp_path).close()
    assert {path.name for path in (tmp_path / "tmp").iterdir()} == {living_name, foreign_name}
    os.utime(tmp_path / "tmp" / foreign_name, (0, 0))
    Store(tmp_path).close()
    assert {path.name for path in (tmp_path / "tmp").iterdir()} == {living_name}


# disks that fail


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


def test_threads_share_a_store(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda seed: store.put_module(tiny_module(seed), **whose("ann")), range(16)))
        assert sorted(record.version for record in records) == list(range(1, 17))
        loaded = list(pool.map(store.load_module, records))
    assert all(same(module, tiny_module(seed)) for seed, module in enumerate(loaded))
