"""A training that is interrupted and gone on with ends as if nothing had been."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import pytest
import torch
from conftest import toy_examples

from oppu.errors import ModelError
from oppu.model.base import Base
from oppu.model.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint
from oppu.model.engine import Progress
from oppu.model.kinds import Ia3Config, LoraConfig, LoraXsConfig, ModuleConfig, PromptConfig
from oppu.train import Job, Machine, TrainConfig, Trained, train

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=5e-3, module=LoraConfig(rank=4, alpha=8))
SIZES = {"long": 23, "short": 5, "medium": 9, "late": 6}
STOPPING = replace(CONFIG, epochs=8, learning_rate=3e-2, patience=2, held_out=0.2)

KINDS: dict[str, ModuleConfig] = {
    "lora": LoraConfig(rank=4, alpha=8),
    "lora with dropout": LoraConfig(rank=4, alpha=8, dropout=0.3),
    "lora-xs": LoraXsConfig(rank=4),
    "ia3": Ia3Config(),
    "prompt": PromptConfig(4),
}


def job(name: str, begun: Checkpoint | None = None) -> Job:
    return Job(name, toy_examples(SIZES[name], seed=list(SIZES).index(name)), begun=begun)


def kept_along(base: Base, jobs: Sequence[Job], config: TrainConfig, slots: int) -> tuple[list[Trained], list[bytes]]:
    """What comes of the jobs, and the first job's checkpoints after each of its steps, as files."""
    files: list[bytes] = []

    def keep(under_way: Iterator[tuple[str, Checkpoint]]) -> None:
        files.extend(checkpoint_bytes(checkpoint, "f") for name, checkpoint in under_way if name == jobs[0].user_id)

    return list(train(base, jobs, config, Machine(slots, 300, checkpoint_s=0), on_checkpoint=keep)), files


def assert_equal(found: Trained, expected: Trained) -> None:
    """To the last bit."""
    assert found.losses == expected.losses
    assert found.held_out_losses == expected.held_out_losses
    assert found.module.tensors.keys() == expected.module.tensors.keys()
    assert all(torch.equal(found.module.tensors[name], tensor) for name, tensor in expected.module.tensors.items())


def difference(left: Trained, right: Trained) -> float:
    a, b = (torch.cat([t.module.tensors[name].flatten() for name in sorted(t.module.tensors)]) for t in (left, right))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_gone_on_with_after_any_step_is_the_undisturbed_one_to_the_last_bit(base: Base, kind: str) -> None:
    config = replace(CONFIG, module=KINDS[kind], epochs=2)
    (undisturbed,), files = kept_along(base, [job("long")], config, 1)
    assert len(files) == len(undisturbed.losses) - 1  # after the last step there is nothing to go on with
    for step in (1, 5, 6, 9, 11):
        begun = read_checkpoint(files[step - 1], "f")
        assert begun.step == step
        taken: list[Progress] = []
        (found,) = train(base, [job("long", begun)], config, Machine(1, 300), taken.append)
        assert_equal(found, undisturbed)
        done = 4 * step - (step >= 6)  # an epoch's sixth batch has three examples
        assert sum(news.examples for news in taken) == 2 * 23 - done


def test_early_stop_goes_on_with_its_best_epoch(base: Base) -> None:
    (undisturbed,), files = kept_along(base, [job("long")], STOPPING, 1)
    best = undisturbed.held_out_losses.index(min(undisturbed.held_out_losses))
    assert best + 1 < len(undisturbed.held_out_losses)  # so that the best lies before some checkpoints
    for file in files:
        (found,) = train(base, [job("long", read_checkpoint(file, "f"))], STOPPING, Machine(1, 300))
        assert_equal(found, undisturbed)


def test_interruptions_again_and_again_change_nothing(base: Base) -> None:
    config = replace(CONFIG, module=KINDS["lora with dropout"])
    (undisturbed,), _ = kept_along(base, [job("long")], config, 1)
    begun: Checkpoint | None = None
    for _ in range(1000):
        kept: list[Checkpoint] = []
        running = train(
            base,
            [job("long", begun)],
            config,
            Machine(1, 300, checkpoint_s=0),
            on_checkpoint=lambda news, kept=kept: stop_after(2, kept, news),
        )
        try:
            (found,) = running
            break
        except InterruptedError:
            begun = read_checkpoint(checkpoint_bytes(kept[-1], "f"), "f")
    assert_equal(found, undisturbed)


