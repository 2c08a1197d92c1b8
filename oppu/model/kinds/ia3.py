"""IA3 (arXiv 2205.05638): vectors that rescale keys, values and the feedforward layers' inner activations.

    y[t] = linear(x[t]) * l[slot(t)]            keys and values
    y[t] = linear(x[t] * l[slot(t)])            feedforward layers        slot -1: the plain base

Glossary: U slots, T tokens, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from oppu.errors import ConfigError, ModelError
from oppu.model.attention import current_layout
from oppu.model.blocks import Blocks, Spans
from oppu.model.kinds.kind import (
    PREFIX,
    Kind,
    Lines,
    ModuleConfig,
    Target,
    ends_with,
    find_targets,
    is_step,
    layer_names,
)
from oppu.model.module import Module
from oppu.model.steps import step_slots


@dataclass(frozen=True, slots=True)
class Ia3Config(ModuleConfig):
    """Which layers are rescaled; by default keys, values and the feedforward layers' outputs, as in PEFT."""

    peft_type: ClassVar[str] = "IA3"

    targets: tuple[str, ...] | None = None
    """Endings of the names of linear layers."""
    feedforward: tuple[str, ...] | None = None
    """Those of the targets whose input is rescaled instead of their output."""
    kind: str = field(default="ia3", init=False)

    def lay_out(self, model: PreTrainedModel) -> "Ia3":
        """See ModuleConfig."""
        return Ia3(model, self)

    @classmethod
    def of(cls, module: Module) -> Self:
        """The settings of an IA3 module."""
        names = [module.config.get(key) for key in ("target_modules", "feedforward_modules")]
        if not all(isinstance(listed, list) for listed in names):
            raise ModelError("its target_modules are no names", fix="use a module whose target_modules are a list")
        targets, feedforward = (tuple(sorted(listed)) for listed in names)  # type: ignore[arg-type]
        return cls(targets, feedforward)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer's vector [D] lies in a user's line."""

    target: Target
    is_feedforward: bool
    start: int
    end: int

    @property
    def name(self) -> str:
        """PEFT's."""
        return f"{PREFIX}{self.target.name}.ia3_l"

    @property
    def shape(self) -> tuple[int, int]:
        """PEFT's."""
        size = self.end - self.start
        return (1, size) if self.is_feedforward else (size, 1)


