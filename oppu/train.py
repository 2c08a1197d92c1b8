"""One loop that trains many users' modules at once, each exactly as if it were trained alone.

In each step every slot takes one optimizer step on its own user's next batch: own loss mean, clipping, learning rate,
AdamW state, random streams and early stop. A finished user's slot is given to the next user at once. What is shared is
the base's forward and backward alone (`model/engine.py`). Between steps everyone's state can be kept, to go on from.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from oppu.errors import ConfigError
from oppu.model.bank import Bank, user_seed
from oppu.model.base import Base
from oppu.model.checkpoint import Checkpoint
from oppu.model.engine import Engine, Progress
from oppu.model.kinds import LoraConfig, ModuleConfig
from oppu.model.layers import on_top_layers
from oppu.model.memory import free_bytes, slots_that_fit, tokens_held, tokens_that_fit
from oppu.model.module import Module
from oppu.model.quantize import check_mergeable
from oppu.model.tokens import Encoded
from oppu.model.trunk import trunk_below
from oppu.model.workers import Room, workers_for

_LOG = logging.getLogger("oppu.train")
Other = TypeVar("Other")
"""What a stream of jobs holds besides jobs."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What decides a user's module, besides the user's examples."""

    epochs: int = 3
    learning_rate: float = 1e-3
    batch_size: int = 8
    """Examples per optimizer step; a last, smaller batch counts as well."""
    weight_decay: float = 1e-2
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to 0."""
    max_grad_norm: float = 1.0
    """Each user's gradient is scaled down to this norm. # differs from the paper: its code clips at 0.3"""
    max_tokens: int = 2048
    """Length of a sequence; a longer prompt is cut."""
    seed: int = 0
    module: ModuleConfig = field(default_factory=LoraConfig)
    """Kind and shape of the module; for LoRA, the largest rank that a user may have."""
    top_layers: int | None = None
    """Modules on the top so many layers alone; None: on all, as in the paper."""
    patience: int | None = None
    """Early stop: a user is done when the loss on held-out items has not fallen for so many epochs, and keeps the
    module of the best epoch, or the one before the first, which changes nothing; None: never, as in the paper."""
    held_out: float = 0.1
    """Share of a user's items, the newest, that are kept for early stop instead of trained on; at least one."""

    def __post_init__(self) -> None:
        """ConfigError for a setting with which nobody could be trained."""
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", fix="use 1 or more")

    def tokens_for(self, base: Base) -> int:
        """The most tokens of an example: as many as the base takes, less those of a soft prompt."""
        return min(self.max_tokens, base.max_tokens) - self.module.virtual_tokens

    def module_for(self, base: Base) -> ModuleConfig:
        """Kind and shape of the modules on this base."""
        return self.module if self.top_layers is None else on_top_layers(base.model, self.module, self.top_layers)


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides speed and memory, and never a result (but for dropout, whose masks follow the rows' cuts)."""

    slots: int | None = None
    """Users trained at a time; None: as many as fill a pass and fit into the memory there is."""
    tokens_per_pass: int | None = None
    """Tokens under way at a time, over all cores; memory grows with it. A row of packed examples may have two cores'
    shares; where one is longer, because an example is, others wait. None: as many as are useful and fit into the memory
    there is."""
    memory_share: float = 1.0
    """Of the free memory that this process may plan with: less where others of its kind share the machine."""
    trunk_bytes: int = 4 << 30
    """Of the file with what the layers below the modules make of examples, where these sit on the top layers alone."""
    trunk_folder: Path | None = None
    """Where that file stays for later runs; it is made of users' texts, and deleting a user does not reach it.
    None: it goes with the run."""
    checkpoint_s: float = 60.0
    """What is under way is kept at most so often, between steps: a killed run loses so much work and one step."""


@dataclass(frozen=True, slots=True)
class Job:
    """One user's training examples."""

    user_id: str
    examples: tuple[Encoded, ...]
    """Oldest first."""
    module: ModuleConfig | None = None
    """This user's own shape, where it is smaller than the config's."""
    begun: Checkpoint | None = None
    """Where this very training was interrupted; one that cannot be of it is not used, and it is said."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished user: the module, and the mean loss of each optimizer step."""

    user_id: str
    module: Module
    losses: tuple[float, ...]
    held_out_losses: tuple[float, ...] = ()
    """Before the first epoch and after each, where there is an early stop."""


@dataclass(slots=True)
class _Learner:
    """A user in a slot: where its training stands, and its AdamW moments [P]."""

    slot: int
    user_id: str
    batches: Iterator[list[Encoded]]
    steps_per_epoch: int
    total_steps: int
    moments: tuple[torch.Tensor, torch.Tensor]
    held_out: tuple[Encoded, ...]
    """For early stop; empty: there is none."""
    started: float = field(default_factory=time.monotonic)
    """When it would have begun without interruptions."""
    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    best: torch.Tensor | None = None
    """The values [P] with the least loss on the held-out items so far."""

    @property
    def epochs(self) -> int:
        """How many it has finished."""
        return self.step // self.steps_per_epoch

    @property
    def is_due(self) -> bool:
        """Whether the held-out items are to be looked at: before the first epoch, and after each."""
        return bool(self.held_out) and len(self.held_out_losses) == self.epochs

    def is_done(self, patience: int | None) -> bool:
        """Whether all steps are taken, or the loss on the held-out items has not fallen for `patience` epochs."""
        seen = self.held_out_losses
        stops = patience is not None and bool(seen) and len(seen) - 1 - seen.index(min(seen)) >= patience
        return self.step == self.total_steps or stops

    def go_on(self, bank: Bank, begun: Checkpoint) -> None:
        """Put this new learner where it was interrupted; a checkpoint that does not fit is not used, and it is said."""
        fits = all(line.shape == (bank.size,) for line in begun.lines)
        fits &= 0 < begun.step == len(begun.losses) < self.total_steps
        fits &= len(begun.held_out_losses) == (begun.step // self.steps_per_epoch + 1 if self.held_out else 0)
        if not fits or (bank.config.dropout and begun.stream.shape != bank.stream(self.slot).shape):
            _LOG.warning("user %s: the checkpoint does not fit, so the training begins anew", self.user_id)
            return
        bank.go_on(self.slot, begun.values, begun.stream)
        for moment, kept in zip(self.moments, begun.moments, strict=True):
            moment.copy_(kept)
        self.batches = islice(self.batches, begun.step, None)
        self.step = begun.step
        self.losses, self.held_out_losses = list(begun.losses), list(begun.held_out_losses)
        self.best = None if begun.best is None else begun.best.to(bank.values.device)
        self.started -= begun.seconds

    def checkpoint(self, bank: Bank) -> Checkpoint:
        """Where it stands."""
        first, second = (moment.to("cpu", copy=True) for moment in self.moments)
        return Checkpoint(
            step=self.step,
            values=bank.values[self.slot].to("cpu", copy=True),
            moments=(first, second),
            stream=bank.stream(self.slot),
            losses=tuple(self.losses),
            held_out_losses=tuple(self.held_out_losses),
            best=None if self.best is None else self.best.cpu(),
            seconds=time.monotonic() - self.started,
        )


def train(
    base: Base,
    jobs: Iterable[Job | Other],
    config: TrainConfig,
    machine: Machine | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_checkpoint: Callable[[Iterator[tuple[str, Checkpoint]]], None] | None = None,
) -> Iterator[Trained | Other]:
    """Train each job's module; yields them as they are finished. `jobs` is read only as slots become free.

    Each job needs at least one example; what is no job is yielded as soon as it is read. The result does not depend on
    the neighbours, their number or order. `on_checkpoint` gets everyone under way, by user, at most every
    `machine.checkpoint_s`; None: nothing is kept.
    """
    machine = machine or Machine()
    waiting = iter(jobs)
    learners: list[_Learner] = []
    kept = time.monotonic()
    with workers_for(base.device) as workers:
        shape = config.module_for(base)
        kind = shape.lay_out(base.model)
        memory = int(machine.memory_share * free_bytes(base.device))
        tokens, held = _tokens_for(base, shape, machine, workers.count, memory)
        slots = machine.slots or slots_that_fit(base.device, kind.size, tokens, memory)
        free = list(range(slots))[::-1]
        bank = Bank(base.model, shape, slots + workers.count, kind=kind)
        with trunk_below(base, kind.target_names(), machine.trunk_bytes, machine.trunk_folder) as trunk, bank.attach():
            engine = Engine(base, bank, workers, tokens, Room(held), trunk, on_progress)
            while True:
                while free and (job := next(waiting, None)) is not None:
                    if isinstance(job, Job):
                        learners.append(_seat(bank, free.pop(), job, config))
                    else:
                        yield job
                if not learners:
                    return
                _watch(engine, learners)
                losses = engine.backward({learner.slot: next(learner.batches) for learner in learners})
                for learner in learners:
                    learner.losses.append(losses[learner.slot])
                _update(bank, learners, config)
                _watch(engine, learners)
                for learner in [one for one in learners if one.is_done(config.patience)]:
                    if learner.best is not None:
                        bank.values[learner.slot] = learner.best
                    module = bank.module(learner.slot)
                    yield Trained(learner.user_id, module, tuple(learner.losses), tuple(learner.held_out_losses))
                    learners.remove(learner)
                    free.append(learner.slot)
                if on_checkpoint and learners and time.monotonic() - kept >= machine.checkpoint_s:
                    on_checkpoint((learner.user_id, learner.checkpoint(bank)) for learner in learners)
                    kept = time.monotonic()


def train_into_base(
    base: Base,
    job: Job,
    config: TrainConfig,
    machine: Machine | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_checkpoint: Callable[[Iterator[tuple[str, Checkpoint]]], None] | None = None,
) -> tuple[float, ...]:
    """Task adaption (section 2.2): train one module on all of the job's examples and merge it into `base.model`.

    Changes the model in place; returns the loss of each step. ModelError for a quantized base.
    """
    check_mergeable(base.model, base.name)
    machine = machine or Machine()
    alone = replace(machine, slots=1, trunk_folder=None)
    (trained,) = train(base, [job], config, alone, on_progress, on_checkpoint)
    bank = Bank(base.model, config.module_for(base), 1)
    bank.load(0, trained.module)
    bank.merge(0)
    return trained.losses


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear schedule: rises over int(warmup * total) steps, then falls; never 0. `step` counts from 0."""
    rising = int(warmup * total)
    return (step + 1) / (rising + 1) if step < rising else (total - step) / (total - rising)


def batches_of(job: Job, config: TrainConfig) -> Iterator[list[Encoded]]:
    """The user's batches, epoch by epoch, in the user's own random order."""
    generator = torch.Generator().manual_seed(user_seed(config.seed, job.user_id))
    for _ in range(config.epochs):
        order = torch.randperm(len(job.examples), generator=generator).tolist()
        for start in range(0, len(order), config.batch_size):
            yield [job.examples[i] for i in order[start : start + config.batch_size]]


def _seat(bank: Bank, slot: int, job: Job, config: TrainConfig) -> _Learner:
    if not job.examples:
        raise ValueError(f"user {job.user_id} has no examples")
    shape = bank.config.shaped_as(job.module) if job.module is not None else None
    bank.reset(slot, user_seed(config.seed, job.user_id), shape)
    kept = _held_out(len(job.examples), config)
    learnt = replace(job, examples=job.examples[: len(job.examples) - kept])
    steps = math.ceil(len(learnt.examples) / config.batch_size)
    moments = (torch.zeros_like(bank.values[slot]), torch.zeros_like(bank.values[slot]))
    held_out = job.examples[len(learnt.examples) :]
    total = config.epochs * steps
    learner = _Learner(slot, job.user_id, batches_of(learnt, config), steps, total, moments, held_out)
    if job.begun is not None:
        learner.go_on(bank, job.begun)
    return learner


def _tokens_for(base: Base, shape: ModuleConfig, machine: Machine, workers: int, memory: int) -> tuple[int, int]:
    """Tokens under way at a time, and the most that passes may hold together where rows are longer than planned."""
    if machine.tokens_per_pass is not None:
        return machine.tokens_per_pass, machine.tokens_per_pass * min(2, workers)
    held = tokens_held(base.model, shape, memory)
    tokens = tokens_that_fit(held, base.device, workers)
    return tokens, max(held, tokens)


def _held_out(count: int, config: TrainConfig) -> int:
    """How many of a user's `count` items, the newest, are kept for early stop; a user with one item trains on it."""
    return min(count - 1, math.ceil(config.held_out * count)) if config.patience is not None else 0


def _watch(engine: Engine, learners: Sequence[_Learner]) -> None:
    """The losses on the held-out items of those who are due; the values that gave the least are kept."""
    due = [learner for learner in learners if learner.is_due]
    if not due:
        return
    others = [learner.slot for learner in learners if not learner.is_due]
    losses = engine.losses({learner.slot: learner.held_out for learner in due}, others)
    for learner in due:
        loss = losses[learner.slot]
        if loss < min(learner.held_out_losses, default=math.inf):
            learner.best = engine.bank.values[learner.slot].clone()
        learner.held_out_losses.append(loss)


@torch.no_grad()
def _update(
    bank: Bank, learners: Sequence[_Learner], config: TrainConfig, betas: tuple[float, float] = (0.9, 0.999)
) -> None:
    """Clip each learner's gradient and take one AdamW step on each line, as torch.optim.AdamW does."""
    grads = [bank.grads[learner.slot] for learner in learners]
    norms = torch.stack(torch._foreach_norm(grads)).tolist()
    torch._foreach_mul_(grads, [min(1.0, config.max_grad_norm / (norm + 1e-6)) for norm in norms])
    for start in range(0, len(learners), together := _updated_together(bank)):
        group, gradients = learners[start : start + together], grads[start : start + together]
        values = [bank.values[learner.slot] for learner in group]
        first, second = ([learner.moments[i] for learner in group] for i in (0, 1))
        rates = []
        for learner in group:
            rates.append(config.learning_rate * learning_rate_factor(learner.step, learner.total_steps, config.warmup))
            learner.step += 1
        torch._foreach_lerp_(first, gradients, 1 - betas[0])
        torch._foreach_mul_(second, betas[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - betas[1])
        divisors = torch._foreach_sqrt(second)
        torch._foreach_div_(divisors, [math.sqrt(1 - betas[1] ** learner.step) for learner in group])
        torch._foreach_add_(divisors, 1e-8)
        torch._foreach_mul_(values, [1 - rate * config.weight_decay for rate in rates])
        sizes = [-rate / (1 - betas[0] ** learner.step) for rate, learner in zip(rates, group, strict=True)]
        torch._foreach_addcdiv_(values, first, divisors, sizes)


def _updated_together(bank: Bank) -> int:
    """Learners in one operation: on a GPU each takes long to launch, on a CPU a line shall stay in the cache."""
    return max(1, _UPDATED_NUMBERS // bank.size) if bank.values.is_cuda else 1


_UPDATED_NUMBERS = 1 << 24
"""Of learners in one operation, which needs as many of its own."""
