"""LoRA-XS (arXiv 2405.17604): a core of R x R numbers per layer and user between two frozen halves shared by all users.

    y[t] += scale * x[t] @ A.T @ core[slot(t)].T @ B.T        slot -1: the plain base

A [R, I] = S V^T and B [O, R] = U are the largest singular values and vectors of the layer's weight [O, I] = U S V^T:
they come from the base and need not be stored with a module. A core of a smaller rank uses the first of them. They are
those of the weight rounded to bfloat16, so that a base in float32 and the same in bfloat16 have the same halves.

Glossary: U slots, T tokens, L layers, R rank, I/O in/out features.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from oppu.errors import ConfigError, ModelError
from oppu.model.attention import current_layout
from oppu.model.blocks import Blocks, Spans
from oppu.model.embedded import cache_folder
from oppu.model.kinds.kind import Kind, Lines, ModuleConfig, Target, find_targets, is_step, rank_and_alpha
from oppu.model.kinds.lora import LoraConfig, add_to_weight, lora_names, lora_peft_config, query_and_value
from oppu.model.module import Module, Shape
from oppu.model.steps import step_slots

_CORES = "cores"
"""The one tensor of a module: [L, R, R], layers in the model's order."""

_KEPT_FROM = 1 << 22
"""Parameters of the adapted layers from which the halves are kept on disk; fewer are decomposed in no time."""

Halves = tuple[torch.Tensor, torch.Tensor]
"""A [R, I] and B [O, R] of a layer, float32."""


