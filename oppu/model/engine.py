"""Forward and backward of one step of many users, cut into passes that run side by side on the machine's cores."""

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.forward import SlotRow, answer_log_probs, passes, rows_of
from oppu.model.tokens import Encoded
from oppu.model.trunk import Trunk
from oppu.model.workers import Workers


@dataclass(frozen=True, slots=True)
class Progress:
    """What one pass of the loop has done."""

    tokens: int
    """Distinct tokens, as packed."""
    examples: int


@dataclass(frozen=True, slots=True)
class Engine:
    """Forward and backward of one step of all slots, spread over the workers."""

    base: Base
    bank: Bank
    workers: Workers
    tokens: int
    """Tokens under way at a time, a share for each worker; a long row may take two shares."""
    trunk: Trunk | None
    on_progress: Callable[[Progress], None]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def backward(self, batches: Mapping[int, Sequence[Encoded]]) -> dict[int, float]:
        """Gradients of each slot's mean loss over its batch's answer tokens; returns the losses by slot.

        Slots without a batch hold nobody: they may take copies of the others' modules.
        """
        self.bank.zero_grad()
        copies = self._copies(batches, ())
        losses = self._losses(batches, copies, learn=True)
        for copy, slot in copies.items():
            self.bank.grads[slot] += self.bank.grads[copy]
        return losses

    def losses(self, batches: Mapping[int, Sequence[Encoded]], others: Collection[int]) -> dict[int, float]:
        """The losses alone: no gradients, no dropout. `others`: slots of users who have no batch, but a module."""
        return self._losses(batches, self._copies(batches, others), learn=False)

    @property
    def _longest_row(self) -> int:
        """Twice a worker's share of the tokens: the more a row holds, the less often a shared beginning is computed."""
        return min(self.tokens, 2 * max(1, self.tokens // self.workers.count))

    def _losses(
        self, batches: Mapping[int, Sequence[Encoded]], copies: Mapping[int, int], *, learn: bool
    ) -> dict[int, float]:
        """Each slot's mean loss; `copies`: copy -> slot. `learn`: adds to the gradients, a copy's to its own line."""
        counts = {slot: sum(e.answer_tokens for e in batch) for slot, batch in batches.items()}
        owner = {slot: slot for slot in batches} | dict(copies)
        rows: dict[int, list[SlotRow]] = {}
        for slot, examples in batches.items():
            batch = [example.after_virtual(self.bank.config.virtual_tokens) for example in examples]
            places = [slot, *(copy for copy, of in copies.items() if of == slot)]
            for place, part in zip(places, _parts(batch, len(places)), strict=False):
                rows[place] = list(rows_of(place, part, self._longest_row))
        losses = dict.fromkeys(batches, 0.0)
        for found in self.workers.map(lambda share: self._run(share, owner, counts, learn), self._shares(rows)):
            for slot, loss in found.items():
                losses[slot] += loss
        return losses

    def _copies(self, batches: Mapping[int, Sequence[Encoded]], others: Collection[int]) -> dict[int, int]:
        """Spare slots that take copies of modules and share their batches, so that no worker waits long: copy -> slot.

        The slot whose part is the largest is divided, for as long as that helps.
        """
        if self.bank.config.dropout or self.workers.count == 1:  # a random stream cannot be shared
            return {}
        spare = [slot for slot in range(self.bank.slots) if slot not in batches and slot not in others]
        lengths = {slot: sum(len(example.tokens) for example in batch) for slot, batch in batches.items()}
        parts = dict.fromkeys(batches, 1)
        for _ in spare:
            largest = max(parts, key=lambda slot: lengths[slot] / parts[slot])
            divided = {**parts, largest: parts[largest] + 1}
            gain = self._waiting(lengths, parts) - self._waiting(lengths, divided)
            if parts[largest] == len(batches[largest]) or gain < _WORTH_DIVIDING * sum(lengths.values()):
                break
            parts = divided
        owners = [slot for slot, count in parts.items() for _ in range(count - 1)]
        copies = dict(zip(spare, owners, strict=False))
        for copy, slot in copies.items():
            self.bank.copy(slot, copy)
        return copies

    def _waiting(self, lengths: Mapping[int, int], parts: Mapping[int, int]) -> float:
        """The tokens of the worker that has the most, when each slot's are cut into so many parts."""
        loads = [0.0] * self.workers.count
        sizes = [lengths[slot] / count for slot, count in parts.items() for _ in range(count)]
        for size in sorted(sizes, reverse=True):
            loads[loads.index(min(loads))] += size
        return max(loads)

    def _shares(self, rows: Mapping[int, list[SlotRow]]) -> list[list[SlotRow]]:
        """Rows for each worker, about equally many tokens; a slot's rows stay together and in order."""
        shares: list[list[SlotRow]] = [[] for _ in range(min(self.workers.count, len(rows)))]
        sizes = [0] * len(shares)
        for listed in sorted(rows.values(), key=lambda listed: -_tokens(listed)):
            smallest = sizes.index(min(sizes))
            shares[smallest] += listed
            sizes[smallest] += _tokens(listed)
        return shares

    def _run(
        self, share: list[SlotRow], owner: Mapping[int, int], counts: Mapping[int, int], learn: bool
    ) -> dict[int, float]:
        """One worker's passes."""
        losses: dict[int, float] = {}
        for group in passes(share, self.tokens // self.workers.count):
            with torch.set_grad_enabled(learn):  # of this thread
                found = answer_log_probs(self.base.model, group, self.trunk.body if self.trunk else None)
            parts = found.split([row.answer_tokens for row in group])  # type: ignore[no-untyped-call]
            means = torch.stack([-p.sum() / counts[owner[row.slot]] for row, p in zip(group, parts, strict=True)])
            if learn:
                means.sum().backward()  # type: ignore[no-untyped-call]
            for row, mean in zip(group, means.tolist(), strict=True):  # an accelerator is waited for once
                losses[owner[row.slot]] = losses.get(owner[row.slot], 0.0) + mean
            if learn:
                with self._lock:
                    self.on_progress(Progress(_tokens(group), sum(len(row.examples) for row in group)))
        return losses


_WORTH_DIVIDING = 0.03
"""Share of a step's tokens by which the busiest worker must get less; beginnings that parts share cost twice."""


def _tokens(rows: Sequence[SlotRow]) -> int:
    return sum(len(row.row) for row in rows)


def _parts(batch: Sequence[Encoded], count: int) -> Iterator[list[Encoded]]:
    """A batch in at most `count` parts of about equally many examples, shared prefixes kept together."""
    ordered = sorted(batch, key=lambda e: e.tokens)
    size = math.ceil(len(ordered) / count)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
