"""The bank: many users' LoRA modules over one frozen base, one slot per user.

    y[t] += scale * dropout(x[t]) @ a[slot(t)].T @ b[slot(t)].T        slot -1: the plain base

All parameters lie in one matrix [U, P], a user's in one line of it, so that clipping and the optimizer are operations
on lines. Glossary: U slots, P parameters of a user, T tokens, R rank, I/O in/out features.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from oppu.errors import ConfigError, ModelError
from oppu.model.attention import Layout, current_layout
from oppu.model.module import Module
from oppu.model.steps import StepModules, slots_of

_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""What PEFT may have done to a LoRA module that the bank's formula does not know."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Shape of the users' modules; defaults as in the paper (Table 4, appendix A)."""

    rank: int = 8
    alpha: float = 8.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    # differs from the paper: the published code drops 5 % of a module's inputs; 0 makes training exact and faster
    targets: tuple[str, ...] | None = None
    """Endings of the names of linear layers; None: query and value projections."""

    @staticmethod
    def of(module: Module) -> "LoraConfig":
        """The shape of a module that exists; ModelError for one that is no LoRA on named layers."""
        config = module.config
        if config.get("peft_type") != "LORA" or not isinstance(config.get("target_modules"), list):
            kind = f"{config.get('peft_type')} on {config.get('target_modules')}"
            raise ModelError(f"the module is {kind}", fix="use a LoRA module whose target_modules are a list of names")
        return LoraConfig(int(config["r"]), float(config["lora_alpha"]), 0.0, tuple(sorted(config["target_modules"])))


@dataclass(frozen=True, slots=True)
class _Target:
    """One adapted linear layer and where its a [R, I] and b [O, R] lie in a user's line."""

    name: str
    in_features: int
    out_features: int
    start: int


