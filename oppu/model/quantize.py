"""A base with weights of 8 or 4 bits: bitsandbytes holds and packs them, the arithmetic is that of the plain base.

Only weights are rounded, once, when they are loaded. bitsandbytes' own 8-bit product rounds the activations as well, by
what else is in the batch: a user's numbers would then depend on the neighbours. See docs/decisions/0015.
"""

import hashlib
import importlib.util
import json
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from oppu.errors import ConfigError, ModelError

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    # one scale per row of a matrix
    "8bit": {"load_in_8bit": True},
    # NF4 in blocks of 64, whose scales are rounded, too (QLoRA, arXiv 2305.14314)
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
"""By the name in options: settings of transformers' BitsAndBytesConfig."""

_LIBRARY = "bitsandbytes"


def check_quantization(quantize: str) -> None:
    """ConfigError for an unknown kind of quantization, or where the library for it is not installed."""
    if quantize not in QUANTIZATIONS:
        known = " or ".join(QUANTIZATIONS)
        raise ConfigError(f"unknown quantization '{quantize}'", where="--quantize", fix=f"use {known}")
    if importlib.util.find_spec(_LIBRARY) is None:
        raise ConfigError(
            f"it needs {_LIBRARY}, which is not installed", where="--quantize", fix="run `pip install 'oppu[quantize]'`"
        )


def quantization_config(quantize: str, dtype: torch.dtype) -> Any:
    """What transformers loads the weights by; the products are computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    settings = QUANTIZATIONS[quantize]
    return BitsAndBytesConfig(**settings, **({"bnb_4bit_compute_dtype": dtype} if quantize == "4bit" else {}))


def quantized_fingerprint(fingerprint: str, quantize: str) -> str:
    """The fingerprint of a base whose full weights have `fingerprint`, rounded when they were loaded."""
    return hashlib.sha256(f"{fingerprint} {json.dumps(QUANTIZATIONS[quantize], sort_keys=True)}".encode()).hexdigest()


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the model's linear layers hold other than plain weights."""
    return getattr(model.config, "quantization_config", None) is not None


def check_mergeable(model: PreTrainedModel, where: str = "") -> None:
    """ModelError for a quantized model."""
    if is_quantized(model):
        raise cannot_merge(where)


def cannot_merge(where: str = "") -> ModelError:
    """What a module adds to rounded weights would be rounded away."""
    return ModelError(
        "a module cannot be merged into a quantized base",
        where=where,
        fix="adapt the base in full precision first, and give --quantize when the adapted base is loaded",
    )


def compute_plainly(model: PreTrainedModel) -> None:
    """Let layers of bitsandbytes, where there are any, round nothing but their weights, in training as in answering."""
    if not is_quantized(model) or importlib.util.find_spec(_LIBRARY) is None:
        return
    import bitsandbytes

    for layer in model.modules():
        if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            if layer.weight.CB is not None:
                layer.init_8bit_state()  # else the first forward does it, which may be one without gradients
            layer.forward = MethodType(_int8_forward, layer)
        elif isinstance(layer, bitsandbytes.nn.Linear4bit):
            # on some CPUs it would pack the weights anew, in a form that has no backward
            layer.support_avx512bf16_for_cpu = False


def let_go_of_files(model: PreTrainedModel) -> None:
    """Copy what was not rounded, on a CPU: as a view of the mapped file it would keep all of that in memory."""
    for weight in model.parameters():
        if weight.is_floating_point() and weight.device.type == "cpu":
            weight.data = weight.data.clone()


def _int8_forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    state: Any = layer.state
    y: torch.Tensor = _Int8Linear.apply(x, state.CB, state.SCB)  # type: ignore[no-untyped-call]
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


class _Int8Linear(torch.autograd.Function):
    """x @ W.T with W = weight * scale / 127; weight [O, I] int8, scale [O]. W is made twice and never kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, _full(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return grad @ _full(weight, scale, grad.dtype), None, None


def _full(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[O, I]; whole numbers up to 127 are exact in every precision, so that only the product is rounded."""
    return weight.to(dtype).mul_(scale.mul(1 / 127)[:, None])
