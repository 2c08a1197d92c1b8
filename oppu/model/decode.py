"""Decoding for sequences of different users in one batch, each token of each sequence once through the model.

Prompts are prefilled as packed rows, without padding and sharing prefixes; then all sequences take steps together.
Sequences come and go between steps. Glossary: n active sequences, H key heads, D head size, T tokens.
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


def without_repeats(logits: torch.Tensor, written: Sequence[Sequence[int]], lengths: Sequence[int]) -> torch.Tensor:
    """Logits [n, V] in which a line has no token that would repeat `length` tokens in a row of what it has written.

    As transformers' `no_repeat_ngram_size`, but a prompt's words may be repeated, as paraphrasing does; 0: all may be.
    """
    lines = [_repeats(tokens, length) for tokens, length in zip(written, lengths, strict=True)]
    if not any(lines):
        return logits
    allowed = logits.clone()
    for line, tokens in enumerate(lines):
        allowed[line, list(tokens)] = -torch.inf
    return allowed


def _repeats(tokens: Sequence[int], length: int) -> set[int]:
    """The tokens that followed the last `length` - 1 tokens before."""
    if length == 0:
        return set()
    before = length - 1
    end = list(tokens[len(tokens) - before :])
    return {tokens[i + before] for i in range(len(tokens) - before) if list(tokens[i : i + before]) == end}


class Decoder:
    """The active sequences and their keys and values."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._active: list[_Sequence] = []
        self._cache = _Cache()
        self._spans: tuple[tuple[int, int, int], ...] = ()

    @property
    def active(self) -> tuple[int, ...]:
        """The keys of the active sequences, in the order of the logits that `step` returns."""
        return tuple(s.key for s in self._active)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Prefill prompts and make them active; logits [len(prompts), V] of what follows each, in their order."""
        rows, slots, places = _pack_by_slot(prompts)
        first = len(self._active)
        longest = max([*(len(p.tokens) for p in prompts), *(s.length for s in self._active)])
        paths = [torch.tensor(path, device=self._model.device) for path in places]

        def keep(layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
            room = self._cache.room(layer, first + len(prompts), longest + 1, key)
            for cached, new in zip(room, (key, value), strict=True):
                for line, path in enumerate(paths, start=first):
                    cached[line, :, : len(path)] = new[:, path]

        ends = torch.tensor([path[-1] for path in places], device=self._model.device)
        logits = packed_logits(self._model, rows, slots, ends, keep)
        self._set_active([*self._active, *(_Sequence(p.key, p.slot, len(p.tokens)) for p in prompts)])
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each active sequence; logits [n, V] of what follows each."""
        device = self._model.device
        layout = _StepLayout(self._cache, self._spans, [s.length for s in self._active], device, self._model.dtype)
        with use_layout(layout):
            new = torch.tensor(tokens, device=device)[:, None]
            logits = layout_logits(self._model, new, layout.lengths[:, None], 1)
        for sequence in self._active:
            sequence.length += 1
        return logits[:, 0]

    def drop(self, keys: Sequence[int]) -> None:
        """Let sequences go; those at the end of the batch take their places. Lines that nobody has are zeros."""
        gone = set(keys)
        if not gone:
            return
        kept = [s for s in self._active if s.key not in gone]
        moving = [(i, s) for i, s in enumerate(self._active) if s.key not in gone and i >= len(kept)]
        holes = [i for i, s in enumerate(self._active[: len(kept)]) if s.key in gone]
        ordered = self._active[: len(kept)]
        for line, sequence in enumerate(self._active):
            if kept and sequence.key in gone:
                self._cache.clear(line, sequence.length)
        for hole, (line, sequence) in zip(holes, moving, strict=True):
            self._cache.move(line, hole, sequence.length)
            ordered[hole] = sequence
        self._set_active(ordered)
        if not ordered:
            self._cache = _Cache()

    def _set_active(self, sequences: list[_Sequence]) -> None:
        self._active = sequences
        # one value for as long as the same sequences are active: the bank keeps what it prepared for it
        self._spans = tuple((s.slot, i, i + 1) for i, s in enumerate(sequences))


_SPARE = 256
"""Tokens, at most, that the keys and values have room for beyond what is needed."""


class _Cache:
    """Keys and values of all layers, each [lines, H, T, D], with room to spare."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def room(self, layer: int, lines: int, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, at least so large; `like` [H, ?, D]. What lies beyond may be lost."""
        held = self._layers.get(layer)
        if held is None or held[0].shape[0] < lines or held[0].shape[2] < length:
            held = _grown(held and held[0], lines, length, like), _grown(held and held[1], lines, length, like)
            self._layers[layer] = held
        return held

    @torch.inference_mode()
    def move(self, line: int, to: int, length: int) -> None:
        """Bring a sequence's keys and values to another line, which is clear; its own is afterwards."""
        for layer in self._layers.values():
            for cached in layer:
                cached[to, :, :length] = cached[line, :, :length]
        self.clear(line, length)

    @torch.inference_mode()
    def clear(self, line: int, length: int) -> None:
        """Overwrite a sequence with zeros: its line's next one is masked behind its own end, and NaN passes a mask."""
        for layer in self._layers.values():
            for cached in layer:
                cached[line, :, :length] = 0


def _grown(old: torch.Tensor | None, lines: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """Zeros for the lines and the length asked for, with what `old` held of them; somewhat longer: copies stay rare."""
    grown = like.new_zeros(lines, like.shape[0], length + min(length // 2, _SPARE), like.shape[2])
    if old is not None:
        held = [min(size) for size in zip(grown.shape, old.shape, strict=True)]
        grown[: held[0], :, : held[2]] = old[: held[0], :, : held[2]]
    return grown


class _StepLayout:
    """One new token for each active sequence."""

    def __init__(
        self,
        cache: _Cache,
        spans: tuple[tuple[int, int, int], ...],
        lengths: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.spans = spans
        self.longest = max(lengths) + 1
        self.virtual = None
        self.lengths = torch.tensor(lengths, device=device)
        self._cache = cache
        self._lines = torch.arange(len(lengths), device=device)
        hidden = torch.arange(self.longest, device=device)[None] > self.lengths[:, None]
        mask = torch.zeros(hidden.shape, device=device, dtype=dtype).masked_fill_(hidden, float("-inf"))
        self._mask = mask[:, None, None]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """See `Layout.attend`; T is 1. The query heads of a key head are taken as its queries: no copies of keys."""
        count = query.shape[0]
        keys, values = self._cache.room(layer, count, self.longest, key[0])
        keys[self._lines, :, self.lengths] = key[:, :, 0]
        values[self._lines, :, self.lengths] = value[:, :, 0]
        return F.scaled_dot_product_attention(
            query.view(count, key.shape[1], -1, query.shape[-1]),
            keys[:count, :, : self.longest],
            values[:count, :, : self.longest],
            attn_mask=self._mask,
            scale=scale,
        ).view(query.shape)


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
