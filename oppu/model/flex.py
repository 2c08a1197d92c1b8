"""Attention over packed rows in one FlexAttention call, for CUDA: whole blocks that nobody sees are skipped.

Token j is seen by token i when j <= i <= last[j]; rows lie one after another, so this keeps them apart as well. Which
blocks hold a visible pair is told from `last` alone. Glossary: N tokens, H heads, D head size.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from oppu.model.packing import Row

BLOCK = 128
"""Tokens of a block, as FlexAttention's kernels have them."""


class TreeAttention:
    """The mask of rows laid one after another, made once for a pass and used by every layer."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        ends, start = [], 0
        for row in rows:
            ends += [start + end for end in row.last]
            start += len(row)
        self._mask = tree_mask(torch.tensor(ends, device=device))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
        """Attention of `query` [1, Hq, N, D] over `key`, `value` [1, Hkv, N, D] -> [1, Hq, N, D]."""
        call: Callable[..., torch.Tensor] = _compiled() if query.is_cuda else flex_attention  # type: ignore[assignment]
        has_groups = query.shape[1] != key.shape[1]
        return call(query, key, value, block_mask=self._mask, scale=scale, enable_gqa=has_groups)


def tree_mask(last: torch.Tensor) -> BlockMask:
    """The block mask of prefix trees in depth-first order, from the last token [N] of each token's subtree."""
    count = math.ceil(len(last) / BLOCK)
    padded = torch.nn.functional.pad(last, (0, count * BLOCK - len(last)))
    farthest = padded.view(count, BLOCK).amax(1)  # the last query that sees anything of a block of keys
    numbers = torch.arange(count, device=last.device)
    visible = (numbers[:, None] >= numbers[None, :]) & (numbers[:, None] * BLOCK <= farthest[None, :])
    order = visible.int().argsort(dim=1, descending=True, stable=True).int()

    def sees(_: torch.Tensor, __: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (j <= i) & (i <= last[j])

    return BlockMask.from_kv_blocks(
        visible.sum(1).int()[None, None],
        order[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(len(last), len(last)),
    )


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention as a kernel; passes are of many lengths, which must not be compiled one by one."""
    return torch.compile(flex_attention, dynamic=True)
