"""The modules of one decoding step, stacked: two products serve all tokens, whoever they belong to.

    y[n] += own(x[n] @ A.T * scale[n]) @ B      A [C*R, I], B [C*R, O]: the modules of C slots, one above the other

own() keeps the ranks of the token's own slot and puts zeros elsewhere: nothing of a neighbour gets in, NaN neither.
The products with zeros cost less than a gather of each token's a and b, which copies them at every step.
Glossary: n tokens, C slots of these tokens, R rank, I/O in/out features.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from oppu.model.blocks import Spans


class StepModules:
    """What the adapted layers add in the decoding steps of a set of slots; made once, kept while it serves."""

    def __init__(self, slots: tuple[int, ...], version: int, scales: Sequence[float] = ()) -> None:
        """`version`: of the bank's values, from which the stacks are copied; `scales`: of the slots' modules."""
        self.slots = slots
        self._scales = scales
        self._version = version
        self._stacks: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._spans: Spans | None = None
        self._own: tuple[torch.Tensor, torch.Tensor] | None = None

    def serves(self, spans: Spans, version: int) -> bool:
        """Whether the values are still these, and the spans' slots among them, most of which are needed."""
        if version != self._version:
            return False
        if spans is self._spans:
            return True
        needed = slots_of(spans)
        return needed <= set(self.slots) and len(self.slots) <= 2 * len(needed)

    def delta(
        self,
        name: str,
        x: torch.Tensor,
        spans: Spans,
        parts: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """The term added for x [n, I] in the layer `name`, [n, O]; `parts(slots)`: its a [C, R, I], b [C, O, R]."""
        if name not in self._stacks:
            a, b = parts(torch.tensor(self.slots, device=x.device))
            # 0 times NaN is NaN: where a slot's b is no number its a says so, which the others' tokens never meet
            bad = ~b.isfinite().all(2).all(1)[:, None, None]
            a, b = a.masked_fill_(bad, torch.nan), b.masked_fill_(bad, 0)
            self._stacks[name] = a.flatten(0, 1), b.transpose(1, 2).flatten(0, 1)
        down, up = self._stacks[name]
        scales, others = self._own_of(spans, down)
        return torch.mm(torch.mm(x, down.T).mul_(scales).masked_fill_(others, 0), up)

    @torch.inference_mode()
    def wipe(self) -> None:
        """Overwrite the stacks with zeros; it serves nobody then."""
        for stacks in self._stacks.values():
            for stack in stacks:
                stack.zero_()

    def _own_of(self, spans: Spans, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scale of each token's module [n, 1], and which ranks are not of its slot [n, C*R]."""
        if self._own is None or spans is not self._spans:
            scale_of = dict(zip(self.slots, self._scales, strict=True))
            scales = torch.tensor([[scale_of.get(slot, 0.0)] for slot, _, _ in spans])
            others = torch.tensor([[slot != other for other in self.slots] for slot, _, _ in spans])
            ranks = down.shape[0] // len(self.slots)
            self._own = scales.to(down), others.to(down.device).repeat_interleave(ranks, dim=1)
            self._spans = spans
        return self._own


@lru_cache(maxsize=8)  # every adapted layer of a step asks
def step_slots(spans: Spans, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The slot of each token of a step [n], 0 for the plain base, and whether it is the plain base [n, 1]."""
    slots = torch.tensor([slot for slot, _, _ in spans])
    return slots.clamp(min=0).to(device), (slots < 0)[:, None].to(device)


def slots_of(spans: Spans) -> set[int]:
    """The slots with a module among the spans."""
    return {slot for slot, _, _ in spans} - {-1}