def stop_after(count: int, kept: list[Checkpoint], news: Iterator[tuple[str, Checkpoint]]) -> None:
    kept.extend(checkpoint for _, checkpoint in news)
    if len(kept) == count:
        raise InterruptedError


def test_in_company_each_goes_on_from_its_own_step(base: Base) -> None:
    undisturbed = {t.user_id: t for t in train(base, [job(name) for name in SIZES], CONFIG, Machine(2))}
    files: dict[str, list[bytes]] = {name: [] for name in SIZES}
    steps = 0

    def keep(under_way: Iterator[tuple[str, Checkpoint]]) -> None:
        nonlocal steps
        steps += 1
        for name, checkpoint in under_way:
            files[name].append(checkpoint_bytes(checkpoint, name))
        if steps == 7:
            raise InterruptedError

    finished: list[Trained] = []
    with pytest.raises(InterruptedError):
        finished.extend(
            train(base, [job(name) for name in SIZES], CONFIG, Machine(2, checkpoint_s=0), on_checkpoint=keep)
        )
    begun = {name: read_checkpoint(found[-1], name) for name, found in files.items() if found}
    assert len({checkpoint.step for checkpoint in begun.values()}) > 1
    left = [name for name in SIZES if name not in {trained.user_id for trained in finished}]
    again = train(base, [job(name, begun.get(name)) for name in left], CONFIG, Machine(3))
    for trained in chain(finished, again):
        assert trained.losses == pytest.approx(undisturbed[trained.user_id].losses, rel=1e-4)
        assert difference(trained, undisturbed[trained.user_id]) < 1e-4


def test_nothing_is_kept_before_its_time_and_everyone_under_way_is(base: Base) -> None:
    seen: list[list[str]] = []
    names = ["medium", "long", "short"]
    keep = lambda under_way: seen.append([name for name, _ in under_way])  # noqa: E731
    list(train(base, [job(name) for name in names], CONFIG, Machine(2), on_checkpoint=keep))
    assert seen == []
    list(train(base, [job(name) for name in names], CONFIG, Machine(2, checkpoint_s=0), on_checkpoint=keep))
    assert seen[0] == ["medium", "long"]
    assert {name for names in seen for name in names} == set(names)
    assert all(1 <= len(names) <= 2 for names in seen)


@pytest.mark.parametrize("change", ["step", "size", "losses", "epochs", "stream"])
def test_a_checkpoint_that_does_not_fit_is_left_alone_and_said(
    base: Base, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(STOPPING, module=KINDS["lora with dropout"], epochs=3)
    (undisturbed,), files = kept_along(base, [job("long")], config, 1)
    begun = read_checkpoint(files[5], "f")
    wrong = {
        "step": replace(begun, step=99, losses=begun.losses * 20),
        "size": replace(begun, values=begun.values[1:]),
        "losses": replace(begun, losses=begun.losses[1:]),
        "epochs": replace(begun, held_out_losses=()),
        "stream": replace(begun, stream=begun.stream[:16]),
    }[change]
    with caplog.at_level(logging.WARNING, "oppu.train"):
        (found,) = train(base, [job("long", wrong)], config, Machine(1, 300))
    assert "user long: the checkpoint does not fit, so the training begins anew" in caplog.text
    assert_equal(found, undisturbed)


def test_a_file_that_is_torn_or_foreign_is_refused(base: Base) -> None:
    _, files = kept_along(base, [job("long")], CONFIG, 1)
    for torn in (b"", b"not a checkpoint", files[0][:-1], files[0][: len(files[0]) // 2], files[0] + b"\0"):
        with pytest.raises(ModelError, match="it is torn, or no checkpoint"):
            read_checkpoint(torn, "f")
    with pytest.raises(ModelError, match="it belongs to another training"):
        read_checkpoint(files[0], "e")


def test_seconds_add_up_over_interruptions(base: Base) -> None:
    _, files = kept_along(base, [job("long")], CONFIG, 1)
    begun = replace(read_checkpoint(files[3], "f"), seconds=1000.0)
    kept: list[Checkpoint] = []
    list(
        train(
            base,
            [job("long", begun)],
            CONFIG,
            Machine(1, checkpoint_s=0),
            on_checkpoint=lambda news: kept.extend(checkpoint for _, checkpoint in news),
        )
    )
    seconds = [checkpoint.seconds for checkpoint in kept]
    assert seconds == sorted(seconds)
    assert 1000 < seconds[0] < seconds[-1] < 1100
