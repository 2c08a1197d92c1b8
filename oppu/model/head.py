"""The head of a language model at the answers' positions alone, a few positions at a time.

The logits of all positions at once would be by far the largest tensor of a pass where every position is an answer. Here
they live for one chunk; for the backward pass the gradient with respect to the hidden states is kept in their place:

    log p(t | h) = h @ W[t] - logsumexp(h @ W.T)        its gradient: W[t] - softmax(h @ W.T) @ W

Glossary: M positions, P pairs of a position and a target, D hidden size, V vocabulary.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""Float32 logits at a time; what fits a processor's cache is fastest there."""


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The model's head, where its logits are what this linear layer makes of the body's output, and no more.

    None where the model scales, caps or computes them otherwise, or its head is quantized. Found out once by trying.
    """
    if model not in _PLAIN:
        _PLAIN[model] = _is_plain(model)
    head: nn.Linear | None = model.get_output_embeddings() if _PLAIN[model] else None
    return head


_PLAIN: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.inference_mode()
def _is_plain(model: PreTrainedModel) -> bool:
    head, body = model.get_output_embeddings(), model.base_model
    if body is model or not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        return False
    tokens = torch.tensor([[0, 1, 2, 3]], device=model.device)
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
        by_hand = head(body(input_ids=tokens, use_cache=False).last_hidden_state)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return torch.equal(logits, by_hand)


def chosen_log_probs(hidden: torch.Tensor, head: nn.Linear, which: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p of token targets[i] at position which[i], [P] float32, for hidden states [M, D], differentiable in them."""
    found: torch.Tensor = _ChosenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, which, targets
    )
    return found


class _ChosenLogProbs(torch.autograd.Function):
    """See the formula above; `mean` [M, D] is softmax @ W, the weights' mean under the model's own distribution."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        which: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        size = max(1, CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cpu"]) // (4 * weight.shape[0]))
        found = hidden.new_empty(len(targets), dtype=torch.float32)
        mean = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        order = which.argsort()
        ends = torch.bincount(which, minlength=len(hidden)).cumsum(0).tolist()
        for start in range(0, len(hidden), size):
            end = min(start + size, len(hidden))
            pairs = order[ends[start - 1] if start else 0 : ends[end - 1]]
            logits = F.linear(hidden[start:end], weight, bias).float()
            norms = logits.logsumexp(-1, keepdim=True)
            found[pairs] = logits[which[pairs] - start, targets[pairs]] - norms[which[pairs] - start, 0]
            if mean is not None:
                torch.mm(logits.sub_(norms).exp_().to(weight.dtype), weight, out=mean[start:end])
        if mean is not None:
            ctx.save_for_backward(mean, weight, which, targets)
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        mean, weight, which, targets = ctx.saved_tensors
        pairs = (weight[targets] - mean[which]).mul_(grad[:, None].to(mean.dtype))
        return torch.zeros_like(mean).index_add_(0, which, pairs), None, None, None, None
