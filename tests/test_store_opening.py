"""Opening a store: its tables and their migrations, what is refused, and what dead processes left."""

import os
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from sqlalchemy import inspect, select
from store_samples import HISTORY, held, module_folders, tiny_module, told_of, under_way, whose

from oppu.errors import StoreError
from oppu.store import Store, schema
from oppu.store.files import temporary_name
from oppu.store.notes import settle
from oppu.store.places import Place


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


def test_a_reader_of_a_folder_that_it_may_not_write_sees_what_others_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "store") as writer:
        writer.put_history("kim", "movie_tagging", HISTORY)
    with monkeypatch.context() as patched:
        patched.setattr("oppu.store.sqlite.os.access", lambda *_: False)
        reader = Store(tmp_path / "store", read_only=True)
        assert reader.users() == ("kim",)
        with Store(tmp_path / "store") as writer:
            writer.put_history("lee", "movie_tagging", HISTORY)
            writer.delete_user("kim")
        assert reader.users() == ("lee",)
        reader.close()


def test_a_put_whose_note_another_process_settled_leaves_no_files(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = type(store._place).write

    def slow(place: Place, files: Mapping[str, Mapping[str, bytes]]) -> None:
        with store._database.reading() as connection:
            (token,) = connection.scalars(select(schema.PUTS.c.token))
        settle(store._database, place, token)  # as another process does that takes the put for dead
        write(place, files)

    monkeypatch.setattr(type(store._place), "write", slow)
    with pytest.raises(StoreError, match="another process cleared the put"):
        store.put_module(tiny_module(), **whose("ann"))
    assert module_folders(store) == []
