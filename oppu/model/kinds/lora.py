"""LoRA (arXiv 2106.09685): a low-rank update beside linear layers; the paper's main kind.

    y[t] += scale * dropout(x[t]) @ a[slot(t)].T @ b[slot(t)].T        slot -1: the plain base

Ranks may differ between users: a smaller module lies in the corner of a larger one's place, the rest is zero and stays
zero. Glossary: U slots, T tokens, R rank, I/O in/out features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from oppu.errors import ModelError
from oppu.model.attention import Layout, current_layout
from oppu.model.blocks import Blocks, Spans
from oppu.model.kinds.kind import (
    PREFIX,
    Kind,
    Lines,
    ModuleConfig,
    Target,
    find_targets,
    is_step,
    layer_names,
    rank_and_alpha,
)
from oppu.model.module import Module
from oppu.model.steps import StepModules, slots_of

_UNSUPPORTED = (
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "use_qalora",
    "alora_invocation_tokens",
    "exclude_modules",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "megatron_config",
)
"""What PEFT may have done to a LoRA module that the formula above does not know."""
_UNSUPPORTED_EVEN_EMPTY = (
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "use_bdlora",
    "layers_to_transform",
)
"""The same, where PEFT reads {} as the settings' defaults, and 0 as a layer."""
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` that leave the base as it is; with any other PEFT rewrites its weights when it loads a module."""


@dataclass(frozen=True, slots=True)
class LoraConfig(ModuleConfig):
    """Shape of the users' modules; defaults as in the paper (Table 4, appendix A)."""

    peft_type: ClassVar[str] = "LORA"

    rank: int = 8
    alpha: float = 8.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    # differs from the paper: the published code drops 5 % of a module's inputs; 0 makes training exact and faster
    targets: tuple[str, ...] | None = None
    """Endings of the names of linear layers; None: query and value projections."""
    kind: str = field(default="lora", init=False)

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / self.rank

    def lay_out(self, model: PreTrainedModel) -> "Lora":
        """See ModuleConfig."""
        return Lora(model, self)

    def holds(self, other: ModuleConfig) -> bool:
        """See ModuleConfig."""
        return isinstance(other, type(self)) and other.rank <= self.rank and other.targets == self.targets

    def shaped_as(self, other: ModuleConfig) -> Self:
        """See ModuleConfig."""
        return replace(self, rank=other.rank, alpha=other.alpha) if isinstance(other, LoraConfig) else self

    @classmethod
    def of(cls, module: Module) -> Self:
        """The settings of a LoRA module; ModelError for another kind."""
        config = module.config
        if config.get("peft_type") != "LORA" or not isinstance(config.get("target_modules"), list):
            kind = f"{config.get('peft_type')} on {config.get('target_modules')}"
            raise ModelError(f"the module is {kind}", fix="use a LoRA module whose target_modules are a list of names")
        return cls(*rank_and_alpha(config), 0.0, tuple(sorted(config["target_modules"])))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer's a [R, I] and b [O, R] lie in a user's line."""

    target: Target
    start: int
    middle: int
    end: int

    def both(self, lines: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """a [..., R, I] and b [..., O, R] as views of lines [..., P]."""
        a, b = lines[..., self.start : self.middle], lines[..., self.middle : self.end]
        return a.view(*a.shape[:-1], rank, -1), b.view(*b.shape[:-1], -1, rank)


class Lora(Kind):
    """LoRA for one model; see Kind."""

    def __init__(self, model: PreTrainedModel, config: LoraConfig) -> None:
        self._model = model
        self._config = config
        endings = config.targets if config.targets is not None else query_and_value(model)
        self.places: list[_Place] = []
        start = 0
        for target in find_targets(model, endings, strict=config.targets is not None):
            middle = start + config.rank * target.in_features
            end = middle + config.rank * target.out_features
            self.places.append(_Place(target, start, middle, end))
            start = end
        self.size = start

    def views(self, line: torch.Tensor, config: LoraConfig) -> dict[str, torch.Tensor]:
        """See Kind."""
        found: dict[str, torch.Tensor] = {}
        for place in self.places:
            a, b = place.both(line, self._config.rank)
            found |= dict(zip(lora_names(place.target), (a[: config.rank], b[:, : config.rank]), strict=True))
        return found

    def fresh(self, name: str, view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """As PEFT begins: a uniform, b zero."""
        if name.endswith("lora_B.weight"):
            return torch.zeros(view.shape)
        bound = 1 / math.sqrt(view.shape[1])  # kaiming_uniform with a = sqrt(5)
        return (torch.rand(view.shape, generator=generator) * 2 - 1).mul_(bound)

    def peft_config(self, config: LoraConfig) -> Mapping[str, Any]:
        """See Kind."""
        return lora_peft_config(self._model, [place.target for place in self.places], config)

    def misfits(self, peft_config: Mapping[str, Any]) -> list[str]:
        """See Kind."""
        if peft_config.get("peft_type") != "LORA":
            return [f"peft_type is {peft_config.get('peft_type')}, not LORA"]
        rank = peft_config.get("r")
        fits = isinstance(rank, int) and 0 < rank <= self._config.rank
        wrong = [] if fits else [f"r is {rank}, not between 1 and {self._config.rank}"]
        unsupported = [key for key in _UNSUPPORTED if peft_config.get(key)]
        unsupported += [key for key in _UNSUPPORTED_EVEN_EMPTY if peft_config.get(key) not in (None, [])]
        unsupported += ["init_lora_weights"] if peft_config.get("init_lora_weights") not in _BEGINNINGS else []
        return wrong + [f"{key} is {peft_config[key]}, which is not supported" for key in unsupported]

    def target_names(self) -> tuple[str, ...]:
        """See Kind."""
        return tuple([place.target.name for place in self.places])

    def hooks(self, lines: Lines) -> list[RemovableHandle]:
        """See Kind."""
        steps = _Steps(lines)
        lines.on_wipe.append(steps.forget)
        return [
            self._model.get_submodule(place.target.name).register_forward_hook(self._hook(place, lines, steps))
            for place in self.places
        ]

    def merge(self, line: torch.Tensor, config: LoraConfig) -> None:
        """W += scale * b @ a (section 2.2)."""
        for place in self.places:
            a, b = place.both(line, self._config.rank)
            add_to_weight(self._model.get_submodule(place.target.name), config.scale * b @ a)

    def _hook(self, place: _Place, lines: Lines, steps: "_Steps") -> Callable[..., torch.Tensor]:
        rank = self._config.rank
        layer = _Layer(*place.both(lines.values, rank), *place.both(lines.grads, rank), lines.configs, lines.scales)

        def add_delta(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            layout = current_layout()
            if layout is None:
                return output
            x = inputs[0]
            if is_step(layout, x):
                return steps.add(place.target, layer, layout, x, output)
            flat = _drop(x, layout, lines.streams, self._config.dropout).reshape(-1, place.target.in_features)
            delta = _delta(flat, lines.anchor, layer, layout.spans, lines.blocks(layout))
            return output + delta.to(output.dtype).view(output.shape)

        return add_delta


@dataclass(frozen=True, slots=True)
class _Layer:
    """One adapted layer's values and gradients, views of the bank's: a [U, R, I], b [U, O, R]."""

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    configs: list[LoraConfig]
    scales: torch.Tensor
    """[U], those of `configs`."""


class _Steps:
    """Decoding steps of a bank: the modules of the batch's slots, stacked, for as long as they serve."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._stacked = StepModules((), -1)

    def forget(self) -> None:
        """Overwrite the stacks."""
        self._stacked.wipe()
        self._stacked = StepModules((), -1)

    def add(self, target: Target, layer: _Layer, layout: Layout, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        version = self._lines.values._version
        stacked = self._stacked
        if not stacked.serves(layout.spans, version):
            slots = tuple(sorted(slots_of(layout.spans)))
            scales = [layer.configs[slot].scale for slot in slots]
            stacked = self._stacked = StepModules(slots, version, scales)
        if not stacked.slots:
            return output
        flat = x.reshape(-1, target.in_features).float()
        delta = stacked.delta(target.name, flat, layout.spans, lambda slots: (layer.a[slots], layer.b[slots]))
        return output + delta.to(output.dtype).view(output.shape)


def _delta(x: torch.Tensor, anchor: torch.Tensor, layer: _Layer, spans: Spans, blocks: Blocks | None) -> torch.Tensor:
    """The term added for x [T, I], [T, O]: span by span, or in blocks where these are given."""
    if blocks is None:
        return _SlotLora.apply(x, anchor, layer, spans)  # type: ignore[no-any-return, no-untyped-call]
    return _StackedLora.apply(x, anchor, layer, blocks)  # type: ignore[no-any-return, no-untyped-call]


class _SlotLora(torch.autograd.Function):
    """scale * x @ a[slot].T @ b[slot].T for spans of tokens [T, I] -> [T, O]; see the file's formula.

    Backward adds to the gradients of the slots in question alone; `anchor` only makes autograd come by. x is kept as
    it came; the products are in the precision of the modules.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, layer: _Layer, spans: Spans) -> torch.Tensor:
        y = layer.b.new_zeros(x.shape[0], layer.b.shape[1])
        for slot, start, end in spans:
            if slot >= 0:
                low = (x[start:end].to(layer.a.dtype) @ layer.a[slot].T).mul_(layer.configs[slot].scale)
                torch.mm(low, layer.b[slot].T, out=y[start:end])
        ctx.save_for_backward(x)
        ctx.layer, ctx.spans = layer, spans
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        layer: _Layer = ctx.layer
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for slot, start, end in ctx.spans:
            if slot >= 0:
                xs, gs, scale = x[start:end].to(layer.a.dtype), grad[start:end], layer.configs[slot].scale
                through = (gs @ layer.b[slot]).mul_(scale)  # [T, R]
                layer.grad_a[slot].addmm_(through.T, xs)
                layer.grad_b[slot].addmm_(gs.T, (xs @ layer.a[slot].T).mul_(scale))
                if grad_x is not None:
                    grad_x[start:end] = through @ layer.a[slot]
        return grad_x, None, None, None


class _StackedLora(torch.autograd.Function):
    """What `_SlotLora` gives, by a product over all blocks of tokens instead of one for each user."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, layer: _Layer, blocks: Blocks) -> torch.Tensor:
        a, b = layer.a[blocks.slots], layer.b[blocks.slots]  # [n, R, I], [n, O, R]
        low = torch.bmm(blocks.cut(x).to(a.dtype), a.mT).mul_(blocks.own(layer.scales))  # [n, m, R]
        ctx.save_for_backward(x)
        ctx.layer, ctx.blocks = layer, blocks
        return blocks.put(torch.bmm(low, b.mT), b.new_zeros(x.shape[0], b.shape[1]))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        layer: _Layer = ctx.layer
        blocks: Blocks = ctx.blocks
        a, b, own = layer.a[blocks.slots], layer.b[blocks.slots], blocks.own(layer.scales)
        xs, gs = blocks.cut(x).to(a.dtype), blocks.cut(grad)
        through = torch.bmm(gs, b).mul_(own)  # [n, m, R]
        blocks.add(torch.bmm(through.mT, xs), layer.grad_a)
        blocks.add(torch.bmm(gs.mT, torch.bmm(xs, a.mT).mul_(own)), layer.grad_b)
        grad_x = blocks.put(torch.bmm(through, a).to(x.dtype), torch.zeros_like(x)) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None


def lora_names(target: Target) -> tuple[str, str]:
    """PEFT's names of a layer's a and b."""
    return f"{PREFIX}{target.name}.lora_A.weight", f"{PREFIX}{target.name}.lora_B.weight"


def lora_peft_config(model: PreTrainedModel, targets: Sequence[Target], config: LoraConfig) -> dict[str, Any]:
    """What PEFT writes in adapter_config.json for a LoRA module on these layers."""
    endings = config.targets or {target.name.rsplit(".", 1)[-1] for target in targets}
    return {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "task_type": "CAUSAL_LM",
        "lora_dropout": config.dropout,
        "target_modules": sorted(endings),
        "bias": "none",
        "fan_in_fan_out": isinstance(model.get_submodule(targets[0].name), Conv1D),
        "inference_mode": True,
    }


@torch.no_grad()
def add_to_weight(layer: nn.Module, delta: torch.Tensor) -> None:
    """W += delta [O, I], in place."""
    layer.weight += (delta.T if isinstance(layer, Conv1D) else delta).to(layer.weight)  # type: ignore[operator, arg-type]


def _drop(x: torch.Tensor, layout: Layout, streams: Mapping[int, torch.Generator], p: float) -> torch.Tensor:
    """Dropout with each user's own random stream, in training only (gradients on)."""
    if p == 0 or not torch.is_grad_enabled():
        return x
    flat = x.reshape(-1, x.shape[-1])
    kept = torch.ones_like(flat)
    for slot, start, end in layout.spans:
        if slot >= 0:
            kept[start:end].bernoulli_(1 - p, generator=streams[slot])
    return flat * kept / (1 - p)


def query_and_value(model: PreTrainedModel) -> tuple[str, ...]:
    """The endings of the query and value projections; where they are called otherwise, what PEFT takes instead."""
    usual = ("q_proj", "v_proj")
    if layer_names(model).issuperset(usual):
        return usual
    # imported late: it takes two seconds
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    return tuple(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(str(model.config.model_type), usual))
