"""A store of more than one machine: PostgreSQL and S3, both real servers on this machine."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import Servers
from shell import SMALL, World, done, refused, write_task
from sqlalchemy import text
from store_samples import HISTORY, module_folders, notes, rows_with, same, tiny_module, told_of, whose
from test_faults import assert_undisturbed, modules_in, start, training_workers
from toys import COLOUR, colour_user, tiny_base_folder, write_release

from oppu.errors import OppuError, StoreError
from oppu.store import Store
from oppu.store.objects import Objects

_PASSWORD = "walrus-password"


def objects(store: Store) -> dict[str, bytes]:
    """Everything under the store's prefix."""
    import s3fs

    found = s3fs.S3FileSystem(use_listings_cache=False)
    return {key: found.cat_file(key) for key in found.find(str(store.files))}


def test_both_strings_open_the_same_store_again(cluster: Servers) -> None:
    address, files = cluster.addresses()
    with Store(address, files) as store:
        put = store.put_module(tiny_module(), **whose("ann"))
        assert (store.address, store.files) == (address, files)
        assert put.path == f"{files}/{put.location}"
        with Store(store.address, store.files, read_only=True) as other:
            assert other.find_module("ann", "movie_tagging") == put
            assert same(other.load_module(put), tiny_module())
            with pytest.raises(StoreError, match="opened read-only"):
                other.put_module(tiny_module(), **whose("ann"))
        with pytest.raises(StoreError, match="is not a folder"):
            _ = store.folder


@pytest.mark.parametrize(
    ("address", "files", "words"),
    [
        ("{good}", None, "needs a place for its files; give --files"),
        ("{good}", "memory://here", "'memory' is forgotten when the process ends"),
        ("{good}", "relative/folder", "is no place for files"),
        ("{good}", "nothing://here", "'nothing' is no known protocol"),
        ("{good}", "s3://a*/b", "stand for others"),
        ("mysql://u:walrus-password@h/d", "s3://bucket", "'mysql://' is no database that a store can use"),
        ("postgresql://u:walrus-password@h:port/d", "s3://bucket", "address cannot be read"),
        ("postgresql://u:walrus-password@127.0.0.1:1/d", "s3://bucket", "cannot be reached"),
        ("postgresql://127.0.0.1:1/d?password=walrus-password", "s3://bucket", "cannot be reached"),
        ("{wrong}", "s3://bucket", "the database failed|does not let this user in|lacks something"),
        ("folder", "s3://bucket", "keeps its files there"),
    ],
)
def test_what_cannot_be_opened_is_one_line_without_the_password(
    cluster: Servers, address: str, files: str | None, words: str
) -> None:
    wrong = cluster.postgresql.replace("/postgres?", "/nowhere?")
    with pytest.raises(OppuError, match=words) as caught:
        Store(address.format(good=cluster.postgresql, wrong=wrong), files)
    assert _PASSWORD not in caught.value.line()
    assert "\n" not in caught.value.line()


def test_a_store_says_its_name_without_its_password(cluster_store: Store) -> None:
    assert _PASSWORD in cluster_store.address
    assert _PASSWORD not in cluster_store.name
    with cluster_store._database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE history_items")
    with pytest.raises(StoreError) as caught:
        cluster_store.put_history("ann", "movie_tagging", HISTORY)
    assert _PASSWORD not in caught.value.line()


def test_a_bucket_that_is_not_there_is_one_line_and_costs_nothing(cluster: Servers) -> None:
    address, _ = cluster.addresses()
    with Store(address, "s3://no-such-bucket/x") as store:
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/x: the storage failed .*make the bucket"):
            store.put_module(tiny_module(), **whose("ann"))
        assert store.users() == ()


