"""Full fine-tuning, what personal modules are compared with: all parameters of a base, on everybody's examples.

Batches, loss, clipping, schedule and AdamW are those of `oppu/train.py`; only that one learner is the base itself.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch.nn.utils import parameters_to_vector

from oppu.errors import ModelError
from oppu.model.base import Base
from oppu.model.checkpoint import Checkpoint
from oppu.model.engine import Progress
from oppu.model.forward import answer_log_probs, passes, rows_of
from oppu.model.kinds import LoraConfig
from oppu.model.memory import free_bytes, tokens_held, tokens_that_fit
from oppu.model.quantize import check_mergeable
from oppu.model.tokens import Encoded
from oppu.train import Job, TrainConfig, batches_of, learning_rate_factor

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW calls its moments."""
_BYTES = 24
"""Of memory for each parameter that a checkpoint takes until it is written: three numbers, and as many in the file."""
_BETWEEN = 9
"""Times what a checkpoint took until the next."""

_LOG = logging.getLogger("oppu.evaluate")


def train_whole(
    base: Base,
    examples: Sequence[Encoded],
    config: TrainConfig,
    tokens_per_pass: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    *,
    begun: Callable[[], Checkpoint | None] = lambda: None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda _: None,
    checkpoint_s: float = 60.0,
) -> tuple[tuple[float, ...], float]:
    """Train all parameters of `base.model`, in place, and freeze them again; the loss of each step, and the seconds.

    `begun` gives the point where this very training was interrupted; what was done before is told to `on_progress` at
    once. `on_checkpoint` gets what is under way at most every `checkpoint_s`, and so seldom that it takes a tenth of
    the time at most, and what there is at the end. Takes 16 bytes of memory for each parameter; a checkpoint up to 24
    more of the machine's own, and where these are not free none is made. ModelError for a base that is quantized or not
    in float32, in which small steps would be lost.
    """
    check_mergeable(base.model, base.name)
    if base.model.dtype != torch.float32:
        raise ModelError(f"its weights are {base.model.dtype}", where=base.name, fix="load it in float32")
    weights, limit = list(base.model.parameters()), tokens_per_pass or _tokens_that_fit(base)
    steps = config.epochs * math.ceil(len(examples) / config.batch_size)
    losses: list[float] = []
    base.model.requires_grad_(True)
    try:
        optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=config.weight_decay)
        started = time.monotonic()
        if (earlier := begun()) is not None:
            _go_on(optimizer, weights, earlier)
            losses += earlier.losses
            started -= earlier.seconds
            on_progress(Progress(0, earlier.examples_done(len(examples), config.batch_size)))
            del earlier  # 12 bytes for each parameter
        due = time.monotonic() + checkpoint_s
        batches = batches_of(Job("everybody", tuple(examples)), config)
        for step, batch in enumerate(islice(batches, len(losses), None), len(losses)):
            losses.append(_backward(base, batch, limit, on_progress))
            torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
            optimizer.param_groups[0]["lr"] = config.learning_rate * learning_rate_factor(step, steps, config.warmup)
            optimizer.step()
            optimizer.zero_grad()
            if step + 1 == steps or time.monotonic() >= due:
                before = time.monotonic()
                if _room_for_checkpoint(weights):
                    on_checkpoint(_checkpoint(optimizer, weights, losses, before - started))
                now = time.monotonic()
                due = now + max(checkpoint_s, _BETWEEN * (now - before))
    finally:
        base.model.requires_grad_(False)
    return tuple(losses), time.monotonic() - started


def _tokens_that_fit(base: Base) -> int:
    """Of a pass, beside gradients and moments of all parameters; a layer whose weights learn keeps its inputs, too."""
    free = free_bytes(base.device) - 12 * sum(weight.numel() for weight in base.model.parameters())
    return tokens_that_fit(tokens_held(base.model, LoraConfig(), max(0, free) // 2), base.device, 1)


def _room_for_checkpoint(weights: Sequence[torch.nn.Parameter]) -> bool:
    needed = _BYTES * sum(weight.numel() for weight in weights)
    if fits := needed <= free_bytes(torch.device("cpu")):
        return fits
    _LOG.warning("what is under way is not kept: that takes %.0f GiB of memory, which are not free", needed / 2**30)
    return fits


def _checkpoint(
    optimizer: torch.optim.AdamW, weights: Sequence[torch.nn.Parameter], losses: Sequence[float], seconds: float
) -> Checkpoint:
    """Where the training stands; there is no dropout, hence no random stream."""
    states = [optimizer.state[weight] for weight in weights]
    first, second = (parameters_to_vector([state[name] for state in states]).cpu() for name in _MOMENTS)
    values, none = parameters_to_vector(weights).detach().cpu(), torch.empty(0, dtype=torch.uint8)
    return Checkpoint(len(losses), values, (first, second), none, tuple(losses), seconds=seconds)


def _go_on(optimizer: torch.optim.AdamW, weights: Sequence[torch.nn.Parameter], begun: Checkpoint) -> None:
    """Put weights and moments where the training was interrupted."""
    sizes = [weight.numel() for weight in weights]
    lines = zip(weights, *(torch.split(line, sizes) for line in begun.lines), strict=True)
    for weight, value, *moments in lines:
        with torch.no_grad():
            weight.copy_(value.view_as(weight))
        state = {
            name: moment.view_as(weight).to(weight.device, copy=True)
            for name, moment in zip(_MOMENTS, moments, strict=True)
        }
        optimizer.state[weight] = {"step": torch.tensor(float(begun.step)), **state}


def _backward(base: Base, batch: Sequence[Encoded], limit: int, on_progress: Callable[[Progress], None]) -> float:
    """Gradients of the batch's mean loss over its answer tokens, pass by pass; the loss."""
    count, loss = sum(example.answer_tokens for example in batch), 0.0
    for rows in passes(rows_of(-1, batch, limit), limit):
        part = -answer_log_probs(base.model, rows, learn_head=True).sum() / count
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
        on_progress(Progress(sum(len(row.row) for row in rows), sum(len(row.examples) for row in rows)))
    return loss
