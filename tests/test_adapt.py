"""Task adaption: the base with a module of the held-out users merged in, kept with a name and a record."""

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from conftest import toy_examples
from toys import COLOUR, FAST, colour_user, tiny_base_folder

from oppu.adapt import AdaptConfig, adapt_into_store, adaption_examples
from oppu.errors import ConfigError, DataError, OppuError
from oppu.examples import Setting
from oppu.model.bank import Bank
from oppu.model.base import Base, load_base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.tokens import encode
from oppu.personalize import base_of
from oppu.store import Store
from oppu.train import Job, Machine, train

CONFIG = AdaptConfig(FAST)
USERS = [colour_user("x", 4, queries=2), colour_user("y", 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


@torch.no_grad()
def log_probs(base: Base, slot: int = -1) -> torch.Tensor:
    """What the base makes of a few sequences."""
    return answer_log_probs(base.model, list(rows_of(slot, toy_examples(6, seed=1), 10_000)))


def test_pairs_are_the_answered_questions_and_the_histories_of_the_held_out_users() -> None:
    found = adaption_examples(COLOUR, USERS, CONFIG)
    assert [e.item_id for e in found] == [
        "x-q0", "x-q1", "x-0", "x-1", "x-2", "x-3", "y-q0", "y-0", "y-1", "y-2",
    ]  # fmt: skip
    queries_alone = adaption_examples(COLOUR, USERS, replace(CONFIG, histories=False))
    assert [e.item_id for e in queries_alone] == ["x-q0", "x-q1", "y-q0"]
    unanswered = replace(USERS[1], queries=(replace(USERS[1].queries[0], gold=None),))
    assert [e.item_id for e in adaption_examples(COLOUR, [unanswered], CONFIG)] == ["y-0", "y-1", "y-2"]


def test_pairs_are_drawn_at_random_but_always_the_same() -> None:
    config = replace(CONFIG, pairs=4)
    found = adaption_examples(COLOUR, USERS, config)
    assert len({e.item_id for e in found}) == 4
    assert adaption_examples(COLOUR, USERS, config) == found
    other_seed = replace(config, train=replace(FAST, seed=1))
    assert adaption_examples(COLOUR, USERS, other_seed) != found
    assert len(adaption_examples(COLOUR, USERS, replace(CONFIG, pairs=99))) == 10


def test_retrieval_and_profiles_stand_in_the_pairs_as_they_will_in_questions() -> None:
    config = replace(CONFIG, setting=Setting(k=1, retriever="recent", profile=True))
    found = {e.item_id: e.prompt for e in adaption_examples(COLOUR, USERS, config, {"y": "likes blue"})}
    assert found["y-q0"].startswith("likes blue\nthing: y thing 2 colour: ")
    assert found["y-0"] == "likes blue\nthing: y thing 0 colour:"
    assert found["x-1"].startswith("thing: x thing 0 colour: ")


def test_without_held_out_users_there_is_nothing_to_adapt_on(store: Store, base: Base) -> None:
    with pytest.raises(DataError, match="there are no held-out users to adapt the base on; give base users"):
        adapt_into_store(store, base, COLOUR, [], CONFIG)
    assert store.bases() == ()


def test_the_merged_base_equals_the_base_with_the_module(store: Store, base: Base, folder: Path) -> None:
    plain = load_base(str(folder))
    before = log_probs(plain)
    adapted = adapt_into_store(store, base, COLOUR, USERS, CONFIG)
    examples = encode(plain.tokenizer, adaption_examples(COLOUR, USERS, CONFIG), 512)
    (trained,) = train(plain, [Job("base:colour", tuple(examples))], FAST, Machine(1))
    bank = Bank(plain.model, FAST.module, 1)
    bank.load(0, trained.module)
    with bank.attach():
        expected = log_probs(plain, 0)
    torch.testing.assert_close(log_probs(adapted), expected, atol=1e-4, rtol=1e-4)
    assert (expected - before).abs().max() > 0.01
    assert adapted.record["losses"] == pytest.approx(trained.losses)


def test_an_adapted_base_has_a_name_a_fingerprint_and_a_record_of_its_own(store: Store, base: Base) -> None:
    adapted = adapt_into_store(store, base, COLOUR, USERS, replace(CONFIG, setting=Setting(k=1)))
    assert adapted.name == "colour-bm25-k1"
    assert adapted.fingerprint != base.fingerprint
    assert adapted.family == base.name
    assert adapted.record["made_from"] == {"name": base.name, "fingerprint": base.fingerprint}
    assert (adapted.record["examples"], len(adapted.record["losses"])) == (10, 5)
    assert adapted.record["config"]["train"]["learning_rate"] == FAST.learning_rate
    found = base_of(store, "colour-bm25-k1")
    assert (found.name, found.fingerprint, found.record) == (adapted.name, adapted.fingerprint, adapted.record)
    (kept,) = store.bases()
    assert (kept.fingerprint, dict(kept.record)) == (adapted.fingerprint, adapted.record)


def test_the_same_base_is_not_adapted_twice(
    store: Store, base: Base, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adapt_into_store(store, base, COLOUR, USERS, CONFIG)
    monkeypatch.setattr("oppu.adapt.train_into_base", lambda *_: pytest.fail("it trained"))
    again = adapt_into_store(store, load_base(str(folder)), COLOUR, USERS, CONFIG)
    assert (again.fingerprint, again.record["made"]) == (first.fingerprint, first.record["made"])


@pytest.mark.parametrize("place", ["elsewhere", "elsewhere/store"])
def test_a_base_made_elsewhere_from_the_same_is_taken_over(
    store: Store, base: Base, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with Store(tmp_path / "elsewhere" / "store") as other:
        first = adapt_into_store(other, base, COLOUR, USERS, CONFIG)
    monkeypatch.setattr("oppu.adapt.train_into_base", lambda *_: pytest.fail("it trained"))
    for _ in range(2):
        found = adapt_into_store(store, load_base(str(folder)), COLOUR, USERS, CONFIG, made_in=tmp_path / place)
        assert (found.fingerprint, found.record) == (first.fingerprint, first.record)
    shutil.rmtree(tmp_path / "elsewhere")
    assert base_of(store, "colour-plain").fingerprint == first.fingerprint


def test_a_base_made_elsewhere_from_something_else_is_not_taken_over(
    store: Store, base: Base, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path / "elsewhere") as other:
        first = adapt_into_store(other, base, COLOUR, USERS[:1], CONFIG)
    found = adapt_into_store(store, load_base(str(folder)), COLOUR, USERS, CONFIG, made_in=tmp_path / "elsewhere")
    assert found.fingerprint != first.fingerprint
    assert "elsewhere holds no base 'colour-plain' made from the same; one is adapted" in caplog.text


def test_a_folder_of_bases_that_is_not_there_is_an_error(store: Store, base: Base, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: is no folder; give the folder of a run, a study or a store"):
        adapt_into_store(store, base, COLOUR, USERS, CONFIG, made_in=tmp_path / "nowhere")


def test_other_settings_users_or_task_adapt_it_anew_under_the_name(store: Store, base: Base, folder: Path) -> None:
    seen = {adapt_into_store(store, base, COLOUR, USERS, CONFIG, name="mine").fingerprint}
    other_task = COLOUR.model_copy(update={"prompt": "{text}:"})
    for task, users, config in (
        (COLOUR, USERS, replace(CONFIG, train=replace(FAST, epochs=2))),
        (COLOUR, USERS[:1], CONFIG),
        (other_task, USERS, CONFIG),
    ):
        made = adapt_into_store(store, load_base(str(folder)), task, users, config, name="mine")
        assert made.fingerprint not in seen
        seen.add(made.fingerprint)
        assert base_of(store, "mine").fingerprint == made.fingerprint
    assert len(store.bases()) == 1


def test_a_base_whose_files_are_gone_is_made_again(store: Store, base: Base, folder: Path) -> None:
    first = adapt_into_store(store, base, COLOUR, USERS, CONFIG)
    store.base_folder("colour-plain").rename(store.folder / "lost")
    again = adapt_into_store(store, load_base(str(folder)), COLOUR, USERS, CONFIG)
    assert again.fingerprint == first.fingerprint
    assert store.base_folder("colour-plain").is_dir()


@pytest.mark.parametrize("place", ["transformers.PreTrainedModel.save_pretrained", "pathlib.Path.mkdir"])
def test_a_full_disk_leaves_the_older_base_and_no_remains(
    store: Store, base: Base, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first = adapt_into_store(store, base, COLOUR, USERS, CONFIG)

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(OppuError, match=r"No space left on device|the disk is full") as caught:
            adapt_into_store(store, load_base(str(folder)), COLOUR, USERS[:1], CONFIG)
    assert "\n" not in caught.value.line()
    assert base_of(store, "colour-plain").fingerprint == first.fingerprint
    assert [entry.name for entry in (store.folder / "bases").iterdir()] == ["colour-plain"]


def test_progress_counts_every_example_of_every_epoch(store: Store, base: Base) -> None:
    seen: list[tuple[int, int, int]] = []
    config = replace(CONFIG, train=replace(FAST, epochs=2))
    adapt_into_store(store, base, COLOUR, USERS, config, on_progress=lambda *news: seen.append(news))
    assert seen[-1][:2] == (20, 20)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
