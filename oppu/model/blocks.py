"""The tokens of a pass in blocks of one slot each, so that a few batched products serve all users.

    spans (0, 0, 5), (1, 5, 8)        blocks of 4: tokens 0 1 2 3 | 4 4 4 4 | 5 6 7 7        slots 0 | 0 | 1

A block that is not full repeats its own last token, never a neighbour's; what comes of the repetitions is multiplied by
zero or dropped. Span by span, each user costs a few products, and a GPU takes as long to launch one as to compute it.

Glossary: U slots, T tokens, n blocks, m tokens of a block, M tokens with a module.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

Spans = tuple[tuple[int, int, int], ...]

_LARGEST = 64
"""Tokens of a block, at most: little of a short span is repeated, and matrices are copied seldom for a long one."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Where the tokens with a module lie in blocks."""

    slots: torch.Tensor
    """[n], of each block."""
    index: torch.Tensor
    """[n, m]: the token at each place."""
    filled: torch.Tensor
    """[n, m, 1]: False where a token is repeated."""
    tokens: torch.Tensor
    """[M], in order."""
    places: torch.Tensor
    """[M]: where each of them lies, among the n * m places."""

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """A copy of x [T, D] in blocks [n, m, D]."""
        return x[self.index]

    def own(self, scales: torch.Tensor) -> torch.Tensor:
        """The scale, of [U], of each token's slot, and 0 where a token is repeated: [n, m, 1]."""
        return scales[self.slots][:, None, None] * self.filled

    def put(self, parts: torch.Tensor, onto: torch.Tensor) -> torch.Tensor:
        """`onto` [T, D] with what the blocks [n, m, D] hold, in place; tokens without a module stay as they are."""
        return onto.index_copy_(0, self.tokens, parts.flatten(0, 1)[self.places])

    def add(self, parts: torch.Tensor, to: torch.Tensor) -> None:
        """Add what each block gives [n, ...] to its slot's place in `to` [U, ...], always in the same order."""
        to.index_put_((self.slots,), parts, accumulate=True)


@lru_cache(maxsize=8)  # every adapted layer of a pass asks
def blocks_of(spans: Spans, device: torch.device) -> Blocks:
    """The spans in blocks of equal size, which is that of the longest span, at most 64."""
    adapted = [span for span in spans if span[0] >= 0]
    size = min(_LARGEST, max((end - start for _, start, end in adapted), default=1))
    cut = [(slot, first, end) for slot, start, end in adapted for first in range(start, end, size)]
    slots, firsts, ends = torch.tensor(cut, dtype=torch.long).view(-1, 3).unbind(1)
    index = firsts[:, None] + torch.arange(size)
    filled = index < ends[:, None]
    index = torch.minimum(index, ends[:, None] - 1)
    places = filled.flatten().nonzero()[:, 0]
    found = slots, index, filled[:, :, None], index.flatten()[places], places
    return Blocks(*(tensor.to(device) for tensor in found))