class Bank:
    """The modules of U users over one base model. `attach()` plugs them in; the base itself is never changed."""

    def __init__(self, model: PreTrainedModel, config: LoraConfig, slots: int) -> None:
        self.config = config
        self.slots = slots
        self.scale = config.alpha / config.rank
        self._model = model
        self._targets = _find_targets(model, config)
        size = sum(config.rank * (t.in_features + t.out_features) for t in self._targets)
        device = model.device
        self.values = torch.zeros(slots, size, device=device)
        """[U, P] parameters, float32."""
        self.grads = torch.zeros(slots, size, device=device)
        """[U, P] gradients, summed by backward until `zero_grad`."""
        self._anchor = torch.zeros(1, device=device, requires_grad=True)
        self._dropout: dict[int, torch.Generator] = {}
        self._stacked = StepModules((), -1)

    @property
    def size(self) -> int:
        """P: parameters of one user's module."""
        return self.values.shape[1]

    def reset(self, slot: int, seed: int) -> None:
        """A fresh module as PEFT makes one (a uniform, b zero), and a fresh dropout stream, from the user's seed."""
        generator = torch.Generator().manual_seed(seed)
        for target in self._targets:
            bound = 1 / math.sqrt(target.in_features)  # kaiming_uniform with a = sqrt(5)
            a = torch.rand(self.config.rank, target.in_features, generator=generator)
            self._part(self.values, target, "a")[slot] = (a * 2 - 1).mul_(bound)
            self._part(self.values, target, "b")[slot] = 0
        self.grads[slot] = 0
        self._dropout[slot] = torch.Generator(self.values.device).manual_seed(seed)

    def load(self, slot: int, module: Module) -> None:
        """Put a user's module into a slot; ModelError says what does not fit: the first three points, and how many."""
        problems = self._misfits(module)
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ModelError(
                f"the module does not fit: {'; '.join(problems[:3])}{more}",
                fix="use it with the base, rank and targets that it was trained with",
            )
        for target in self._targets:
            for part, name in zip("ab", self._tensors_of(target), strict=True):
                self._part(self.values, target, part)[slot] = module.tensors[name].to(self.values)

    def _misfits(self, module: Module) -> list[str]:
        """What keeps a module out of this bank: its settings first, then its tensors by name."""
        config, must_be = module.config, self._must_be()
        wrong = [key for key, value in must_be.items() if config.get(key) != value]
        settings = [f"{key} is {config.get(key)}, not {must_be[key]}" for key in wrong]
        settings += [f"{key} is {config[key]}, which is not supported" for key in _UNSUPPORTED if config.get(key)]
        expected = {name: shape for t in self._targets for name, shape in self._tensors_of(t).items()}
        tensors = [f"{name} is missing" for name in expected.keys() - module.tensors.keys()]
        tensors += [f"{name} is not known" for name in module.tensors.keys() - expected.keys()]
        for name in expected.keys() & module.tensors.keys():
            found, shape = tuple(module.tensors[name].shape), expected[name]
            tensors += [f"{name} is {list(found)}, not {list(shape)}"] if found != shape else []
        return settings + sorted(tensors)

    def module(self, slot: int) -> Module:
        """A copy of a slot's module in PEFT's format."""
        tensors = {
            name: self._part(self.values, target, part)[slot].detach().cpu().clone()
            for target in self._targets
            for part, name in zip("ab", self._tensors_of(target), strict=True)
        }
        return Module(tensors, {**self._must_be(), **self._free_config()})

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.grads.zero_()

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Within this context the model's adapted layers add the modules of the current layout's slots."""
        hooks = [
            self._model.get_submodule(target.name).register_forward_hook(self._hook(target)) for target in self._targets
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def merge(self, slot: int) -> None:
        """Add a slot's module into the base's own weights, for good: W += scale * b @ a (section 2.2)."""
        for target in self._targets:
            layer = self._model.get_submodule(target.name)
            delta = self.scale * self._part(self.values, target, "b")[slot] @ self._part(self.values, target, "a")[slot]
            with torch.no_grad():
                layer.weight += (delta.T if isinstance(layer, Conv1D) else delta).to(layer.weight)

    def _hook(self, target: _Target) -> Any:
        values, grads = self.values, self.grads
        lora = _Lora(
            self._part(values, target, "a"),
            self._part(values, target, "b"),
            self._part(grads, target, "a"),
            self._part(grads, target, "b"),
            self.scale,
        )

        def add_delta(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            layout = current_layout()
            if layout is None:
                return output
            x = inputs[0]
            if not torch.is_grad_enabled() and len(layout.spans) * target.in_features == x.numel():
                return self._step(target, layout, x, output)
            flat = self._drop(x, layout).reshape(-1, target.in_features).float()
            delta: torch.Tensor = _SlotLora.apply(flat, self._anchor, lora, layout.spans)  # type: ignore[no-untyped-call]
            return output + delta.to(output.dtype).view(output.shape)

        return add_delta

    def _step(self, target: _Target, layout: Layout, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """A decoding step: as many spans as tokens."""
        version = self.values._version
        stacked = self._stacked
        if not stacked.serves(layout.spans, version):
            stacked = self._stacked = StepModules(tuple(sorted(slots_of(layout.spans))), version)
        if not stacked.slots:
            return output

        def parts(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._part(self.values, target, "a")[slots], self._part(self.values, target, "b")[slots]

        flat = x.reshape(-1, target.in_features).float()
        delta = stacked.delta(target.name, flat, layout.spans, self.scale, parts)
        return output + delta.to(output.dtype).view(output.shape)

    def _drop(self, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Dropout with each user's own random stream, in training only (gradients on)."""
        p = self.config.dropout
        if p == 0 or not torch.is_grad_enabled():
            return x
        flat = x.reshape(-1, x.shape[-1])
        kept = torch.ones_like(flat)
        for slot, start, end in layout.spans:
            if slot >= 0:
                kept[start:end].bernoulli_(1 - p, generator=self._dropout[slot])
        return flat * kept / (1 - p)

    def _part(self, lines: torch.Tensor, target: _Target, part: str) -> torch.Tensor:
        """a [U, R, I] or b [U, O, R] of a target, as a view of [U, P]."""
        rank = self.config.rank
        middle = target.start + rank * target.in_features
        if part == "a":
            return lines[:, target.start : middle].view(self.slots, rank, target.in_features)
        end = middle + target.out_features * rank
        return lines[:, middle:end].view(self.slots, target.out_features, rank)

    def _tensors_of(self, target: _Target) -> dict[str, tuple[int, ...]]:
        rank = self.config.rank
        return {
            f"{_PREFIX}{target.name}.lora_A.weight": (rank, target.in_features),
            f"{_PREFIX}{target.name}.lora_B.weight": (target.out_features, rank),
        }

    def _must_be(self) -> dict[str, Any]:
        return {"peft_type": "LORA", "r": self.config.rank, "lora_alpha": self.config.alpha}

    def _free_config(self) -> dict[str, Any]:
        layers = [self._model.get_submodule(t.name) for t in self._targets]
        return {
            "task_type": "CAUSAL_LM",
            "lora_dropout": self.config.dropout,
            "target_modules": sorted(self.config.targets or {t.name.rsplit(".", 1)[-1] for t in self._targets}),
            "bias": "none",
            "fan_in_fan_out": isinstance(layers[0], Conv1D),
            "inference_mode": True,
        }


