"""The store gives back exactly what was put, and says clearly what it cannot do."""

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import torch
from store_samples import HISTORY, module_folders, notes, same, tiny_module, told_of, whose

from oppu.errors import StoreError, UnknownUserError
from oppu.model.module import Module
from oppu.records import HistoryItem, Profile
from oppu.store import ModuleRecord, NewModule, Store


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


def test_threads_share_a_store(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda seed: store.put_module(tiny_module(seed), **whose("ann")), range(16)))
        assert sorted(record.version for record in records) == list(range(1, 17))
        loaded = list(pool.map(store.load_module, records))
    assert all(same(module, tiny_module(seed)) for seed, module in enumerate(loaded))


def test_of_two_who_put_the_same_training_at_once_the_second_gets_the_firsts_module(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_module(tiny_module(9), **whose("ann", training={"fingerprint": "older"}))
    both_have_written = Barrier(2)

    def put(number: int) -> tuple[ModuleRecord, bool]:
        with Store(store.address, store.files) as mine:
            write = mine._place.write

            def write_and_wait(folders: Mapping[str, Mapping[str, bytes]]) -> None:
                write(folders)
                both_have_written.wait(60)

            monkeypatch.setattr(mine._place, "write", write_and_wait)
            whom = whose("ann", training={"fingerprint": "newer", "by": number})
            return mine.put_module_once(NewModule(tiny_module(number), **whom))

    with ThreadPoolExecutor(2) as pool:
        (first, first_is_new), (second, second_is_new) = pool.map(put, range(2))
    assert first == second
    assert {first_is_new, second_is_new} == {True, False}
    assert [record.version for record in store.modules()] == [1, 2]
    assert same(store.load_module(first), tiny_module(int(second_is_new)))
    assert module_folders(store) == sorted(record.location for record in store.modules())
    assert notes(store) == 0


def test_a_module_that_is_damaged_or_of_another_training_is_put_again(folder_store: Store) -> None:
    folder_store.put_history("ann", "movie_tagging", HISTORY)

    def put(fingerprint: str | None) -> tuple[int, bool]:
        new = NewModule(tiny_module(), **whose("ann", training={"fingerprint": fingerprint} if fingerprint else {}))
        record, is_new = folder_store.put_module_once(new)
        return record.version, is_new

    assert [put("a"), put("a"), put("b"), put("a")] == [(1, True), (1, False), (2, True), (3, True)]
    newest = folder_store.find_module("ann", "movie_tagging")
    assert newest is not None
    (Path(newest.path) / "adapter_model.safetensors").write_bytes(b"")
    assert [put("a"), put("a")] == [(4, True), (4, False)]
    assert [put(None), put(None)] == [(5, True), (6, True)]


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
