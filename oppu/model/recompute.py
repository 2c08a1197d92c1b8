"""Selective recomputation (arXiv 2205.05198, section 5): what is cheap to make again is not kept for the backward.

Norms and activation functions cost next to nothing, and their outputs are among the largest tensors that autograd
keeps: the activation of a gated feedforward, for the product with its other side, and a norm's output, for the modules
that read it. Their inputs are kept anyway. So in their place stands how they were made, and the backward pass makes
them again, the same bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

_ACTIVATIONS = ("act_fn", "activation_fn", "act")
"""What models call a feedforward's activation function."""


@contextmanager
def recomputing(model: PreTrainedModel, on_kept: Callable[[torch.Tensor], None] | None = None) -> Iterator[None]:
    """Within this context this thread's forward keeps no outputs of norms and activation functions.

    Its backward may come later. `on_kept` is shown each tensor that is kept.
    """
    _watch(model)

    def keep(tensor: torch.Tensor) -> "torch.Tensor | _Recipe":
        kept = _recipe(tensor) or tensor
        if on_kept is not None:
            on_kept(kept if isinstance(kept, torch.Tensor) else kept.given)
        return kept

    token = _MADE.set({})
    try:
        with saved_tensors_hooks(keep, _again):
            yield
    finally:
        _MADE.reset(token)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to make a tensor again."""

    module: nn.Module
    given: torch.Tensor
    shape: torch.Size


@dataclass(frozen=True, slots=True)
class _Made:
    """An output of this forward; while it lives, nobody else has its memory."""

    output: "ref[torch.Tensor]"
    version: int
    """Changes when somebody writes into it."""
    module: nn.Module
    given: torch.Tensor


_MADE: ContextVar[dict[int, _Made] | None] = ContextVar("oppu_made", default=None)
"""Of this thread's forward, by address."""
_WATCHED: WeakSet[PreTrainedModel] = WeakSet()
_LOCK = Lock()


def _watch(model: PreTrainedModel) -> None:
    """A hook on each norm and activation function; they stay, and do nothing outside of the context."""
    with _LOCK:
        if model in _WATCHED:
            return
        for name, module in model.named_modules():
            is_norm = "Norm" in type(module).__name__
            if (is_norm or name.rpartition(".")[2] in _ACTIVATIONS) and not any(module.children()):
                module.register_forward_hook(note_output)
        _WATCHED.add(model)


def note_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """The hook of norms and activation functions; it changes nothing."""
    made = _MADE.get()
    if made is None or not torch.is_grad_enabled() or len(inputs) != 1 or not isinstance(output, torch.Tensor):
        return
    made[output.data_ptr()] = _Made(ref(output), output._version, module, inputs[0].detach())


def _recipe(tensor: torch.Tensor) -> _Recipe | None:
    """How to make again what is to be kept; None where that is no output that was noted, or not all of one."""
    made = _MADE.get()
    found = made.get(tensor.data_ptr()) if made else None
    output = found.output() if found else None
    if found is None or output is None or output._version != found.version:
        return None
    if output.numel() != tensor.numel() or not (output.is_contiguous() and tensor.is_contiguous()):
        return None
    return _Recipe(found.module, found.given, tensor.shape)


def _again(kept: "torch.Tensor | _Recipe") -> torch.Tensor:
    if isinstance(kept, torch.Tensor):
        return kept
    with torch.no_grad():
        made: torch.Tensor = kept.module.forward(kept.given).view(kept.shape)
    return made
