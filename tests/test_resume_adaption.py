"""Interrupted, a task adaption goes on where it was, and leaves a whole base or none."""

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from interruptions import (
    SETTINGS,
    Interrupted,
    interrupt_after,
)
from toys import COLOUR, colour_user, tiny_base_folder

from oppu.adapt import AdaptConfig, adapt_into_store
from oppu.model.base import load_base
from oppu.store import Store
from oppu.train import Machine


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


HELD_OUT = [colour_user("x", 6), colour_user("y", 4)]
ADAPT = AdaptConfig(SETTINGS)


def adapt_interrupted(store: Store, folder: Path, steps: int) -> None:
    with pytest.raises(Interrupted):
        adapt_into_store(
            store,
            load_base(str(folder)),
            COLOUR,
            HELD_OUT,
            ADAPT,
            machine=Machine(1, checkpoint_s=0),
            on_progress=interrupt_after(steps),
        )


def names(store: Store) -> set[str]:
    return {path.name for path in (store.folder / "bases").iterdir()}


def test_an_adaption_goes_on_to_the_same_base_to_the_last_bit(store: Store, base_folder: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "undisturbed") as other:
        expected = adapt_into_store(other, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    adapt_interrupted(store, base_folder, 9)
    assert names(store) == {".colour-plain.checkpoint"}
    adapt_interrupted(store, base_folder, 1 + 8)  # the first news are the nine steps that are done
    told: list[tuple[int, int, int]] = []
    found = adapt_into_store(
        store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT, on_progress=lambda *news: told.append(news)
    )
    assert found.fingerprint == expected.fingerprint
    assert found.record["losses"] == expected.record["losses"]
    assert [done for done, *_ in told] == list(range(17, 25))
    assert names(store) == {"colour-plain"}


def test_a_torn_checkpoint_of_an_adaption_is_said_and_the_adaption_begins_anew(
    store: Store, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapt_interrupted(store, base_folder, 9)
    file = store.folder / "bases" / ".colour-plain.checkpoint"
    file.write_bytes(file.read_bytes()[:-10])
    told: list[object] = []
    with caplog.at_level(logging.WARNING, "oppu.adapt"):
        adapt_into_store(
            store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT, on_progress=lambda *_: told.append(_)
        )
    assert "the checkpoint cannot be used, so the adaption begins anew (it is torn" in caplog.text
    assert len(told) == 24
    assert names(store) == {"colour-plain"}


def test_a_checkpoint_of_other_pairs_is_not_used_for_an_adaption(
    store: Store, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapt_interrupted(store, base_folder, 9)
    told: list[object] = []
    with caplog.at_level(logging.WARNING, "oppu.adapt"):
        adapt_into_store(
            store, load_base(str(base_folder)), COLOUR, HELD_OUT[:1], ADAPT, on_progress=lambda *_: told.append(_)
        )
    assert "it belongs to another training" in caplog.text
    assert len(told) == 14
    assert names(store) == {"colour-plain"}


def test_a_base_that_was_made_but_not_put_is_put_and_not_made_again(
    store: Store, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_base", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            adapt_into_store(store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    assert store.bases() == ()
    monkeypatch.setattr("oppu.adapt.train_into_base", lambda *_: pytest.fail("it trained"))
    found = adapt_into_store(store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    assert [(kept.name, kept.fingerprint) for kept in store.bases()] == [("colour-plain", found.fingerprint)]


def test_what_a_killed_adaption_left_half_written_is_cleared(store: Store, base_folder: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    from oppu.store.files import temporary_name

    bases = store.folder / "bases"
    living = bases / temporary_name("other")
    living.mkdir()
    half = bases / temporary_name("colour-plain").replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (bases / temporary_name(".colour-plain.checkpoint").replace(f"-{os.getpid()}-", f"-{dead.pid}-")).write_bytes(b"x")
    adapt_into_store(store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    assert names(store) == {"colour-plain", living.name}
