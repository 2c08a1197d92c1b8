"""A model's decoder layers: which of them modules sit on, and the model cut in two below the lowest of these."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from oppu.errors import ConfigError
from oppu.model.attention import PackedLayout, use_layout
from oppu.model.forward import flat, inputs
from oppu.model.head import plain_head
from oppu.model.kinds import ModuleConfig
from oppu.model.last_layer import decoder_layers
from oppu.model.packing import Row, pack


def on_top_layers(model: PreTrainedModel, config: ModuleConfig, count: int) -> ModuleConfig:
    """The settings with the same targets on the top `count` layers alone, by their full names.

    ConfigError for a kind that touches no layers, and for more layers than the model has.
    """
    prefix, layers = decoder_layers(model)
    if count > len(layers):
        raise ConfigError(f"the model has {len(layers)} layers", where="--layers", fix=f"use top:{len(layers)} at most")
    names = config.lay_out(model).target_names()
    if not names:
        raise ConfigError(f"a module of kind '{config.kind}' sits on no layers", where="--layers", fix="leave it out")
    kept = tuple(sorted(name for name in names if _index(name, prefix) >= len(layers) - count))
    return dataclasses.replace(config, targets=kept)  # type: ignore[call-arg]


def first_layer(model: PreTrainedModel, names: Sequence[str]) -> int:
    """The lowest decoder layer that modules on the layers of these `names` touch; 0 also where that cannot be told."""
    try:
        prefix, _ = decoder_layers(model)
    except ConfigError:
        return 0
    return max(0, min((_index(name, prefix) for name in names), default=0))


class SplitModel:
    """A model's body in two: the layers below `first`, and those from there on. Both share its weights and hooks."""

    def __init__(self, model: PreTrainedModel, first: int) -> None:
        prefix, layers = decoder_layers(model)
        self.first = first
        self._model = model
        self._hook = layers[first].register_forward_pre_hook(_stop_here, with_kwargs=True)
        body = model.base_model
        self._upper = copy.copy(body)
        self._upper._modules = {**body._modules, prefix.rpartition(".")[2]: layers[first:]}
        self._upper.config = copy.deepcopy(body.config)
        self._upper.config.num_hidden_layers = len(layers) - first
        if getattr(body.config, "layer_types", None):
            self._upper.config.layer_types = body.config.layer_types[first:]

    def close(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    @torch.no_grad()
    def lower(self, rows: Sequence[Row]) -> torch.Tensor:
        """What the layers below make of the rows, laid one after another, with no module: [N, D]."""
        seen: list[torch.Tensor] = []
        token = _STOP.set(seen.append)
        try:
            with use_layout(PackedLayout(rows, [-1] * len(rows), self._model.device, self._model.dtype)):
                self._model.base_model(**inputs(self._model, *flat(self._model, rows)))
        except _ReachedError:
            pass
        finally:
            _STOP.reset(token)
        return seen[0][0]

    def upper(self, rows: Sequence[Row], hidden: torch.Tensor) -> torch.Tensor:
        """The body's output [N, D] from what `lower` made of the rows, under the current layout."""
        given = inputs(self._model, *flat(self._model, rows))
        given["inputs_embeds"] = hidden[None]
        del given["input_ids"]
        output: torch.Tensor = self._upper(**given).last_hidden_state
        return output[0]


def split_model(model: PreTrainedModel, first: int) -> SplitModel | None:
    """The model cut below layer `first`; None where it cannot be cut, which is found out by trying."""
    if first == 0 or plain_head(model) is None:
        return None
    split = None
    try:
        split = SplitModel(model, first)
        row = pack([(0, 1, 2), (0, 3)])
        with torch.no_grad(), use_layout(PackedLayout([row], [-1], model.device, model.dtype)):
            whole = model.base_model(**inputs(model, *flat(model, [row]))).last_hidden_state[0]
            parts = split.upper([row], split.lower([row]))
        if torch.equal(whole, parts):
            return split
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, ConfigError):
        pass
    if split is not None:
        split.close()
    return None


class _ReachedError(Exception):
    """The lower layers are done."""


_STOP: ContextVar[Callable[[torch.Tensor], Any] | None] = ContextVar("oppu_stop", default=None)
"""Of this thread: who wants what reaches the boundary, and nothing beyond."""


def _stop_here(_: nn.Module, given: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
    take = _STOP.get()
    if take is not None:
        take(given[0] if given else named["hidden_states"])
        raise _ReachedError


def _index(name: str, prefix: str) -> int:
    """The number of the layer that the part `name` belongs to; -1: to none."""
    first, _, _ = name.removeprefix(f"{prefix}.").partition(".")
    return int(first) if name.startswith(f"{prefix}.") and first.isdecimal() else -1
