"""How many floating point operations a LoRA step needs, and how many a second this machine's matrix products reach.

Needed are (a multiply and an add are two), for every distinct token of a batch, shared beginnings counted once:

- in the layers four for each parameter: two forward, two for the gradient of the input; of the last layer's
  feedforward for the tokens that predict an answer alone;
- in attention 12 for each token that it sees, in each layer, and each number of a query: two products forward, four
  backward;
- in the head four for each of its weights, for the tokens that predict an answer alone.

The modules' own products, a hundredth of these, norms, rotations and what else is done number by number are left out.
"""

import time
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from oppu.model.base import Base
from oppu.model.memory import useful_tokens
from oppu.model.packing import pack
from oppu.model.tokens import Encoded
from oppu.model.workers import workers_for


def needed(base: Base, batches: Iterable[Sequence[Encoded]]) -> tuple[int, int]:
    """Distinct tokens of all batches, and the operations that a step on each of them needs."""
    config = base.model.config
    sizes = {name: parameter.numel() for name, parameter in base.model.named_parameters()}
    last = f".layers.{config.num_hidden_layers - 1}.mlp."
    feedforward = sum(size for name, size in sizes.items() if last in name)
    layers = sum(size for name, size in sizes.items() if ".layers." in name) - feedforward
    head = config.vocab_size * config.hidden_size
    query = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    tokens = operations = 0
    for batch in batches:
        row = pack([example.tokens[:-1] for example in batch])
        seen = sum(row.positions) + len(row)  # by each token: those before it in its own sequence, and itself
        asked = len({at for e, path in zip(batch, row.paths, strict=True) for at in path[e.answer_start - 1 :]})
        tokens += len(row)
        operations += 4 * (layers * len(row) + (feedforward + head) * asked)
        operations += 12 * config.num_hidden_layers * query * seen
    return tokens, operations


def machine_rate(base: Base, seconds: float = 2.0) -> float:
    """GFLOP/s of the base's own linear layers on [tokens of a pass, in], forward and backward.

    The best of two ways: each product spread over all cores, or a product on each core.
    """
    weights = [m.weight for name, m in base.model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name]

    @torch.inference_mode()
    def multiply(rows: int) -> float:
        inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(w) for w in weights}
        outputs = {w.shape[0]: torch.randn(rows, w.shape[0]).to(w) for w in weights}
        wait(base.device)
        done, started = 0.0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for weight in weights:
                inputs[weight.shape[1]] @ weight.T
                outputs[weight.shape[0]] @ weight
                done += 4 * rows * weight.numel()
            wait(base.device)
        return done / (time.perf_counter() - started) / 1e9

    with workers_for(base.device) as workers:
        tokens = useful_tokens(base.device, workers.count)
        multiply(tokens)
        rates = [multiply(tokens), sum(workers.map(multiply, [tokens // workers.count] * workers.count))]
    return max(rates)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
