"""Attention over packed rows in one FlexAttention call, for CUDA: whole blocks that nobody sees are skipped.

Token j is seen by token i when j <= i <= last[j]; rows lie one after another, so this keeps them apart as well. Which
blocks hold a visible pair is told from `last` alone. Glossary: N tokens, H heads, D head size.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from oppu.model.packing import Row

BLOCK = 128
"""Tokens of a block, as FlexAttention's kernels have them."""
_VARIANTS = 64
"""Kernels in one process: with and without gradients, of which inputs, few and many blocks. Past the limit it would
run unfused, with the scores of all pairs in memory."""


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
        inputs = (_Finite.apply(tensor) for tensor in (query, key, value))  # type: ignore[no-untyped-call]
        found = call(*inputs, block_mask=self._mask, scale=scale, enable_gqa=has_groups)
        # 0, or NaN for a token whose own numbers are not finite, here and in the gradient
        own = query * 0 + ((key * 0).sum((1, 3)) + (value * 0).sum((1, 3)))[:, None, :, None]
        return _FiniteGradient.apply(found) + own  # type: ignore[no-any-return, no-untyped-call]


class _Finite(torch.autograd.Function):
    """The tensor, with zeros for what is not finite.

    Rows of different users share blocks, in which what is hidden has weight 0, and 0 * NaN is NaN: a user who diverges
    would take the neighbours along.
    """

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.nan_to_num(0.0, 0.0, 0.0)

    @staticmethod
    def backward(_: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class _FiniteGradient(torch.autograd.Function):
    """The tensor, whose gradient gets zeros for what is not finite; see `_Finite`."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.nan_to_num(0.0, 0.0, 0.0)


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
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _VARIANTS)
    return torch.compile(flex_attention, dynamic=True)
