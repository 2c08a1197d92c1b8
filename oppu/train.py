"""One loop that trains many users' modules at once, each exactly as if it were trained alone.

In each step every slot takes one optimizer step on its own user's next batch: own loss mean, clipping, learning rate,
AdamW state and random streams. A finished user's slot is given to the next user at once. What is shared is the base's
forward and backward alone, cut into passes that run side by side on the machine's cores.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from oppu.model.bank import Bank, user_seed
from oppu.model.base import Base
from oppu.model.forward import SlotRow, answer_log_probs, passes, rows_of
from oppu.model.kinds import LoraConfig, ModuleConfig
from oppu.model.layers import on_top_layers
from oppu.model.memory import slots_that_fit, tokens_that_fit
from oppu.model.module import Module
from oppu.model.quantize import check_mergeable
from oppu.model.tokens import Encoded
from oppu.model.trunk import Trunk, trunk_below
from oppu.model.workers import Workers, workers_for


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
    """Modules on the top so many layers alone; None: on all. # the paper has them on all"""

    def module_for(self, base: Base) -> ModuleConfig:
        """Kind and shape of the modules on this base."""
        return self.module if self.top_layers is None else on_top_layers(base.model, self.module, self.top_layers)


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides speed and memory, and never a result."""

    slots: int | None = None
    """Users trained at a time; None: as many as fill a pass and fit into the memory there is."""
    tokens_per_pass: int | None = None
    """Tokens under way at a time, over all cores, and the longest row of packed examples; memory grows with it.
    None: as many as are useful and fit into the memory there is."""
    trunk_bytes: int = 4 << 30
    """Of the file with what the layers below the modules make of examples, where these sit on the top layers alone."""


@dataclass(frozen=True, slots=True)
class Job:
    """One user's training examples."""

    user_id: str
    examples: tuple[Encoded, ...]
    module: ModuleConfig | None = None
    """This user's own shape, where it is smaller than the config's."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished user: the module, and the mean loss of each optimizer step."""

    user_id: str
    module: Module
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """What one pass of the loop has done."""

    tokens: int
    """Distinct tokens, as packed."""
    examples: int


@dataclass(slots=True)
class _Learner:
    """A user in a slot: where its training stands, and its AdamW moments [P]."""

    slot: int
    job: Job
    batches: Iterator[list[Encoded]]
    total_steps: int
    moments: tuple[torch.Tensor, torch.Tensor]
    step: int = 0
    losses: list[float] = field(default_factory=list)


def train(
    base: Base,
    jobs: Iterable[Job],
    config: TrainConfig,
    machine: Machine | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Trained]:
    """Train each job's module; yields them as they are finished. `jobs` is read only as slots become free.

    Each job needs at least one example. The result does not depend on the neighbours, their number or order.
    """
    machine = machine or Machine()
    waiting = iter(jobs)
    learners: list[_Learner] = []
    with workers_for(base.device) as workers:
        shape = config.module_for(base)
        tokens = machine.tokens_per_pass or tokens_that_fit(base.model, shape, workers.count)
        slots = machine.slots or slots_that_fit(base.device, shape.lay_out(base.model).size, tokens)
        free = list(range(slots))[::-1]
        bank = Bank(base.model, shape, max(slots, workers.count))
        with trunk_below(base, shape, machine.trunk_bytes) as trunk, bank.attach():
            engine = _Engine(base, bank, workers, tokens, trunk, on_progress)
            while True:
                while free and (job := next(waiting, None)) is not None:
                    learners.append(_seat(bank, free.pop(), job, config))
                if not learners:
                    return
                losses = engine.backward({learner.slot: next(learner.batches) for learner in learners})
                for learner in learners:
                    learner.losses.append(losses[learner.slot])
                    _update(bank, learner, config)
                for learner in [one for one in learners if one.step == one.total_steps]:
                    yield Trained(learner.job.user_id, bank.module(learner.slot), tuple(learner.losses))
                    learners.remove(learner)
                    free.append(learner.slot)


