"""Full fine-tuning, what personal modules are compared with: all parameters of a base, on everybody's examples.

Batches, loss, clipping, schedule and AdamW are those of `oppu/train.py`; only that one learner is the base itself.
"""

import math
from collections.abc import Callable, Sequence

import torch

from oppu.errors import ModelError
from oppu.model.base import Base
from oppu.model.engine import Progress
from oppu.model.forward import answer_log_probs, passes, rows_of
from oppu.model.memory import useful_tokens
from oppu.model.quantize import check_mergeable
from oppu.model.tokens import Encoded
from oppu.train import Job, TrainConfig, batches_of, learning_rate_factor


def train_whole(
    base: Base,
    examples: Sequence[Encoded],
    config: TrainConfig,
    tokens_per_pass: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[float, ...]:
    """Train all parameters of `base.model`, in place, and freeze them again; the loss of each step.

    Takes 16 bytes of memory for each parameter. ModelError for a base that is quantized or not in float32, in which
    small steps would be lost.
    """
    check_mergeable(base.model, base.name)
    if base.model.dtype != torch.float32:
        raise ModelError(f"its weights are {base.model.dtype}", where=base.name, fix="load it in float32")
    model, limit = base.model, tokens_per_pass or useful_tokens(base.device, 1)
    steps = config.epochs * math.ceil(len(examples) / config.batch_size)
    losses: list[float] = []
    model.requires_grad_(True)
    try:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=config.weight_decay)
        for step, batch in enumerate(batches_of(Job("everybody", tuple(examples)), config)):
            losses.append(_backward(base, batch, limit, on_progress))
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.param_groups[0]["lr"] = config.learning_rate * learning_rate_factor(step, steps, config.warmup)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        model.requires_grad_(False)
    return tuple(losses)


def _backward(base: Base, batch: Sequence[Encoded], limit: int, on_progress: Callable[[Progress], None]) -> float:
    """Gradients of the batch's mean loss over its answer tokens, pass by pass; the loss."""
    count, loss = sum(example.answer_tokens for example in batch), 0.0
    for rows in passes(rows_of(-1, batch, limit), limit):
        part = -answer_log_probs(base.model, rows, learn_head=True).sum() / count
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
        on_progress(Progress(sum(len(row.row) for row in rows), sum(len(row.examples) for row in rows)))
    return loss
