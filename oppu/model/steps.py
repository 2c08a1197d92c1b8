"""The modules of one decoding step, stacked: two products serve all tokens, whoever they belong to.

    y[n] += (x[n] @ A.T * own[n]) @ B       A [C*R, I], B [C*R, O]: the modules of C slots, one above the other

own [n, C*R] is the module's scale at the ranks of the token's own slot and 0 elsewhere: nothing of a neighbour gets in.
The products with zeros cost less than a gather of each token's a and b, which copies them at every step.
Glossary: n tokens, C slots of these tokens, R rank, I/O in/out features.
"""

from collections.abc import Callable, Sequence

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
        self._own: torch.Tensor | None = None

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
            self._stacks[name] = a.flatten(0, 1), b.transpose(1, 2).flatten(0, 1)
        down, up = self._stacks[name]
        return torch.mm(torch.mm(x, down.T).mul_(self._own_of(spans, down)), up)

    @torch.inference_mode()
    def wipe(self) -> None:
        """Overwrite the stacks with zeros; it serves nobody then."""
        for stacks in self._stacks.values():
            for stack in stacks:
                stack.zero_()

    def _own_of(self, spans: Spans, down: torch.Tensor) -> torch.Tensor:
        if self._own is None or spans is not self._spans:
            tokens = torch.tensor([slot for slot, _, _ in spans])[:, None]
            own = (tokens == torch.tensor(self.slots)).to(down) * torch.tensor(self._scales).to(down)
            self._own = own.repeat_interleave(down.shape[0] // len(self.slots), dim=1)
            self._spans = spans
        return self._own


def slots_of(spans: Spans) -> set[int]:
    """The slots with a module among the spans."""
    return {slot for slot, _, _ in spans} - {-1}