class Ia3(Kind):
    """IA3 for one model; see Kind."""

    def __init__(self, model: PreTrainedModel, config: Ia3Config) -> None:
        self._model = model
        usual, inner = _keys_values_and_feedforward(model)
        self._targets = config.targets if config.targets is not None else usual
        inner = config.feedforward if config.feedforward is not None else inner
        self._feedforward = tuple(t for t in self._targets if any(ends_with(t, ending) for ending in inner))
        self.places: list[_Place] = []
        start = 0
        for target in find_targets(model, self._targets, strict=config.targets is not None):
            inside = any(ends_with(target.name, ending) for ending in self._feedforward)
            end = start + (target.in_features if inside else target.out_features)
            self.places.append(_Place(target, inside, start, end))
            start = end
        self.size = start

    def views(self, line: torch.Tensor, config: Ia3Config) -> dict[str, torch.Tensor]:
        """See Kind."""
        return {place.name: line[place.start : place.end].view(place.shape) for place in self.places}

    def fresh(self, name: str, view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Ones: a fresh module changes nothing."""
        return torch.ones(view.shape)

    def peft_config(self, config: Ia3Config) -> Mapping[str, Any]:
        """See Kind."""
        layers = [self._model.get_submodule(place.target.name) for place in self.places]
        return {
            "peft_type": "IA3",
            "task_type": "CAUSAL_LM",
            "target_modules": sorted(self._targets),
            "feedforward_modules": sorted(self._feedforward),
            "fan_in_fan_out": isinstance(layers[0], Conv1D),
            "inference_mode": True,
        }

    def misfits(self, peft_config: Mapping[str, Any]) -> list[str]:
        """See Kind."""
        kind = peft_config.get("peft_type")
        return [] if kind == "IA3" else [f"peft_type is {kind}, not IA3"]

    def target_names(self) -> tuple[str, ...]:
        """See Kind."""
        return tuple([place.target.name for place in self.places])

    def hooks(self, lines: Lines) -> list[RemovableHandle]:
        """See Kind."""
        return [self._plug(place, lines) for place in self.places]

    def merge(self, line: torch.Tensor, config: Ia3Config) -> None:
        """W *= l, row by row or, in feedforward layers, column by column."""
        for place in self.places:
            layer = self._model.get_submodule(place.target.name)
            scales = line[place.start : place.end].to(layer.weight.device)
            by_row = place.is_feedforward == isinstance(layer, Conv1D)  # Conv1D keeps its weight transposed
            with torch.no_grad():
                layer.weight.copy_(layer.weight * (scales[:, None] if by_row else scales[None, :]))
                if layer.bias is not None and not place.is_feedforward:
                    layer.bias.copy_(layer.bias * scales)

    def _plug(self, place: _Place, lines: Lines) -> RemovableHandle:
        layer = self._model.get_submodule(place.target.name)
        values, grads = (part[:, place.start : place.end] for part in (lines.values, lines.grads))

        def rescale(x: torch.Tensor) -> torch.Tensor:
            layout = current_layout()
            if layout is None:
                return x
            flat = x.reshape(-1, x.shape[-1])
            if is_step(layout, x):
                slots, plain = step_slots(layout.spans, x.device)
                scales = values[slots].masked_fill_(plain, 1)
                return (flat * scales).to(x.dtype).view(x.shape)
            return _scaled(flat, lines.anchor, values, grads, layout.spans, lines.blocks(layout)).view(x.shape)

        if place.is_feedforward:

            def before(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
                return (rescale(inputs[0]), *inputs[1:])

            return layer.register_forward_pre_hook(before)  # type: ignore[no-any-return]

        def after(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return rescale(output)

        return layer.register_forward_hook(after)  # type: ignore[no-any-return]


def _scaled(
    x: torch.Tensor,
    anchor: torch.Tensor,
    values: torch.Tensor,
    grads: torch.Tensor,
    spans: Spans,
    blocks: Blocks | None,
) -> torch.Tensor:
    """x [T, D] rescaled by values [U, D]: span by span, or in blocks where these are given."""
    if blocks is None:
        return _SlotScale.apply(x, anchor, values, grads, spans)  # type: ignore[no-any-return, no-untyped-call]
    return _StackedScale.apply(x, anchor, values, grads, blocks)  # type: ignore[no-any-return, no-untyped-call]


class _SlotScale(torch.autograd.Function):
    """x * values[slot] for spans of tokens [T, D]; backward adds to the slots' own gradients [U, D].

    Values are float32, and so is the product before it is rounded to x's precision, as in PEFT: around 1 the steps of
    bfloat16 are as large as what a module learns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        values: torch.Tensor,
        grads: torch.Tensor,
        spans: Spans,
    ) -> torch.Tensor:
        y = x.clone()
        for slot, start, end in spans:
            if slot >= 0:
                y[start:end] = y[start:end] * values[slot]
        ctx.save_for_backward(x)
        ctx.values, ctx.grads, ctx.spans = values, grads, spans
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad_x = grad.clone() if ctx.needs_input_grad[0] else None
        for slot, start, end in ctx.spans:
            if slot >= 0:
                ctx.grads[slot] += (grad[start:end].to(ctx.grads.dtype) * x[start:end].to(ctx.grads.dtype)).sum(0)
                if grad_x is not None:
                    grad_x[start:end] = grad_x[start:end] * ctx.values[slot]
        return grad_x, None, None, None, None


class _StackedScale(torch.autograd.Function):
    """What `_SlotScale` gives, by a product over all blocks of tokens instead of one for each user."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, values: torch.Tensor, grads: torch.Tensor, blocks: Blocks
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.values, ctx.grads, ctx.blocks = values, grads, blocks
        return blocks.put((blocks.cut(x) * values[blocks.slots][:, None]).to(x.dtype), x.clone())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        xs, gs = blocks.cut(x), blocks.cut(grad)
        own = ctx.values[blocks.slots][:, None]  # [n, 1, D]
        blocks.add((gs.to(ctx.grads.dtype) * xs.to(ctx.grads.dtype) * blocks.filled).sum(1), ctx.grads)
        grad_x = blocks.put((gs * own).to(gs.dtype), grad.clone()) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None


def _keys_values_and_feedforward(model: PreTrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """PEFT's choice for the model: all targets, and the feedforward layers among them."""
    usual = ("down_proj", "k_proj", "v_proj")
    if layer_names(model).issuperset(usual):
        return usual, ("down_proj",)
    # imported late: it takes two seconds
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    kind = str(model.config.model_type)
    if kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        raise ConfigError(f"which layers IA3 rescales in a {kind} model is not known", fix="name them with --targets")
    return (
        tuple(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind]),
        tuple(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]),
    )
