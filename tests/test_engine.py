"""How a step is dealt out to the workers: about equally many tokens to each, and the same gradients as by one."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from oppu.model import engine
from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.engine import Engine
from oppu.model.forward import SlotRow
from oppu.model.kinds import LoraConfig
from oppu.model.tokens import Encoded
from oppu.model.workers import Room, Workers, workers_for


class Watched(Workers):
    """Workers that do everything in one thread, and keep what they are given."""

    def __init__(self, count: int) -> None:
        super().__init__(count, count, None)
        object.__setattr__(self, "given", [])

    __slots__ = ("given",)
    given: list[list[SlotRow]]

    def map(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        self.given.extend(parts)
        return super().map(work, parts)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each share, in the order in which they are taken."""
        return [sum(len(row.row) for row in share) for share in self.given]


def batch(first: int, lengths: Sequence[int]) -> list[Encoded]:
    """Examples of so many tokens, the last never an input, that share no beginning."""
    return [Encoded((first + n, *range(1, length + 1)), length) for n, length in enumerate(lengths)]


def step(
    base: Base, workers: Workers, batches: Mapping[int, Sequence[Encoded]], *, slots: int, tokens: int
) -> tuple[dict[int, float], torch.Tensor]:
    """Losses and gradients of a step in a bank with so many slots."""
    bank = Bank(base.model, LoraConfig(rank=2), slots)
    for slot in batches:
        bank.reset(slot, slot)
    with bank.attach():
        losses = Engine(base, bank, workers, tokens, Room(2 * tokens), None, lambda _: None).backward(batches)
    return losses, bank.grads[list(batches)]


def test_many_users_make_several_shares_for_each_worker_the_longest_first(base: Base) -> None:
    lengths = [60, 11, 9, 31, 14, 40, 7, 22, 90, 16, 12, 8]
    batches = {slot: batch(slot + 10, [length - 3, 3]) for slot, length in enumerate(lengths)}
    workers = Watched(2)
    losses, gradients = step(base, workers, batches, slots=12, tokens=128)
    assert workers.sizes == sorted(workers.sizes, reverse=True)
    assert sum(workers.sizes) == sum(lengths)
    assert sorted(row.slot for share in workers.given for row in share) == list(range(12))  # each in one share
    assert max(size for share, size in zip(workers.given, workers.sizes, strict=True) if len(share) > 1) <= 64
    ends = [0, 0]
    for size in workers.sizes:  # whoever is free takes the next
        ends[ends.index(min(ends))] += size
    assert max(ends) <= 1.1 * sum(lengths) / 2
    alone, same = step(base, Watched(1), batches, slots=12, tokens=128)
    assert losses == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(gradients, same, rtol=1e-4, atol=1e-6)


SHARED = tuple(range(1, 101))


def branches(beginning: tuple[int, ...], count: int, own: int) -> list[Encoded]:
    """Examples behind a shared beginning, each with so many input tokens of its own."""
    return [Encoded((*beginning, *([110 + n] * own), 1), len(beginning) + own) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "batches", "shares"),
    [
        (2, {0: batch(10, [100, 20, 20, 20, 20, 20])}, [100, 100]),  # by tokens, not by examples
        (2, {0: branches(SHARED, 16, 20)}, [260, 260]),  # what is shared stands in both
        (4, {0: branches(SHARED, 16, 20)}, [180, 180, 180, 180]),
        (2, {0: branches((101, *SHARED[:49]), 4, 10) + branches((102, *SHARED), 4, 10)}, [141, 90]),
        (2, {0: branches(SHARED, 8, 1)}, [108]),  # nearly everything is shared: not worth it
        (4, {0: batch(10, [20] * 8), 1: batch(30, [20] * 8)}, [80, 80, 80, 80]),  # the first division gains nothing
        (2, {0: batch(10, [101]), 1: batch(20, [10] * 9), 2: batch(40, [10] * 9)}, [141, 140]),  # one cannot be divided
    ],
)
def test_batches_are_divided_so_that_no_worker_waits_long(
    base: Base, count: int, batches: dict[int, list[Encoded]], shares: list[int]
) -> None:
    workers = Watched(count)
    losses, gradients = step(base, workers, batches, slots=8, tokens=512 * count)
    assert workers.sizes == shares
    alone, same = step(base, Watched(1), batches, slots=3, tokens=512)
    assert losses == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(gradients, same, rtol=1e-4, atol=1e-6)


def test_passes_that_hold_more_than_there_is_room_for_wait_for_each_other(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example that is longer than planned is one pass; two of them at once would take twice the memory."""
    under_way: list[int] = []
    most: list[int] = []
    real = engine.answer_log_probs

    def watched(model: Any, group: list[SlotRow], body: Any) -> torch.Tensor:
        tokens = sum(len(row.row) for row in group)
        under_way.append(tokens)
        most.append(sum(under_way))
        time.sleep(0.05)
        found = real(model, group, body)
        under_way.remove(tokens)
        return found

    monkeypatch.setattr(engine, "answer_log_probs", watched)
    cores = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with workers_for(torch.device("cpu")) as workers:
            batches = {slot: batch(10 * slot + 10, [100 + slot, 30]) for slot in range(4)}
            step(base, workers, batches, slots=4, tokens=128)
    finally:
        torch.set_num_threads(cores)
    assert len(most) > 4
    assert max(most) <= 256
