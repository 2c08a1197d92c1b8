"""Forward and backward of one step of many users, cut into passes that run side by side on the machine's cores."""

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.forward import SlotRow, answer_log_probs, passes, rows_of
from oppu.model.packing import shared_beginnings
from oppu.model.recompute import recomputing
from oppu.model.tokens import Encoded
from oppu.model.trunk import Trunk
from oppu.model.workers import Room, Workers


@dataclass(frozen=True, slots=True)
class Progress:
    """What one pass of the loop has done."""

    tokens: int
    """Distinct tokens, as packed."""
    examples: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Examples of a slot's batch that are computed in one place."""

    slot: int
    examples: Sequence[Encoded]


@dataclass(frozen=True, slots=True)
class Engine:
    """Forward and backward of one step of all slots, spread over the workers."""

    base: Base
    bank: Bank
    workers: Workers
    tokens: int
    """Tokens under way at a time, a share for each worker; a long row may take two shares."""
    room: Room
    """For the tokens whose activations the workers' passes hold together, which long examples make more."""
    trunk: Trunk | None
    on_progress: Callable[[Progress], None]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def backward(self, batches: Mapping[int, Sequence[Encoded]]) -> dict[int, float]:
        """Gradients of each slot's mean loss over its batch's answer tokens; returns the losses by slot.

        Slots without a batch hold nobody: they may take copies of the others' modules.
        """
        self.bank.zero_grad()
        parts = self._divided(batches, ())
        losses = self._losses(parts, learn=True)
        for place, part in parts.items():
            if place != part.slot:
                self.bank.grads[part.slot] += self.bank.grads[place]
        return losses

    def losses(self, batches: Mapping[int, Sequence[Encoded]], others: Collection[int]) -> dict[int, float]:
        """The losses alone: no gradients, no dropout. `others`: slots of users who have no batch, but a module."""
        return self._losses(self._divided(batches, others), learn=False)

    @property
    def _longest_row(self) -> int:
        """Twice a worker's share of the tokens: the more a row holds, the less often a shared beginning is computed."""
        return min(self.tokens, 2 * max(1, self.tokens // self.workers.count))

    def _losses(self, parts: Mapping[int, _Part], *, learn: bool) -> dict[int, float]:
        """Each slot's mean loss; `parts`: by place. `learn`: adds to the gradients of each place."""
        counts: dict[int, int] = {}
        for part in parts.values():
            counts[part.slot] = counts.get(part.slot, 0) + sum(example.answer_tokens for example in part.examples)
        virtual = self.bank.config.virtual_tokens
        rows = {
            place: list(rows_of(place, [e.after_virtual(virtual) for e in part.examples], self._longest_row))
            for place, part in parts.items()
        }
        owner = {place: part.slot for place, part in parts.items()}
        losses = dict.fromkeys(counts, 0.0)
        for found in self.workers.map(lambda share: self._run(share, owner, counts, learn), self._shares(rows)):
            for slot, loss in found.items():
                losses[slot] += loss
        return losses

    def _divided(self, batches: Mapping[int, Sequence[Encoded]], others: Collection[int]) -> dict[int, _Part]:
        """Where each batch is computed: in its slot, and parts of it in spare slots, which take copies of the module.

        The longest part is divided, again and again, and the division kept that shortens the busiest worker's share. By
        place, in order.
        """
        spare = [slot for slot in range(self.bank.slots) if slot not in batches and slot not in others]
        if self.bank.config.dropout or self.workers.count == 1:  # a random stream cannot be shared
            spare = []
        parts: dict[int, list[Sequence[Encoded]]] = {slot: [batch] for slot, batch in batches.items()}
        sizes = {slot: [_distinct(batch)] for slot, batch in batches.items()} if spare else {}
        enough = _WORTH_DIVIDING * sum(size for (size,) in sizes.values())
        cost, tried, left = self._cost(sizes), dict(parts), len(spare)
        whole: set[int] = set()
        while candidates := sizes.keys() - whole:
            longest = max(candidates, key=lambda slot: max(sizes[slot]))
            finer = _cut_below(max(sizes[longest]), batches[longest])
            if len(finer) - len(tried[longest]) > left or not finer:
                whole.add(longest)
                continue
            left -= len(finer) - len(tried[longest])
            tried[longest], sizes[longest] = finer, [_distinct(part) for part in finer]
            if cost - self._cost(sizes) >= enough:
                parts, cost = dict(tried), self._cost(sizes)
        places = {slot: _Part(slot, listed[0]) for slot, listed in parts.items()}
        copies = (_Part(slot, part) for slot, listed in parts.items() for part in listed[1:])
        for place, part in zip(spare, copies, strict=False):
            self.bank.copy(part.slot, place)
            places[place] = part
        return places

    def _cost(self, sizes: Mapping[int, Sequence[int]]) -> float:
        """Of a step whose slots have parts of such sizes, in tokens: those of the busiest worker, and a bit of all."""
        loads = [0] * self.workers.count
        for size in sorted((size for listed in sizes.values() for size in listed), reverse=True):
            loads[loads.index(min(loads))] += size
        return max(loads) + _COST_OF_OTHERS * sum(loads) / len(loads)

    def _shares(self, rows: Mapping[int, list[SlotRow]]) -> list[list[SlotRow]]:
        """Rows that a worker runs in turn, whole slots in order; the workers take the longest shares first.

        Several shares for each worker, where there are passes enough, so that the one that is ahead takes more of them.
        """
        if self.workers.count == 1:
            return [[row for listed in rows.values() for row in listed]]
        total = sum(map(_tokens, rows.values()))
        rounds = math.ceil(total / self.tokens)
        limit = math.ceil(total / (rounds * self.workers.count))
        shares: list[list[SlotRow]] = []
        room: list[int] = []  # what is left of each share's last pass
        for listed in sorted(rows.values(), key=lambda listed: -_tokens(listed)):
            needed = _tokens(listed)
            place = next((index for index, left in enumerate(room) if left >= needed), None)
            if place is None:
                shares.append(list(listed))
                room.append(limit - _tokens(list(passes(listed, limit))[-1]))
            else:
                shares[place] += listed
                room[place] -= needed
        return sorted(shares, key=_tokens, reverse=True)

    def _run(
        self, share: list[SlotRow], owner: Mapping[int, int], counts: Mapping[int, int], learn: bool
    ) -> dict[int, float]:
        """One worker's passes."""
        losses: dict[int, float] = {}
        for group in passes(share, self.tokens // self.workers.count):
            with self.room.of(_tokens(group)), torch.set_grad_enabled(learn):  # of this thread
                with recomputing(self.base.model):
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
"""Share of a step's tokens that a division must save."""
_COST_OF_OTHERS = 0.2
"""Of a token that nobody waits for; beginnings that parts share are computed twice."""


def _tokens(rows: Sequence[SlotRow]) -> int:
    return sum(len(row.row) for row in rows)


def _distinct(examples: Sequence[Encoded]) -> int:
    """Their inputs' tokens, shared beginnings counted once."""
    return sum(_own(sorted(example.tokens[:-1] for example in examples)))


def _own(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Of sequences in order, the tokens of each that it does not share with the one before."""
    return [len(each) - shared for each, shared in zip(sequences, shared_beginnings(sequences), strict=True)]


def _cut_below(size: int, batch: Sequence[Encoded]) -> list[Sequence[Encoded]]:
    """As few parts as have less than `size` tokens each, in order, of which the longest is as short as can be.

    A beginning that two parts share counts in both. None where an example has so many by itself.
    """
    ordered = sorted(batch, key=lambda e: e.tokens)
    sequences = [example.tokens[:-1] for example in ordered]
    own = _own(sequences)

    def within(limit: int) -> list[int]:
        """Where the fewest parts of at most `limit` tokens begin."""
        starts, total = [0], own[0]
        for at in range(1, len(ordered)):
            total += own[at]
            if total > limit:
                starts.append(at)
                total = len(sequences[at])
        return starts

    limits = range(max(map(len, sequences)), size)
    if not limits:
        return []
    count = len(within(limits[-1]))
    starts = within(limits[bisect_left(limits, True, key=lambda limit: len(within(limit)) <= count)])
    return [ordered[start:end] for start, end in pairwise([*starts, len(ordered)])]
