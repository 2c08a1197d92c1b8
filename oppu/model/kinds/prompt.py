"""Prompt tuning (arXiv 2104.08691): learnt embeddings before the text, the soft prompt.

Its virtual tokens stand in rows as the ids -n .. -1, at the root of a user's prefix tree, so that they are computed
once per row like any other shared beginning. Glossary: U slots, n virtual tokens, D embedding size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from oppu.errors import ConfigError
from oppu.model.attention import current_layout
from oppu.model.kinds.kind import Kind, Lines, ModuleConfig
from oppu.model.module import Module


@dataclass(frozen=True, slots=True)
class PromptConfig(ModuleConfig):
    """How long the soft prompt is."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"

    virtual_tokens: int = 20
    kind: str = field(default="prompt", init=False)

    def lay_out(self, model: PreTrainedModel) -> "Prompt":
        """See ModuleConfig."""
        return Prompt(model, self)

    @classmethod
    def of(cls, module: Module) -> Self:
        """The settings of a prompt-tuning module."""
        return cls(int(module.config["num_virtual_tokens"]))


class Prompt(Kind):
    """Prompt tuning for one model; see Kind."""

    def __init__(self, model: PreTrainedModel, config: PromptConfig) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._shape = config.virtual_tokens, int(self._embedding.weight.shape[1])
        self.size = self._shape[0] * self._shape[1]

    def views(self, line: torch.Tensor, config: PromptConfig) -> dict[str, torch.Tensor]:
        """See Kind."""
        return {"prompt_embeddings": line.view(self._shape)}

    def fresh(self, name: str, view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Embeddings of random words of the vocabulary: a fresh soft prompt does change the output."""
        weight = self._embedding.weight
        words = torch.randint(weight.shape[0], (view.shape[0],), generator=generator)
        found: torch.Tensor = weight[words.to(weight.device)].detach().float().cpu()
        return found

    def peft_config(self, config: PromptConfig) -> Mapping[str, Any]:
        """See Kind."""
        sizes = self._model.config.get_text_config()
        return {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self._shape[0],
            "token_dim": self._shape[1],
            "num_transformer_submodules": 1,
            "num_attention_heads": sizes.num_attention_heads,
            "num_layers": sizes.num_hidden_layers,
            "prompt_tuning_init": "RANDOM",
            "inference_mode": True,
        }

    def misfits(self, peft_config: Mapping[str, Any]) -> list[str]:
        """See Kind."""
        kind = peft_config.get("peft_type")
        return [] if kind == "PROMPT_TUNING" else [f"peft_type is {kind}, not PROMPT_TUNING"]

    def hooks(self, lines: Lines) -> list[RemovableHandle]:
        """See Kind."""
        values, grads = (part.view(-1, *self._shape) for part in (lines.values, lines.grads))

        def insert(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            layout = current_layout()
            if layout is None or layout.virtual is None:
                return output
            flat = output.reshape(-1, output.shape[-1])
            embedded: torch.Tensor = _SlotEmbed.apply(flat, lines.anchor, values, grads, layout.virtual)  # type: ignore[no-untyped-call]
            return embedded.view(output.shape)

        return [self._embedding.register_forward_hook(insert)]

    def merge(self, line: torch.Tensor, config: PromptConfig) -> None:
        """A soft prompt is no change of weights."""
        raise ConfigError("a soft prompt cannot be merged into a base", fix="adapt the base with LoRA")


class _SlotEmbed(torch.autograd.Function):
    """Puts values[slot, j] at the virtual tokens of [T, D]; backward adds to the slots' own gradients [U, n, D].

    `virtual`: (indices of the tokens, their slots, their j).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        values: torch.Tensor,
        grads: torch.Tensor,
        virtual: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        index, slots, places = virtual
        y = x.clone()
        y[index] = values[slots, places].to(y.dtype)
        ctx.grads, ctx.virtual = grads, virtual
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, ...]:
        index, slots, places = ctx.virtual
        ctx.grads.index_put_((slots, places), grad[index].float(), accumulate=True)
        return None, None, None, None, None
