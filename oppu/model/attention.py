"""The attention that oppu gives every model: transformers' own outside of a `layout`, the layout's inside.

A layout says how the tokens of one forward lie (packed rows, or one decoding step of several sequences). It is set for
the duration of a forward and read by each attention layer and by the bank's modules, which know nothing else.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from oppu.errors import ModelError
from oppu.model.flex import TreeAttention
from oppu.model.packing import Block, Row, attention_blocks, pack

ATTENTION = "oppu"


class Layout(Protocol):
    """How the tokens of a forward lie, which slots they belong to, and whom they see."""

    @property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """(slot, start, end) for each stretch of the flattened tokens; slot -1 is the plain base."""
        ...

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Attention of `query` [B, Hq, T, D] over `key`, `value` [B, Hkv, T, D] -> [B, Hq, T, D]."""
        ...

    @property
    def longest(self) -> int:
        """The longest sequence in it, in tokens."""
        ...

    @property
    def virtual(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Where the flattened tokens stand for a soft prompt: their indices, slots, and places in it; None: nowhere."""
        ...


_LAYOUT: ContextVar[Layout | None] = ContextVar("oppu_layout", default=None)


@contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Let the model's attention and the bank follow `layout` within this context."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def current_layout() -> Layout | None:
    """The layout of the forward under way."""
    return _LAYOUT.get()


class PackedLayout:
    """Packed rows one after another in one flat sequence [1, N]: no padding; attention block by block.

    On CUDA in one FlexAttention call, where that works.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        slots: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        on_keys: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    ) -> None:
        """`on_keys(layer, key, value)` is shown each layer's keys and values [Hkv, N, D], to keep for decoding."""
        spans, start = [], 0
        for row, slot in zip(rows, slots, strict=True):
            spans.append((slot, start, start + len(row)))
            start += len(row)
        self.spans = tuple(spans)
        self.longest = max(max(row.positions) for row in rows) + 1
        self.virtual = _virtual(rows, slots, device)
        self._rows = rows
        self._device = device
        self._dtype = dtype
        self._on_keys = on_keys

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """See `Layout.attend`; B is 1."""
        if self._on_keys is not None:
            self._on_keys(layer, key[0], value[0])
        if query.is_cuda and _flex_works(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3]):
            return self._tree.attend(query, key, value, scale)
        return torch.cat([_attend_block(query, key, value, scale, *block) for block in self._blocks], dim=2)

    @cached_property
    def _tree(self) -> TreeAttention:
        return TreeAttention(self._rows, self._device)

    @cached_property
    def _blocks(self) -> list[tuple[int, Block, torch.Tensor | None]]:
        return _placed_blocks(self._rows, self._device, self._dtype)


@cache
def _flex_works(device: torch.device, dtype: torch.dtype, heads: int, groups: int, size: int) -> bool:
    """Whether FlexAttention gives there what the blocks give, forward and backward, on a small forest.

    For queries of so many heads, keys and values of so many groups, and heads of that size: a kernel may not take all.
    """
    rows = [pack([range(90), [*range(60), *range(100, 140)]]), pack([range(50)])]
    tokens = sum(len(row) for row in rows)

    def gradients(attend: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        found = attend(*leaves, None)
        return [found, *torch.autograd.grad(found.float().square().sum(), leaves)]

    try:
        # the first pass of all, when a base is loaded, is one without gradients
        with torch.inference_mode(False), torch.enable_grad():
            blocks = _placed_blocks(rows, device, dtype)
            generator = torch.Generator(device).manual_seed(0)
            inputs = [
                torch.randn(1, count, tokens, size, generator=generator, device=device).to(dtype)
                for count in (heads, groups, groups)
            ]
            tried = gradients(TreeAttention(rows, device).attend, inputs)
            known = gradients(lambda q, k, v, s: torch.cat([_attend_block(q, k, v, s, *b) for b in blocks], 2), inputs)
    except Exception:  # whatever a compiler may raise; the blocks need none
        return False
    allowed = 1e-2 if dtype == torch.float32 else 5e-2
    return all(torch.allclose(a, b, rtol=allowed, atol=allowed) for a, b in zip(tried, known, strict=True))


def _virtual(
    rows: Sequence[Row], slots: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """See `Layout.virtual`: the n virtual tokens of a soft prompt have the ids -n .. -1."""
    found, start = [], 0
    for row, slot in zip(rows, slots, strict=True):
        count = sum(token < 0 for token in set(row.tokens))
        found += [(start + i, slot, token + count) for i, token in enumerate(row.tokens) if token < 0]
        start += len(row)
    if not found:
        return None
    index, owners, places = torch.tensor(found, device=device).unbind(1)
    return index, owners, places


def _placed_blocks(
    rows: Sequence[Row], device: torch.device, dtype: torch.dtype
) -> list[tuple[int, Block, torch.Tensor | None]]:
    """The blocks of rows laid one after another: where the block's row begins, the block, and its mask."""
    found, start = [], 0
    for row in rows:
        found += [(start, block, _mask(row, block, device, dtype)) for block in attention_blocks(row)]
        start += len(row)
    return found


def _attend_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    offset: int,
    block: Block,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    seen = [slice(offset + a, offset + b) for a, b in (*block.ancestors, (block.start, block.end))]
    return F.scaled_dot_product_attention(
        query[:, :, offset + block.start : offset + block.end],
        torch.cat([key[:, :, part] for part in seen], dim=2),
        torch.cat([value[:, :, part] for part in seen], dim=2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _mask(row: Row, block: Block, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    """The block's additive mask [queries, ancestors + queries]; None where a plain causal mask serves."""
    if block.is_chain and not block.ancestors:
        return None
    size = block.end - block.start
    index = torch.arange(block.start, block.end)
    last = torch.tensor(row.last[block.start : block.end])
    visible = (index[None, :] <= index[:, None]) & (index[:, None] <= last[None, :])
    before = sum(b - a for a, b in block.ancestors)
    mask = torch.zeros(size, before + size, dtype=dtype)
    mask[:, before:].masked_fill_(~visible, torch.finfo(dtype).min)
    return mask.to(device)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    layout = _LAYOUT.get()
    if layout is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    _check_supported(layout, kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return layout.attend(layer, query, key, value, scaling).transpose(1, 2), None


def _check_supported(layout: Layout, kwargs: dict[str, Any]) -> None:
    window = kwargs.get("sliding_window")
    if window is not None and layout.longest > window:
        raise ModelError(
            f"a sequence of {layout.longest} tokens is longer than the model's attention window of {window}",
            fix="lower max_tokens",
        )
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported:
        raise ModelError(f"the model's attention needs {', '.join(unsupported)}, which packed rows do not support")


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
