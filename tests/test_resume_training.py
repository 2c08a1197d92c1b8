"""Interrupted at any moment, the training of a user goes on where it was, to the last bit."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interruptions import (
    SETTINGS,
    Interrupted,
    assert_nothing_under_way,
    difference,
    interrupted,
    modules,
    steps_of,
    undisturbed,
)
from store_samples import files_with, module_folders, notes
from toys import COLOUR, colour_user, colour_users, tiny_base_folder

from oppu.model.base import Base, load_base
from oppu.personalize import Plan, personalize
from oppu.store import NewCheckpoint, Store
from oppu.train import Machine


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def base(base_folder: Path) -> Base:
    return load_base(str(base_folder))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def test_who_was_under_way_is_gone_on_with_to_the_last_bit(store: Store, base: Base, tmp_path: Path) -> None:
    users = colour_users(6)
    interrupted(store, base, users, 7)
    interrupted(store, base, users, 3)
    assert len(module_folders(store, "checkpoints")) == 1
    assert steps_of(store, base, users) == 12 - 7 - 3
    expected = undisturbed(tmp_path / "undisturbed", base, users)
    assert all(torch.equal(modules(store)["a"].tensors[n], tensor) for n, tensor in expected["a"].tensors.items())
    assert_nothing_under_way(store)


def test_several_users_under_way_go_on_each_from_its_own_step(store: Store, base: Base, tmp_path: Path) -> None:
    users = colour_users(2, 6, 5)  # the first is done when the others are not, and the third begins later
    interrupted(store, base, users, 8, slots=2)
    with Store(store.folder) as other:
        assert [record.user_id for record in other.modules()] == ["a"]
    assert len(module_folders(store, "checkpoints")) == 2
    steps_of(store, base, users, slots=2)
    expected = undisturbed(tmp_path / "undisturbed", base, users, slots=2)
    for user_id, found in modules(store).items():
        assert difference(found, expected[user_id]) < 1e-4
    assert_nothing_under_way(store)


def test_other_settings_or_another_history_begin_anew(store: Store, base: Base) -> None:
    interrupted(store, base, colour_users(6), 7)
    assert steps_of(store, base, colour_users(5)) == 10
    interrupted(store, base, colour_users(6), 7)
    other = Plan(COLOUR, replace(SETTINGS, seed=1))
    taken: list[object] = []
    list(personalize(store, base, other, colour_users(6), machine=Machine(1), on_progress=taken.append))
    assert len(taken) == 12
    assert_nothing_under_way(store)


@pytest.mark.parametrize("damage", ["torn", "gone", "of another user"])
def test_a_checkpoint_that_cannot_be_used_is_said_and_costs_only_its_own_steps(
    store: Store, base: Base, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    users = colour_users(6)
    interrupted(store, base, users, 7)
    file = store.folder / module_folders(store, "checkpoints")[0] / "checkpoint.safetensors"
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "gone":
        file.unlink()
    else:
        data = file.read_bytes()
        with store._database.reading() as connection:
            (row,) = connection.exec_driver_sql("SELECT setting, base_fingerprint FROM checkpoints").all()
        store.put_history("b", COLOUR.name, colour_user("b", 6).history)
        users = [colour_user("b", 6)]
        interrupted(store, base, users, 2)
        with store._database.reading() as connection:
            query = "SELECT fingerprint FROM checkpoints WHERE user_id = 'b'"
            (fingerprint,) = connection.exec_driver_sql(query).one()
        store.put_checkpoints([NewCheckpoint("b", COLOUR.name, *row, fingerprint, data)])
    with caplog.at_level(logging.WARNING, "oppu.personalize"):
        assert steps_of(store, base, users) == 12
    assert f"user {users[0].id}: the checkpoint cannot be used, so the training begins anew" in caplog.text
    expected = undisturbed(tmp_path / "undisturbed", base, users)[users[0].id]
    assert difference(modules(store)[users[0].id], expected) == 0.0


def test_checkpoints_that_cannot_be_written_are_said_and_the_training_goes_on(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (store.folder / "checkpoints").write_text("in the way")
    plan = Plan(COLOUR, SETTINGS)
    with caplog.at_level(logging.WARNING, "oppu.personalize"):
        found = list(personalize(store, base, plan, colour_users(2), machine=Machine(1, checkpoint_s=0)))
    assert [result.status for result in found] == ["trained"]
    assert "what is under way cannot be kept; the training goes on" in caplog.text
    assert notes(store) == 0


def test_a_deleted_user_leaves_no_checkpoint_and_the_others_go_on(store: Store, base: Base) -> None:
    users = [colour_user("zanzibar-user", 6), colour_user("ann", 6)]
    interrupted(store, base, users, 5, slots=2)
    folders = module_folders(store, "checkpoints")
    assert len(folders) == 2
    assert store.delete_user("zanzibar-user").checkpoints == 1
    (left,) = module_folders(store, "checkpoints")
    (gone,) = set(folders) - {left}
    assert files_with(store.folder, "zanzibar-user") == []
    assert files_with(store.folder, gone.split("/")[1]) == []
    assert steps_of(store, base, users[1:]) == 12 - 5


def test_a_user_deleted_in_the_training_gets_no_further_checkpoint(store: Store, base: Base) -> None:
    user = colour_user("zanzibar-user", 6)
    steps = 0

    def progress(_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            store.delete_user(user.id)
        if steps == 8:
            assert module_folders(store, "checkpoints") == []
            assert files_with(store.folder, user.id) == []
            raise Interrupted

    with pytest.raises(Interrupted):
        list(personalize(store, base, Plan(COLOUR, SETTINGS), [user], None, Machine(1, checkpoint_s=0), progress))
    assert_nothing_under_way(store)


def test_a_user_deleted_in_the_training_stays_deleted_when_it_ends(store: Store, base: Base) -> None:
    user, steps = colour_user("zanzibar-user", 6), 0

    def progress(_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            store.delete_user(user.id)

    (result,) = personalize(store, base, Plan(COLOUR, SETTINGS), [user], None, Machine(1), progress)
    assert (result.status, result.record) == ("failed", None)
    assert result.reason == "user zanzibar-user: was deleted while the module was trained; nothing of it is kept"
    assert not store.knows(user.id)
    assert module_folders(store) == []
    assert files_with(store.folder, user.id) == []
    assert notes(store) == 0


def test_a_training_that_diverges_leaves_no_checkpoint(store: Store, base: Base) -> None:
    plan = Plan(COLOUR, replace(SETTINGS, learning_rate=1e30))
    (result,) = personalize(store, base, plan, colour_users(6), machine=Machine(1, checkpoint_s=0))
    assert result.status == "failed"
    assert_nothing_under_way(store)