def test_a_damaged_object_is_refused(cluster_store: Store) -> None:
    import s3fs

    record = cluster_store.put_module(tiny_module(), **whose())
    storage, weights = s3fs.S3FileSystem(), f"{record.path}/adapter_model.safetensors"
    whole = storage.cat_file(weights)
    storage.pipe_file(weights, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match="not the ones that were put"):
        cluster_store.load_module(record)
    storage.pipe_file(weights, whole[:-1])
    with pytest.raises(StoreError, match="bytes instead of"):
        cluster_store.load_module(record)
    storage.rm_file(weights)
    with pytest.raises(StoreError, match="files are gone"):
        cluster_store.load_module(record)


def test_a_deleted_user_leaves_no_row_and_no_object(cluster_store: Store) -> None:
    for user in ("ann", "zanzibar"):
        cluster_store.put_history(user, "movie_tagging", HISTORY)
        cluster_store.put_profiles([told_of(user)])
        cluster_store.put_module(tiny_module(), **whose(user))
        cluster_store.put_module(tiny_module(), **whose(user, task="news_headline"))
    gone = cluster_store.delete_user("zanzibar")
    assert (gone.modules, gone.history_items, gone.profiles) == (2, len(HISTORY), 1)
    assert rows_with(cluster_store, "zanzibar") == []
    assert module_folders(cluster_store) == sorted(record.location for record in cluster_store.modules("ann"))
    assert len(objects(cluster_store)) == 4


