"""How a step is dealt out to the workers: about equally many tokens to each, and the same gradients as by one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.engine import Engine
from oppu.model.forward import SlotRow
from oppu.model.kinds import LoraConfig
from oppu.model.tokens import Encoded
from oppu.model.workers import Workers


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
        losses = Engine(base, bank, workers, tokens, None, lambda _: None).backward(batches)
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


def test_a_batch_is_divided_by_its_tokens_and_not_by_its_examples(base: Base) -> None:
    batches = {0: batch(10, [100, 20, 20, 20, 20, 20])}
    workers = Watched(2)
    losses, gradients = step(base, workers, batches, slots=3, tokens=512)
    assert workers.sizes == [100, 100]
    alone, same = step(base, Watched(1), batches, slots=1, tokens=512)
    assert losses == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(gradients, same, rtol=1e-4, atol=1e-6)


def test_a_batch_whose_examples_share_nearly_everything_is_not_divided(base: Base) -> None:
    shared = tuple(range(1, 81))
    batches = {0: [Encoded((*shared, end, end), 81) for end in range(85, 93)]}
    workers = Watched(2)
    step(base, workers, batches, slots=3, tokens=512)
    assert workers.sizes == [88]
