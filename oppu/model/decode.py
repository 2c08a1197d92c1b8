"""Decoding for sequences of different users in one batch, each token of each sequence once through the model.

Prompts are prefilled as packed rows, without padding and sharing prefixes; then all sequences take steps together.
Sequences come and go between steps. Glossary: n active sequences, H key heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from oppu.model.attention import use_layout
from oppu.model.forward import layout_logits, packed_logits
from oppu.model.packing import Row, pack


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sequence to continue: a key of one's own, its slot and its tokens."""

    key: int
    slot: int
    tokens: tuple[int, ...]


@dataclass(slots=True)
class _Sequence:
    key: int
    slot: int
    length: int


class Decoder:
    """The active sequences and their keys and values [n, H, T, D] for each layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._active: list[_Sequence] = []
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    @property
    def active(self) -> tuple[int, ...]:
        """The keys of the active sequences, in the order of the logits that `step` returns."""
        return tuple(s.key for s in self._active)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Prefill prompts and make them active; logits [len(prompts), V] of what follows each, in their order."""
        rows, slots, places = _pack_by_slot(prompts)
        first = len(self._active)
        longest = max(len(p.tokens) for p in prompts)
        paths = [torch.tensor(path) for path in places]

        def keep(layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
            for cache, new in ((self._keys, key), (self._values, value)):
                cache[layer] = _with_room(cache.get(layer), first + len(prompts), longest + 1, new)
                for line, path in enumerate(paths, start=first):
                    cache[layer][line, :, : len(path)] = new[:, path.to(new.device)]

        ends = torch.tensor([path[-1] for path in places], device=self._model.device)
        logits = packed_logits(self._model, rows, slots, ends, keep)
        self._active += [_Sequence(p.key, p.slot, len(p.tokens)) for p in prompts]
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each active sequence; logits [n, V] of what follows each."""
        lengths = torch.tensor([s.length for s in self._active], device=self._model.device)
        with use_layout(_StepLayout(self, lengths)):
            new = torch.tensor(tokens, device=self._model.device)
            logits = layout_logits(self._model, new[:, None], lengths[:, None], 1)
        for sequence in self._active:
            sequence.length += 1
        return logits[:, 0]

    def drop(self, keys: Sequence[int]) -> None:
        """Let sequences go; the order of the others stays."""
        gone = set(keys)
        kept = [i for i, s in enumerate(self._active) if s.key not in gone]
        for cache in (self._keys, self._values):
            for layer in cache:
                for to, line in enumerate(kept):
                    if to != line:
                        cache[layer][to] = cache[layer][line]
        self._active = [self._active[i] for i in kept]

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a step's keys and values [n, H, 1, D] behind the others; both with all before, [n, H, T, D]."""
        count, end = len(self._active), int(lengths.max()) + 1
        lines = torch.arange(count, device=lengths.device)
        result = []
        for cache, new in ((self._keys, key), (self._values, value)):
            cache[layer] = _with_room(cache[layer], count, end, new[0])
            cache[layer][lines, :, lengths] = new[:, :, 0]
            result.append(cache[layer][:count, :, :end])
        return result[0], result[1]

    @property
    def slots(self) -> tuple[int, ...]:
        """The slot of each active sequence."""
        return tuple(s.slot for s in self._active)


class _StepLayout:
    """One new token for each active sequence."""

    def __init__(self, decoder: Decoder, lengths: torch.Tensor) -> None:
        self._decoder = decoder
        self._lengths = lengths
        self.longest = int(lengths.max()) + 1
        self.spans = tuple((slot, i, i + 1) for i, slot in enumerate(decoder.slots))
        self._seen = (torch.arange(self.longest, device=lengths.device)[None] <= lengths[:, None])[:, None, None]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """See `Layout.attend`; T is 1. The query heads of a key head are taken as its queries: no copies of keys."""
        keys, values = self._decoder.append(layer, key, value, self._lengths)
        grouped = query.view(query.shape[0], key.shape[1], -1, query.shape[-1])
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._seen, scale=scale).view(
            query.shape
        )


def _pack_by_slot(prompts: Sequence[Prompt]) -> tuple[list[Row], list[int], list[list[int]]]:
    """A row for each slot, and each prompt's token indices in the rows laid one after another."""
    rows: list[Row] = []
    slots = sorted({p.slot for p in prompts})
    places: list[list[int]] = [[] for _ in prompts]
    offset = 0
    for slot in slots:
        members = [i for i, p in enumerate(prompts) if p.slot == slot]
        row = pack([prompts[i].tokens for i in members])
        for i, path in zip(members, row.paths, strict=True):
            places[i] = [offset + index for index in path]
        rows.append(row)
        offset += len(row)
    return rows, slots, places


def _with_room(cache: torch.Tensor | None, lines: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """A cache [lines, H, T, D] at least so large, with what it held; grows by half so that copies stay rare."""
    if cache is not None and cache.shape[0] >= lines and cache.shape[2] >= length:
        return cache
    old = (0, 0) if cache is None else (cache.shape[0], cache.shape[2])
    size = [max(lines, old[0]), max(old[1], length + length // 2)]
    grown = like.new_zeros(size[0], like.shape[0], size[1], like.shape[2])
    if cache is not None:
        grown[: old[0], :, : old[1]] = cache
    return grown
