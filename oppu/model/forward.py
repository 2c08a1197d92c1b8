"""Rows of many users through the model in one flat sequence; the head at the answers' positions only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from oppu.model.attention import PackedLayout, use_layout
from oppu.model.head import chosen_log_probs, plain_head
from oppu.model.last_layer import feedforward_at
from oppu.model.packing import Row, pack, shared_beginnings
from oppu.model.tokens import Encoded


@dataclass(frozen=True, slots=True)
class SlotRow:
    """Some examples of one user, packed, and the slot that holds the user's module."""

    slot: int
    examples: tuple[Encoded, ...]
    row: Row

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss counts."""
        return sum(e.answer_tokens for e in self.examples)


def rows_of(slot: int, examples: Sequence[Encoded], max_tokens: int) -> Iterator[SlotRow]:
    """Pack one user's examples into rows of at most `max_tokens` tokens, cut so that the fewest tokens stand twice.

    Where an example is longer by itself, a row may have a quarter more than it: answers stay with their prompt.
    """
    row = pack([e.tokens[:-1] for e in examples])  # the last token is only ever predicted
    if len(row) <= max_tokens or len(examples) == 1:
        yield SlotRow(slot, tuple(examples), row)
        return
    ordered = sorted(examples, key=lambda e: e.tokens)  # keeps shared prefixes together
    sequences = [e.tokens[:-1] for e in ordered]
    limit = max(max_tokens, 5 * max(map(len, sequences)) // 4)
    for start, end in _cuts(sequences, limit):
        yield SlotRow(slot, tuple(ordered[start:end]), pack(sequences[start:end]))


def _cuts(sequences: Sequence[Sequence[int]], limit: int) -> list[tuple[int, int]]:
    """Where sequences in order are cut into packed rows of at most `limit` tokens each, as (start, end).

    Of all ways the one in which the fewest tokens stand in two rows, and of these one with the fewest rows.
    """
    shared = shared_beginnings(sequences)
    best, begins = [(0, 0)], [0]  # for the first n sequences: (tokens that stand twice, rows), and the last row's start
    for end in range(1, len(sequences) + 1):
        found: list[tuple[tuple[int, int], int]] = []
        after = 0  # tokens of the row behind its first sequence
        for start in reversed(range(end)):
            if found and len(sequences[start]) + after > limit:
                break
            twice, rows = best[start]
            found.append(((twice + shared[start], rows + 1), start))
            after += len(sequences[start]) - shared[start]
        cost, begin = min(found)
        best.append(cost)
        begins.append(begin)
    cuts, end = [], len(sequences)
    while end:
        cuts.append((begins[end], end))
        end = begins[end]
    return cuts[::-1]


def passes(rows: Iterable[SlotRow], max_tokens: int) -> Iterator[list[SlotRow]]:
    """Group rows, in order, into forwards of at most `max_tokens` tokens (or a single longer row)."""
    group: list[SlotRow] = []
    size = 0
    for row in rows:
        if group and size + len(row.row) > max_tokens:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.row)
    if group:
        yield group


def answer_log_probs(
    model: PreTrainedModel,
    rows: Sequence[SlotRow],
    body: Callable[[Sequence[SlotRow]], torch.Tensor] | None = None,
    *,
    learn_head: bool = False,
) -> torch.Tensor:
    """log p of each answer token given what stands before it in its own sequence.

    [M] float32, row by row, example by example, token by token. Differentiable where the bank is attached.
    `body`: gives the output [N, D] of the model's body for the rows, where there is a shorter way than all its layers.
    `learn_head`: differentiable in the head's own weights, too, for which the logits of all answer tokens are held.
    """
    parents: list[int] = []
    targets: list[int] = []
    offset = 0
    for row in rows:
        for example, path in zip(row.examples, row.row.paths, strict=True):
            parents += [offset + index for index in path[example.answer_start - 1 :]]
            targets += example.tokens[example.answer_start :]
        offset += len(row.row)
    # examples that share their prompt ask for the same position: one line of logits serves them all
    kept, which = torch.unique(torch.tensor(parents, device=model.device), return_inverse=True)
    chosen = torch.tensor(targets, device=model.device)
    packed, slots = [r.row for r in rows], [r.slot for r in rows]
    head = None if learn_head else plain_head(model)
    if head is None:
        return packed_logits(model, packed, slots, kept).float().log_softmax(-1)[which, chosen]
    layout = PackedLayout(packed, slots, model.device, model.dtype)
    with feedforward_at(model, kept, offset), use_layout(layout):
        hidden = body(rows) if body else model.base_model(**inputs(model, *flat(model, packed))).last_hidden_state[0]
    return chosen_log_probs(hidden[kept], head, which, chosen)


def packed_logits(
    model: PreTrainedModel,
    rows: Sequence[Row],
    slots: Sequence[int],
    positions: torch.Tensor,
    on_keys: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Logits [M, V] at M `positions` of the rows laid one after another; `on_keys`: see PackedLayout."""
    with use_layout(PackedLayout(rows, slots, model.device, model.dtype, on_keys)):
        return layout_logits(model, *flat(model, rows), positions)[0]


def layout_logits(
    model: PreTrainedModel, tokens: torch.Tensor, depths: torch.Tensor, positions: torch.Tensor | int
) -> torch.Tensor:
    """Logits [B, M, V] of tokens [B, T] at depths [B, T] under the current layout, for M positions of each line."""
    logits: torch.Tensor = model(**inputs(model, tokens, depths), logits_to_keep=positions).logits
    return logits


def flat(model: PreTrainedModel, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and depths [1, N] of the rows laid one after another."""
    # virtual tokens have no embedding of the model's own
    tokens = [max(token, 0) for row in rows for token in row.tokens]
    depths = [depth for row in rows for depth in row.positions]
    return torch.tensor([tokens], device=model.device), torch.tensor([depths], device=model.device)


def inputs(model: PreTrainedModel, tokens: torch.Tensor, depths: torch.Tensor) -> dict[str, Any]:
    """What a model is called with under a layout."""
    return {
        "input_ids": tokens,
        "position_ids": depths,
        # a mask of four dimensions is taken as it is; the layout does the masking
        "attention_mask": torch.empty(1, 1, 1, 1, device=tokens.device, dtype=model.dtype),
        "use_cache": False,
    }
