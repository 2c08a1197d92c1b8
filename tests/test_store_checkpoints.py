"""Trainings under way: kept by user, task, setting and base, replaced, and gone with the module or the user."""

import pytest
from store_samples import HISTORY, held, module_folders, notes, tiny_module, under_way, whose

from oppu.errors import StoreError
from oppu.store import Store


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
