"""A user's training under way: what is needed to go on exactly, and its form as one safetensors file.

The order of the examples is not kept: it follows from the user's seed, and the step says how far it has come.
Glossary: P parameters of a user's module.
"""

import math
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from oppu.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A user's training after so many optimizer steps; tensors on the CPU."""

    step: int
    values: torch.Tensor
    """[P] the module, float32."""
    moments: tuple[torch.Tensor, torch.Tensor]
    """[P] each: AdamW's, float32."""
    stream: torch.Tensor
    """State of the user's random stream for dropout, bytes."""
    losses: tuple[float, ...]
    """Of each step."""
    held_out_losses: tuple[float, ...] = ()
    """Before the first epoch and after each, where there is an early stop."""
    best: torch.Tensor | None = None
    """[P] the module with the least of them."""
    seconds: float = 0.0
    """From the first step to this one, without the time between a kill and the next run."""

    @property
    def lines(self) -> tuple[torch.Tensor, ...]:
        """All that is as long as a module."""
        return (self.values, *self.moments, *(() if self.best is None else (self.best,)))

    def examples_done(self, count: int, batch_size: int) -> int:
        """How many have been learnt, each counted once an epoch, where there are `count` in all."""
        epochs, steps = divmod(self.step, math.ceil(count / batch_size))
        return epochs * count + steps * batch_size


def checkpoint_bytes(checkpoint: Checkpoint, fingerprint: str) -> bytes:
    """The file; `fingerprint`: of the training, over everything that decides its module."""
    first, second = checkpoint.moments
    tensors = {
        "values": checkpoint.values,
        "first_moment": first,
        "second_moment": second,
        "stream": checkpoint.stream,
        "step": torch.tensor([checkpoint.step]),
        "seconds": torch.tensor([checkpoint.seconds], dtype=torch.float64),
        "losses": torch.tensor(checkpoint.losses, dtype=torch.float64),
        "held_out_losses": torch.tensor(checkpoint.held_out_losses, dtype=torch.float64),
        "fingerprint": torch.tensor(list(fingerprint.encode()), dtype=torch.uint8),
    }
    if checkpoint.best is not None:
        tensors["best"] = checkpoint.best
    return save(tensors)


def read_checkpoint(data: bytes, fingerprint: str) -> Checkpoint:
    """What `checkpoint_bytes` wrote for the training of this fingerprint; ModelError for anything else."""
    try:
        found = load(data)
        (step,), (seconds,) = found["step"].tolist(), found["seconds"].tolist()
        whose = bytes(found["fingerprint"].tolist()).decode()
        checkpoint = Checkpoint(
            step=step,
            values=found["values"],
            moments=(found["first_moment"], found["second_moment"]),
            stream=found["stream"],
            losses=tuple(found["losses"].tolist()),
            held_out_losses=tuple(found["held_out_losses"].tolist()),
            best=found.get("best"),
            seconds=seconds,
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"it is torn, or no checkpoint ({error})") from error
    if whose != fingerprint:
        raise ModelError("it belongs to another training")
    return checkpoint