@dataclass(frozen=True, slots=True)
class _Lora:
    """One adapted layer's values and gradients, views of the bank's: a [U, R, I], b [U, O, R]."""

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scale: float


class _SlotLora(torch.autograd.Function):
    """scale * x @ a[slot].T @ b[slot].T for spans of tokens [T, I] -> [T, O]; see the module's formula.

    Backward adds to the gradients of the slots in question alone; `anchor` only makes autograd come by.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, lora: _Lora, spans: tuple[tuple[int, int, int], ...]
    ) -> torch.Tensor:
        y = x.new_zeros(x.shape[0], lora.b.shape[1])
        for slot, start, end in spans:
            if slot >= 0:
                torch.mm((x[start:end] @ lora.a[slot].T).mul_(lora.scale), lora.b[slot].T, out=y[start:end])
        ctx.save_for_backward(x)
        ctx.lora, ctx.spans = lora, spans
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        lora: _Lora = ctx.lora
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for slot, start, end in ctx.spans:
            if slot >= 0:
                xs, gs = x[start:end], grad[start:end]
                through = (gs @ lora.b[slot]).mul_(lora.scale)  # [T, R]
                lora.grad_a[slot].addmm_(through.T, xs)
                lora.grad_b[slot].addmm_(gs.T, (xs @ lora.a[slot].T).mul_(lora.scale))
                if grad_x is not None:
                    torch.mm(through, lora.a[slot], out=grad_x[start:end])
        return grad_x, None, None, None


def check_fits(model: PreTrainedModel, module: Module) -> None:
    """ModelError, as from `Bank.load`, for a LoRA module that was made for a model of other layers."""
    Bank(model, LoraConfig.of(module), 1).load(0, module)


def user_seed(seed: int, user_id: str) -> int:
    """The seed of a user's own random streams: the same in every process, whoever the neighbours are."""
    return (seed << 32) + zlib.crc32(user_id.encode())


def _find_targets(model: PreTrainedModel, config: LoraConfig) -> tuple[_Target, ...]:
    endings = config.targets if config.targets is not None else _query_and_value(model)
    targets: list[_Target] = []
    start = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and any(_ends_with(name, ending) for ending in endings):
            weight: Mapping[str, int] = _features(layer)
            targets.append(_Target(name, weight["in"], weight["out"], start))
            start += config.rank * (weight["in"] + weight["out"])
    unknown = [ending for ending in endings if not any(_ends_with(target.name, ending) for target in targets)]
    if unknown and (config.targets is not None or not targets):
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)})
        raise ConfigError(f"no linear layer is called {' or '.join(unknown)}", fix=f"use some of: {', '.join(linear)}")
    return tuple(targets)


def _query_and_value(model: PreTrainedModel) -> tuple[str, ...]:
    """The endings of the query and value projections; where they are called otherwise, what PEFT takes instead."""
    usual = ("q_proj", "v_proj")
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if names.issuperset(usual):
        return usual
    # imported late: it takes two seconds
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    return tuple(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(str(model.config.model_type), usual))


def _ends_with(name: str, ending: str) -> bool:
    """As PEFT matches target_modules."""
    return name == ending or name.endswith(f".{ending}")


def _features(layer: nn.Linear | Conv1D) -> dict[str, int]:
    if isinstance(layer, nn.Linear):
        return {"in": layer.in_features, "out": layer.out_features}
    return {"in": layer.weight.shape[0], "out": layer.weight.shape[1]}
