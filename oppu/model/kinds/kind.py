"""What a kind of module must say about itself; everything else about it is the bank's business.

Glossary: U slots, P parameters of a module, T tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from oppu.errors import ConfigError, ModelError
from oppu.model.attention import Layout
from oppu.model.blocks import Blocks, blocks_of
from oppu.model.module import Module, Shape, is_float32

PREFIX = "base_model.model."
"""What PEFT puts before the name of a layer."""


@dataclass(frozen=True, slots=True)
class ModuleConfig:
    """Kind and shape of a module; every kind has one of its own, with the shape in its fields."""

    peft_type: ClassVar[str]
    """What adapter_config.json calls the kind."""

    @property
    def kind(self) -> str:
        """The name in options."""
        raise NotImplementedError

    @property
    def targets(self) -> tuple[str, ...] | None:
        """Endings of the names of the layers that are adapted; None: the kind's usual ones, or none at all."""
        return None

    @property
    def dropout(self) -> float:
        """Share of a module's inputs dropped in training."""
        return 0.0

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens stand before a user's text."""
        return 0

    @property
    def rank(self) -> int:
        """Rank of a module; 0: it has none."""
        return 0

    @property
    def scale(self) -> float:
        """What a module's update is multiplied by."""
        return 1.0

    def lay_out(self, model: PreTrainedModel) -> "Kind":
        """The kind for one model; ConfigError where the model has no such layers."""
        raise NotImplementedError

    def holds(self, other: "ModuleConfig") -> bool:
        """Whether a bank for these settings takes in modules of the `other` settings, too."""
        return other == self

    def shaped_as(self, other: "ModuleConfig") -> Self:
        """These settings, with the shape of a module of the `other` settings that `holds` allows."""
        return self

    def of_rank(self, rank: int) -> Self:
        """The same settings with another rank, the update scaled as before; ConfigError where modules have none."""
        if not self.rank:
            raise ConfigError(f"a module of kind '{self.kind}' has no rank", fix="use lora or lora-xs")
        # a whole number where --rank would give one: fingerprints tell 4 from 4.0
        alpha = rank if self.scale == 1 else self.scale * rank
        return replace(self, rank=rank, alpha=alpha)  # type: ignore[call-arg]

    @classmethod
    def of(cls, module: Module) -> Self:
        """The settings of a module of this kind."""
        raise NotImplementedError

    @classmethod
    def misfits_in_file(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
        """What of a module's file cannot be, tensor by tensor, before a value is read.

        Asked of kinds that PEFT does not have; PEFT's own formats are checked in `model/module.py`.
        """
        raise NotImplementedError


class Kind(Protocol):
    """A kind of module, laid out for one base model."""

    size: int
    """P: parameters of one user's module, at most."""

    def views(self, line: torch.Tensor, config: Any) -> dict[str, torch.Tensor]:
        """A user's tensors by PEFT's names, as views of the user's line [P]."""
        ...

    def fresh(self, name: str, view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The tensor `name` of a new module, as large as `view`; leaves the base's output as it is, where it can."""
        ...

    def peft_config(self, config: Any) -> Mapping[str, Any]:
        """What PEFT writes in adapter_config.json for a module of these settings."""
        ...

    def misfits(self, peft_config: Mapping[str, Any]) -> list[str]:
        """Why a module with this adapter_config.json cannot be taken, setting by setting."""
        ...

    def target_names(self) -> tuple[str, ...]:
        """The layers that are adapted, by their names in the model."""
        return ()

    def hooks(self, lines: "Lines") -> list[RemovableHandle]:
        """Plug the bank's modules into the model."""
        ...

    def merge(self, line: torch.Tensor, config: Any) -> None:
        """Add a module into the base's own weights, for good; ConfigError where that cannot be done."""
        ...

    def module(self, line: torch.Tensor, config: Any) -> Module:
        """A copy of the module in a line, as it is stored."""
        copies = {
            name: view.detach().clone(memory_format=torch.contiguous_format).cpu()
            for name, view in self.views(line, config).items()
        }
        return Module(copies, dict(self.peft_config(config)))

    def portable(self, line: torch.Tensor, config: Any) -> Module:
        """A copy of the module in a line, as PEFT loads it."""
        return self.module(line, config)


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """What hooks see of the bank."""

    values: torch.Tensor
    """[U, P], float32."""
    grads: torch.Tensor
    """[U, P]; backward adds to it."""
    anchor: torch.Tensor
    """A parameter of no consequence: where it goes in, autograd comes by."""
    configs: list[Any]
    """The settings of the module in each slot."""
    streams: dict[int, torch.Generator]
    """Random streams for dropout, by slot."""
    scales: torch.Tensor
    """[U]: what the module in each slot is scaled by, where the values lie."""
    ranks: torch.Tensor
    """[U]: its rank."""
    stacked: bool
    """Whether one product serves all users of a pass; else each has its own."""
    on_wipe: list[Callable[[], None]] = field(default_factory=list)
    """Called where a module is wiped: what hooks keep copies in lets go of them."""

    def blocks(self, layout: Layout) -> Blocks | None:
        """The pass in blocks of one slot each; None: there is nothing to stack, or it shall not be."""
        return blocks_of(layout.spans, self.values.device) if self.stacked and len(layout.spans) > 1 else None


@dataclass(frozen=True, slots=True)
class Target:
    """A linear layer of the model that a kind adapts."""

    name: str
    in_features: int
    out_features: int


def find_targets(model: PreTrainedModel, endings: tuple[str, ...], *, strict: bool) -> list[Target]:
    """The linear layers whose names end in one of `endings`, as PEFT matches target_modules; the head is none of them.

    The head works on the answers' positions by itself, so modules on it would be passed by. ConfigError where there are
    none, or, if `strict`, none for one of the endings.
    """
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    found = [
        Target(name, *_features(layer))
        for name, layer in layers.items()
        if any(ends_with(name, ending) for ending in endings)
    ]
    unknown = [ending for ending in endings if not any(ends_with(target.name, ending) for target in found)]
    if unknown and (strict or not found):
        linear = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise ConfigError(f"no linear layer is called {' or '.join(unknown)}", fix=f"use some of: {', '.join(linear)}")
    return found


def ends_with(name: str, ending: str) -> bool:
    """Whether PEFT would take the layer `name` for the target module `ending`."""
    return name == ending or name.endswith(f".{ending}")


def layer_names(model: PreTrainedModel) -> set[str]:
    """The last parts of all layers' names."""
    return {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}


def rank_and_alpha(config: Mapping[str, Any]) -> tuple[int, float]:
    """`r` and `lora_alpha` of an adapter_config.json; ModelError where they are no numbers to scale by."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    wrong = [] if type(rank) is int and rank > 0 else [f"r is {rank}, not a positive whole number"]
    wrong += [] if is_float32(alpha) else [f"lora_alpha is {alpha}, not a finite number of float32's range"]
    if wrong:
        raise ModelError(f"the module does not fit: {'; '.join(wrong)}", fix="restore its config, or train it again")
    return int(rank), float(alpha)  # type: ignore[arg-type]


def is_step(layout: Layout, x: torch.Tensor) -> bool:
    """Whether x [..., I] is a decoding step: as many spans as tokens, and no gradients."""
    return not torch.is_grad_enabled() and len(layout.spans) * x.shape[-1] == x.numel()


def _features(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.weight.shape[0], layer.weight.shape[1]
