"""A deleted user leaves no file, no row and no byte."""

import errno
import logging
import sqlite3
from pathlib import Path

import pytest
from store_samples import HISTORY, files_with, held, module_folders, same, tiny_module, told_of, under_way, whose

from oppu.errors import StoreError, UnknownUserError
from oppu.records import HistoryItem
from oppu.store import Store

_USER = "zanzibar-user"
_SECRETS = (
    _USER,
    "walrus-secret",
    "walrus-replaced",
    "walrus-training",
    "walrus-title",
    "walrus-profile",
    "on-the-way",
)


def put_secrets(store: Store) -> None:
    """A history and profiles that were replaced once, with overflow pages, and three modules in two tasks."""
    for word in ("walrus-replaced", "walrus-secret"):
        items = [
            HistoryItem(id=f"{word}-{number}", fields={"text": f"{word} " * 900, "title": "walrus-title"}, time=number)
            for number in range(20)
        ]
        store.put_history(_USER, "movie_tagging", items)
    store.put_history(_USER, "news_headline", HISTORY)
    for word in ("walrus-profile of old", "walrus-profile"):
        store.put_profiles([told_of(_USER, f"{word} " * 900), told_of(_USER, word, "model:x")])
    for task in ("movie_tagging", "movie_tagging", "news_headline"):
        store.put_module(tiny_module(), **whose(_USER, task=task, training={"note": "walrus-training"}))
    for word in (b"on-the-way of old", b"on-the-way"):
        store.put_checkpoints([under_way(_USER, word * 900), under_way(_USER, word, setting="k1")])


def test_a_deleted_user_leaves_no_trace_in_any_file(folder_store: Store) -> None:
    for other in ("ann", "zoe"):
        folder_store.put_profiles([told_of(other)])
        folder_store.put_history(other, "movie_tagging", HISTORY)
        folder_store.put_module(tiny_module(), **whose(other))
        folder_store.put_checkpoints([under_way(other)])
    put_secrets(folder_store)
    mine = folder_store.modules(user_id=_USER)
    kept = [record for record in folder_store.modules() if record.user_id != _USER]
    assert all(files_with(folder_store.folder, secret) for secret in _SECRETS)
    with Store(folder_store.folder):  # another connection is open meanwhile
        deleted = folder_store.delete_user(_USER)
    assert [(secret, found) for secret in _SECRETS if (found := files_with(folder_store.folder, secret))] == []
    assert files_with(folder_store.folder, mine[0].path.name.split("-")[0]) == []
    assert (deleted.user_id, deleted.task, deleted.modules, deleted.history_items) == (_USER, None, 3, 23)
    assert (deleted.profiles, deleted.checkpoints) == (2, 2)
    assert deleted.size_bytes == sum(record.size_bytes for record in mine)
    assert set(deleted.paths) == {record.path for record in mine}
    assert folder_store.users() == ("ann", "zoe")
    assert [record.user_id for record in folder_store.profiles("movie_tagging")] == ["ann", "zoe"]
    assert folder_store.history("ann", "movie_tagging") == HISTORY
    assert module_folders(folder_store) == sorted(record.location for record in kept)
    assert same(folder_store.load_module(kept[0]), tiny_module())
    assert len(module_folders(folder_store, "checkpoints")) == 2
    assert held(folder_store, "ann") == held(folder_store, "zoe") == b"under way"


def test_one_task_of_a_user_is_deleted_and_the_others_stay(folder_store: Store) -> None:
    put_secrets(folder_store)
    deleted = folder_store.delete_user(_USER, "movie_tagging")
    assert (deleted.task, deleted.modules, deleted.history_items) == ("movie_tagging", 2, 20)
    assert files_with(folder_store.folder, "walrus-secret") == []
    assert files_with(folder_store.folder, "walrus-replaced") == []
    assert files_with(folder_store.folder, "walrus-profile") == []
    assert module_folders(folder_store, "checkpoints") == []
    assert folder_store.users("movie_tagging") == ()
    assert folder_store.history(_USER, "news_headline") == HISTORY
    (kept,) = folder_store.modules()
    assert same(folder_store.load_module(kept), tiny_module())


def test_an_unknown_user_or_task_cannot_be_deleted(store: Store) -> None:
    store.put_history("ann", "movie_tagging", HISTORY)
    with pytest.raises(UnknownUserError, match="user 'bob' is unknown"):
        store.delete_user("bob")
    with pytest.raises(UnknownUserError, match="user 'ann' is unknown in task 'news_headline'"):
        store.delete_user("ann", "news_headline")
    assert store.history("ann", "movie_tagging") == HISTORY


def test_a_deleted_user_can_come_back(store: Store) -> None:
    store.put_module(tiny_module(1), **whose("ann"))
    store.put_module(tiny_module(1), **whose("ann"))
    store.delete_user("ann")
    assert store.put_module(tiny_module(2), **whose("ann")).version == 1


def test_a_deletion_that_the_disk_refuses_is_finished_later(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_secrets(folder_store)
    folder_store.put_history("ann", "movie_tagging", HISTORY)

    def refuse(path: Path, *, root: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("oppu.store.folder.remove_tree", refuse)
        with pytest.raises(StoreError, match="permission denied"):
            folder_store.delete_user(_USER)
        assert folder_store.users() == ("ann",)
        with pytest.raises(StoreError, match=f"user '{_USER}' is being deleted"):
            folder_store.put_module(tiny_module(), **whose(_USER))
        with caplog.at_level(logging.WARNING, "oppu.store"):
            Store(folder_store.folder).close()
    assert "cannot be finished yet" in caplog.text
    deleted = folder_store.delete_user(_USER)
    assert (deleted.modules, deleted.history_items) == (3, 23)
    assert files_with(folder_store.folder, "walrus-secret") == []


def test_a_reader_that_keeps_the_log_is_reported_and_the_next_opening_wipes_it(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_secrets(folder_store)
    monkeypatch.setattr("oppu.store.sqlite.BUSY_TIMEOUT_MS", 50)
    reader = sqlite3.connect(folder_store.folder / "oppu.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM users").fetchall()
    with pytest.raises(StoreError, match="another process keeps the write-ahead log"):
        folder_store.delete_user(_USER)
    assert folder_store.users() == ()
    assert files_with(folder_store.folder, "walrus-secret")
    reader.close()
    Store(folder_store.folder).close()
    assert files_with(folder_store.folder, "walrus-secret") == []