def train_into_base(
    base: Base,
    job: Job,
    config: TrainConfig,
    machine: Machine | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[float, ...]:
    """Task adaption (section 2.2): train one module on all of the job's examples and merge it into `base.model`.

    Changes the model in place; returns the loss of each step. ModelError for a quantized base.
    """
    check_mergeable(base.model, base.name)
    machine = machine or Machine()
    (trained,) = train(base, [job], config, Machine(1, machine.tokens_per_pass), on_progress)
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
    steps = config.epochs * math.ceil(len(job.examples) / config.batch_size)
    moments = (torch.zeros_like(bank.values[slot]), torch.zeros_like(bank.values[slot]))
    return _Learner(slot, job, batches_of(job, config), steps, moments)


@dataclass(frozen=True, slots=True)
class _Engine:
    """Forward and backward of one step of all slots, spread over the workers."""

    base: Base
    bank: Bank
    workers: Workers
    tokens: int
    """Tokens under way at a time."""
    trunk: Trunk | None
    on_progress: Callable[[Progress], None]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def backward(self, batches: Mapping[int, list[Encoded]]) -> dict[int, float]:
        """Gradients of each slot's mean loss over its batch's answer tokens; returns the losses by slot."""
        self.bank.zero_grad()
        counts = {slot: sum(e.answer_tokens for e in batch) for slot, batch in batches.items()}
        copies = self._copies(batches)  # copy -> slot
        owner = {slot: slot for slot in batches} | copies
        rows: dict[int, list[SlotRow]] = {}
        for slot, examples in batches.items():
            batch = [example.after_virtual(self.bank.config.virtual_tokens) for example in examples]
            places = [slot, *(copy for copy, of in copies.items() if of == slot)]
            for place, part in zip(places, _parts(batch, len(places)), strict=False):
                rows[place] = list(rows_of(place, part, self.tokens))
        losses = dict.fromkeys(batches, 0.0)
        for found in self.workers.map(lambda share: self._run(share, owner, counts), self._shares(rows)):
            for slot, loss in found.items():
                losses[slot] += loss
        for copy, slot in copies.items():
            self.bank.grads[slot] += self.bank.grads[copy]
        return losses

    def _copies(self, batches: Mapping[int, list[Encoded]]) -> dict[int, int]:
        """Where fewer users than workers are left, spare slots take copies of their modules and share their batches."""
        if self.bank.config.dropout:  # a random stream cannot be shared
            return {}
        spare = [slot for slot in range(self.bank.slots) if slot not in batches]
        owners = [slot for slot in batches for _ in range(self.workers.count // len(batches) - 1)]
        copies = dict(zip(spare, owners, strict=False))
        for copy, slot in copies.items():
            self.bank.copy(slot, copy)
        return copies

    def _shares(self, rows: Mapping[int, list[SlotRow]]) -> list[list[SlotRow]]:
        """Rows for each worker, about equally many tokens; a slot's rows stay together and in order."""
        shares: list[list[SlotRow]] = [[] for _ in range(min(self.workers.count, len(rows)))]
        sizes = [0] * len(shares)
        for listed in sorted(rows.values(), key=lambda listed: -_tokens(listed)):
            smallest = sizes.index(min(sizes))
            shares[smallest] += listed
            sizes[smallest] += _tokens(listed)
        return shares

    def _run(self, share: list[SlotRow], owner: Mapping[int, int], counts: Mapping[int, int]) -> dict[int, float]:
        """One worker's passes."""
        losses: dict[int, float] = {}
        for group in passes(share, self.tokens // self.workers.count):
            found = answer_log_probs(self.base.model, group, self.trunk.body if self.trunk else None)
            parts = found.split([row.answer_tokens for row in group])  # type: ignore[no-untyped-call]
            means = [-part.sum() / counts[owner[row.slot]] for row, part in zip(group, parts, strict=True)]
            torch.stack(means).sum().backward()  # type: ignore[no-untyped-call]
            for row, mean in zip(group, means, strict=True):
                losses[owner[row.slot]] = losses.get(owner[row.slot], 0.0) + mean.item()
            with self._lock:
                self.on_progress(Progress(_tokens(group), sum(len(row.examples) for row in group)))
        return losses


def _tokens(rows: Sequence[SlotRow]) -> int:
    return sum(len(row.row) for row in rows)


def _parts(batch: Sequence[Encoded], count: int) -> Iterator[list[Encoded]]:
    """A batch in at most `count` parts of about equally many examples, shared prefixes kept together."""
    ordered = sorted(batch, key=lambda e: e.tokens)
    size = math.ceil(len(ordered) / count)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@torch.no_grad()
def _update(bank: Bank, learner: _Learner, config: TrainConfig, betas: tuple[float, float] = (0.9, 0.999)) -> None:
    """Clip the slot's gradient and take one AdamW step on its line, as torch.optim.AdamW does."""
    value, grad = bank.values[learner.slot], bank.grads[learner.slot]
    grad.mul_(torch.clamp(config.max_grad_norm / (grad.norm() + 1e-6), max=1.0))
    rate = config.learning_rate * learning_rate_factor(learner.step, learner.total_steps, config.warmup)
    learner.step += 1
    first, second = learner.moments
    first.lerp_(grad, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    divisor = (second.sqrt() / math.sqrt(1 - betas[1] ** learner.step)).add_(1e-8)
    value.mul_(1 - rate * config.weight_decay)
    value.addcdiv_(first, divisor, value=-rate / (1 - betas[0] ** learner.step))