@dataclass(frozen=True, slots=True)
class LoraXsConfig(ModuleConfig):
    """Shape of the users' cores."""

    peft_type: ClassVar[str] = "LORA_XS"

    rank: int = 8
    alpha: float = 8.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] | None = None
    """Endings of the names of linear layers; None: query and value projections."""
    kind: str = field(default="lora-xs", init=False)

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / self.rank

    def lay_out(self, model: PreTrainedModel) -> "LoraXs":
        """See ModuleConfig."""
        return LoraXs(model, self)

    def holds(self, other: ModuleConfig) -> bool:
        """See ModuleConfig."""
        return isinstance(other, LoraXsConfig) and other.rank <= self.rank and other.targets == self.targets

    def shaped_as(self, other: ModuleConfig) -> Self:
        """See ModuleConfig."""
        return replace(self, rank=other.rank, alpha=other.alpha) if isinstance(other, LoraXsConfig) else self

    @classmethod
    def of(cls, module: Module) -> Self:
        """See ModuleConfig."""
        config = module.config
        if not isinstance(config.get("target_modules"), list):
            raise ModelError("its target_modules are no names", fix="use a module whose target_modules are a list")
        return cls(*rank_and_alpha(config), tuple(sorted(config["target_modules"])))

    @classmethod
    def misfits_in_file(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
        """See ModuleConfig."""
        rank, shape = config.get("r"), shapes.get(_CORES)
        problems = [f"{name} (not {_CORES})" for name in shapes if name != _CORES]
        if shape is None or len(shape) != 3 or 0 in shape or shape[1:] != (rank, rank):
            problems.append(
                f"{_CORES} ({'missing' if shape is None else f'shape {list(shape)}'}, not [L, {rank}, {rank}])"
            )
        if not isinstance(config.get("target_modules"), list):
            problems.append("target_modules (not a list of names)")
        return problems


class LoraXs(Kind):
    """LoRA-XS for one model; see Kind."""

    def __init__(self, model: PreTrainedModel, config: LoraXsConfig) -> None:
        self._model = model
        self._config = config
        endings = config.targets if config.targets is not None else query_and_value(model)
        self.targets = find_targets(model, endings, strict=config.targets is not None)
        self._halves = _halves_of(model, self.targets, config.rank)
        self._shape = len(self.targets), config.rank, config.rank
        self.size = len(self.targets) * config.rank**2

    def views(self, line: torch.Tensor, config: LoraXsConfig) -> dict[str, torch.Tensor]:
        """See Kind."""
        return {_CORES: line.view(self._shape)[:, : config.rank, : config.rank]}

    def fresh(self, name: str, view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Zeros: a fresh module changes nothing. # differs from the paper: there, a deviation of 1e-5."""
        return torch.zeros(view.shape)

    def peft_config(self, config: LoraXsConfig) -> Mapping[str, Any]:
        """What LoRA writes, but for the kind: PEFT itself has no LoRA-XS."""
        return {**self._lora_config(config), "peft_type": config.peft_type}

    def misfits(self, peft_config: Mapping[str, Any]) -> list[str]:
        """See Kind."""
        if peft_config.get("peft_type") != LoraXsConfig.peft_type:
            return [f"peft_type is {peft_config.get('peft_type')}, not {LoraXsConfig.peft_type}"]
        rank = peft_config.get("r")
        fits = isinstance(rank, int) and 0 < rank <= self._config.rank
        return [] if fits else [f"r is {rank}, not between 1 and {self._config.rank}"]

    def target_names(self) -> tuple[str, ...]:
        """See Kind."""
        return tuple([target.name for target in self.targets])

    def hooks(self, lines: Lines) -> list[RemovableHandle]:
        """See Kind."""
        values, grads = (part.view(-1, *self._shape) for part in (lines.values, lines.grads))
        return [
            self._model.get_submodule(target.name).register_forward_hook(
                _hook(
                    _Layer(*halves, values[:, place], grads[:, place], lines.configs, lines.scales, lines.ranks), lines
                )
            )
            for place, (target, halves) in enumerate(zip(self.targets, self._halves, strict=True))
        ]

    def merge(self, line: torch.Tensor, config: LoraXsConfig) -> None:
        """W += scale * B @ core @ A."""
        for target, (a, b), core in zip(self.targets, self._halves, line.view(self._shape), strict=True):
            add_to_weight(self._model.get_submodule(target.name), config.scale * b @ core @ a)

    def portable(self, line: torch.Tensor, config: LoraXsConfig) -> Module:
        """As plain LoRA of the same rank: its a is A, its b is B @ core."""
        tensors: dict[str, torch.Tensor] = {}
        for target, (a, b), core in zip(self.targets, self._halves, line.view(self._shape), strict=True):
            halves = a[: config.rank].clone(), b @ core[:, : config.rank]
            tensors |= {name: half.cpu() for name, half in zip(lora_names(target), halves, strict=True)}
        return Module(tensors, self._lora_config(config))

    def _lora_config(self, config: LoraXsConfig) -> dict[str, Any]:
        return lora_peft_config(
            self._model, self.targets, LoraConfig(config.rank, config.alpha, targets=config.targets)
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """One adapted layer: the frozen halves, and views of the bank's values and gradients [U, R, R]."""

    a: torch.Tensor
    b: torch.Tensor
    cores: torch.Tensor
    grads: torch.Tensor
    configs: list[LoraXsConfig]
    scales: torch.Tensor
    """[U], those of `configs`."""
    ranks: torch.Tensor
    """[U], those of `configs`."""


def _hook(layer: _Layer, lines: Lines) -> Callable[..., torch.Tensor]:
    def add_delta(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        layout = current_layout()
        if layout is None:
            return output
        x = inputs[0].reshape(-1, layer.a.shape[1]).float()
        if is_step(layout, x):
            delta = _step(x, layer, layout.spans)
        else:
            delta = _delta(x, lines.anchor, layer, layout.spans, lines.blocks(layout))
        return output + delta.to(output.dtype).view(output.shape)

    return add_delta


def _step(x: torch.Tensor, layer: _Layer, spans: Spans) -> torch.Tensor:
    """The term added for x [T, I], one token of each span, [T, O]."""
    slots, plain = step_slots(spans, x.device)
    low = x @ layer.a.T * layer.scales[slots][:, None]
    middle = torch.bmm(layer.cores[slots], low[:, :, None])[:, :, 0]
    return middle.masked_fill_(plain, 0) @ layer.b.T


def _delta(x: torch.Tensor, anchor: torch.Tensor, layer: _Layer, spans: Spans, blocks: Blocks | None) -> torch.Tensor:
    """The term added for x [T, I], [T, O]: span by span, or in blocks where these are given."""
    if blocks is None:
        return _SlotCore.apply(x, anchor, layer, spans)  # type: ignore[no-any-return, no-untyped-call]
    return _StackedCore.apply(x, anchor, layer, blocks)  # type: ignore[no-any-return, no-untyped-call]


class _SlotCore(torch.autograd.Function):
    """scale * x @ A.T @ cores[slot].T @ B.T for spans of tokens [T, I] -> [T, O]; see the file's formula.

    Backward adds to the gradients of the slots in question alone, at each one's own rank.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, layer: _Layer, spans: Spans) -> torch.Tensor:
        low = x @ layer.a.T
        middle = torch.zeros_like(low)
        for slot, start, end in spans:
            if slot >= 0:
                middle[start:end] = (low[start:end] @ layer.cores[slot].T).mul_(layer.configs[slot].scale)
        ctx.save_for_backward(low)
        ctx.layer, ctx.spans = layer, spans
        return middle @ layer.b.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (low,) = ctx.saved_tensors
        layer: _Layer = ctx.layer
        high = grad @ layer.b
        through = torch.zeros_like(low)
        for slot, start, end in ctx.spans:
            if slot >= 0:
                rank, gs = layer.configs[slot].rank, high[start:end].mul_(layer.configs[slot].scale)
                layer.grads[slot, :rank, :rank].addmm_(gs[:, :rank].T, low[start:end, :rank])
                torch.mm(gs, layer.cores[slot], out=through[start:end])
        return through @ layer.a if ctx.needs_input_grad[0] else None, None, None, None


class _StackedCore(torch.autograd.Function):
    """What `_SlotCore` gives, by a product over all blocks of tokens instead of one for each user."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, layer: _Layer, blocks: Blocks) -> torch.Tensor:
        low = x @ layer.a.T
        middle = torch.bmm(blocks.cut(low), layer.cores[blocks.slots].mT).mul_(blocks.own(layer.scales))  # [n, m, R]
        ctx.save_for_backward(low)
        ctx.layer, ctx.blocks = layer, blocks
        return blocks.put(middle, torch.zeros_like(low)) @ layer.b.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (low,) = ctx.saved_tensors
        layer: _Layer = ctx.layer
        blocks: Blocks = ctx.blocks
        high = blocks.cut(grad @ layer.b).mul_(blocks.own(layer.scales))  # [n, m, R]
        used = torch.arange(low.shape[1], device=low.device) < layer.ranks[blocks.slots][:, None]  # [n, R]
        found = torch.bmm(high.mT, blocks.cut(low))
        blocks.add(found.masked_fill_(~(used[:, :, None] & used[:, None, :]), 0), layer.grads)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        through = blocks.put(torch.bmm(high, layer.cores[blocks.slots]), torch.zeros_like(low))
        return through @ layer.a, None, None, None


_KNOWN: WeakKeyDictionary[PreTrainedModel, dict[tuple[Any, ...], list[Halves]]] = WeakKeyDictionary()
"""The halves of the models in memory, by rank and state of the weights."""


def _halves_of(model: PreTrainedModel, targets: Sequence[Target], rank: int) -> list[Halves]:
    """The halves of each target layer, computed once for a model and a rank; big ones are kept in the cache folder.

    ConfigError for a rank above a layer's own, or a layer whose weight is quantized.
    """
    weights = [_weight_of(model, target, rank) for target in targets]
    state = (rank, *((weight.data_ptr(), weight._version, weight.shape) for weight in weights))
    known = _KNOWN.setdefault(model, {})
    if state not in known:
        big = sum(weight.numel() for weight in weights) >= _KEPT_FROM
        known.clear()
        rounded = [weight.to(torch.bfloat16) for weight in weights]
        known[state] = _kept(rounded, rank) if big else [_halves(weight, rank) for weight in rounded]
    return known[state]


def _weight_of(model: PreTrainedModel, target: Target, rank: int) -> torch.Tensor:
    """A layer's weight [O, I]."""
    layer = model.get_submodule(target.name)
    weight: torch.Tensor = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()
    if not weight.is_floating_point():
        raise ConfigError(f"{target.name} is quantized, LoRA-XS needs its weight", fix="use --kind lora")
    if rank > min(weight.shape):
        raise ConfigError(f"{target.name} has rank {min(weight.shape)} at most", fix="choose a smaller rank")
    return weight


def _kept(weights: Sequence[torch.Tensor], rank: int) -> list[Halves]:
    """The halves from the cache folder, or made and put there."""
    digest = hashlib.sha256(f"2 {rank}".encode())
    for weight in weights:
        digest.update(weight.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    place = cache_folder() / "lora-xs" / f"{digest.hexdigest()[:32]}.safetensors"
    device = weights[0].device
    try:
        found = load_file(place)
        return [(found[f"{n}.a"].to(device), found[f"{n}.b"].to(device)) for n in range(len(weights))]
    except (OSError, SafetensorError, KeyError):
        pass  # none, or damaged: decompose the weights
    made = [_halves(weight, rank) for weight in weights]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = place.with_suffix(f".{os.getpid()}")
        tensors = {f"{n}.{name}": half for n, (a, b) in enumerate(made) for name, half in (("a", a), ("b", b))}
        save_file({name: half.cpu() for name, half in tensors.items()}, work)
        os.replace(work, place)
    except OSError:
        pass  # a cache that cannot be written costs the decomposition each time, nothing else
    return made


def _halves(weight: torch.Tensor, rank: int) -> Halves:
    """A [R, I] = S V^T and B [O, R] = U of a weight [O, I]; in float64 and with signs fixed, so the same everywhere."""
    w = weight.to("cpu" if weight.device.type == "mps" else weight.device, torch.float64)
    is_wide = w.shape[0] < w.shape[1]
    small = w @ w.T if is_wide else w.T @ w  # its eigenvectors are the singular vectors of the smaller side
    values, vectors = torch.linalg.eigh(small)
    vectors = vectors[:, -rank:].flip(1)
    sizes = values[-rank:].flip(0).clamp(min=0).sqrt()
    others = (w.T if is_wide else w) @ vectors / sizes.clamp(min=torch.finfo(torch.float64).tiny)
    u, v = (vectors, others) if is_wide else (others, vectors)
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    halves = (v * signs * sizes).T, u * signs
    a, b = (half.to(weight.device, torch.float32).contiguous() for half in halves)
    return a, b