def test_a_put_under_way_is_left_alone_by_an_opening_elsewhere(
    cluster_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Objects.write

    def and_open_elsewhere(self: Objects, folders: Any) -> None:
        write(self, folders)
        Store(cluster_store.address, cluster_store.files).close()

    monkeypatch.setattr(Objects, "write", and_open_elsewhere)
    record = cluster_store.put_module(tiny_module(), **whose("ann"))
    assert same(cluster_store.load_module(record), tiny_module())
    assert notes(cluster_store) == 0


def test_a_put_that_was_taken_for_dead_fails_and_leaves_nothing(
    cluster_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ended the session that said it was alive, and another machine opened the store before the commit."""
    write = Objects.write

    def and_be_cut_off(self: Objects, folders: Any) -> None:
        write(self, folders)
        with cluster_store._database.writing() as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            connection.execute(text(query))
        while notes(cluster_store):  # the server lets go of the lock in its own time
            Store(cluster_store.address, cluster_store.files).close()

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "write", and_be_cut_off)
        with pytest.raises(StoreError, match="another process cleared the put; run it again"):
            cluster_store.put_module(tiny_module(), **whose("ann"))
    assert objects(cluster_store) == {}
    assert cluster_store.modules() == ()
    assert cluster_store.put_module(tiny_module(), **whose("ann")).version == 1
    assert notes(cluster_store) == 0


def test_a_base_is_brought_to_the_storage_and_fetched_once_on_another_machine(
    cluster_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "here"))
    folder = cluster_store.base_folder("Org/Tiny-1")
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "deep" / "config.json").write_text("{}")
    cluster_store.put_base("Org/Tiny-1", "f1", folder, {"from": "tiny"})
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "there"))
    found = cluster_store.base("Org/Tiny-1")
    assert found is not None
    assert found.path.is_relative_to(tmp_path / "there")
    assert (found.path / "model.safetensors").read_bytes() == b"weights" * 1000
    assert (found.path / "deep" / "config.json").read_text() == "{}"
    assert cluster_store.bases() == (found,)
    before = objects(cluster_store)
    monkeypatch.setattr(Objects, "_fetch", None)  # a second time nothing is fetched
    assert cluster_store.base("Org/Tiny-1") == found

    (folder / "model.safetensors").write_bytes(b"other weights")
    (folder / "deep" / "config.json").unlink()
    cluster_store.put_base("Org/Tiny-1", "f2", folder, {})
    assert not set(before) & set(objects(cluster_store))
    assert notes(cluster_store) == 0


def test_a_damaged_base_is_not_taken_into_the_cache(
    cluster_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "here"))
    folder = cluster_store.base_folder("tiny")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    cluster_store.put_base("tiny", "f1", folder, {})
    (key,) = [key for key in objects(cluster_store) if key.endswith(".safetensors")]
    s3fs.S3FileSystem().pipe_file(key, b"weighty")
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "there"))
    with pytest.raises(StoreError, match=r"model\.safetensors: is not the file that was put"):
        cluster_store.base("tiny")
    assert list((tmp_path / "there" / "bases").iterdir()) == []


def test_a_mounted_folder_holds_the_files_of_a_database(cluster: Servers, tmp_path: Path) -> None:
    address, _ = cluster.addresses()
    with Store(address, f"file://{tmp_path / 'shared'}") as store:
        record = store.put_module(tiny_module(), **whose("ann"))
        assert record.path == tmp_path / "shared" / record.location
        assert same(store.load_module(record), tiny_module())
        store.delete_user("ann")
        assert module_folders(store) == []


def test_commands_take_a_database_and_a_place_for_files(
    cluster: Servers, made_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "cache"))
    address, files = cluster.addresses()
    where = ("--store", address, "--files", files)
    task = ("--task", made_world.task)
    adapted = done(
        "adapt", *task, "--data", made_world.data, *where, "--base", made_world.base, "--name", "own", *SMALL
    )
    trained = done("personalize", *task, "--data", made_world.data, *where, "--base", "own", *SMALL)
    assert _PASSWORD not in adapted + trained
    assert "2 trained" in trained
    assert "2 modules of 2 users" in done("modules", "list", *where)
    assert done("ask", *where, "--user", "ann", "the sky").strip()
    done("modules", "export", *where, "--user", "ann", "--out", tmp_path / "exported")
    done("modules", "delete", *where, "--user", "ann", "--yes")
    done("modules", "import", tmp_path / "exported", *where, "--user", "cid")
    assert "2 modules of 2 users" in done("modules", "list", *where)
    unknown = refused("ask", *where, "--user", "ann", "the sky")
    assert "unknown user 'ann'" in unknown
    assert _PASSWORD not in unknown


def test_addresses_may_stand_in_the_environment(cluster: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no password need be on the command line, where other users of the machine see it."""
    address, files = cluster.addresses()
    monkeypatch.setenv("OPPU_STORE", address)
    monkeypatch.setenv("OPPU_FILES", files)
    assert "0 modules of 0 users" in done("modules", "list")


@pytest.mark.slow
def test_ray_workers_of_which_one_is_killed_fill_a_database_and_object_storage_with_the_modules_of_a_plain_run(
    cluster: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a cluster needs, at once: an adapted base in the storage, and workers that fetch it and put modules."""
    pytest.importorskip("ray")
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "cache"))
    users = [colour_user(f"u{number:03}", 1 + number % 5, queries=1) for number in range(120)]
    data = write_release(tmp_path / "data", users, [colour_user("x", 3)])
    given = ("--task", write_task(tmp_path / "colour.toml", COLOUR), "--data", data)
    tiny = tiny_base_folder(tmp_path / "tiny")
    address, files = cluster.addresses()
    where = ("--store", address, "--files", files)
    for store in (("--store", tmp_path / "plain"), where):
        done("adapt", *given, *store, "--base", tiny, "--name", "own", *SMALL)
    done("personalize", *given, "--store", tmp_path / "plain", "--base", "own", *SMALL)

    train = ["personalize", *given, *where, "--base", "own", *SMALL, "--slots", "2"]
    with Store(address, files) as store, start([*map(str, train), "--ray", "local", "--ray-workers", "2"]) as process:
        while not store.modules() and process.poll() is None:
            time.sleep(0.1)
        next(training_workers(psutil.Process(process.pid))).kill()
        assert len(store.modules()) < len(users)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert " died (killed" in err  # its users, if it had begun, are given out again
        assert sum(int(part.split(" ")[0]) for part in out.split(";")[0].split(", ")) == len(users), out
        assert _PASSWORD not in out + err
        found = modules_in(store, users)
    with Store(tmp_path / "plain") as plain:
        assert_undisturbed(found, modules_in(plain, users))
