"""The modules' small products of one layer, span by span and in blocks: which is faster where?

One linear layer of SmolLM2-135M's size (576 -> 576) with LoRA of rank 8; T tokens of a pass belong to U users in spans
of unequal length. Timed are forward and backward of the layer with its bank attached, less those of the layer alone;
the median of the repeats counts, both forms by turns. One user alone is always computed span by span.

    OMP_NUM_THREADS=1 python benchmarks/products.py
    python benchmarks/products.py --device cuda --tokens 32768 --users 1,8,64,512
"""

import argparse
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from oppu.model.attention import use_layout
from oppu.model.bank import Bank
from oppu.model.kinds import LoraConfig

LAYER = "model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Spread:
    """A layout of spans alone: one layer has no attention."""

    spans: tuple[tuple[int, int, int], ...]
    longest: int = 0

    def attend(self, *_: Any) -> torch.Tensor:
        raise NotImplementedError


def spans_of(tokens: int, users: int) -> tuple[tuple[int, int, int], ...]:
    """A span for each user; the longest is some three times the shortest."""
    weights = [1 + 2 * (user * 7 % users) / users for user in range(users)]
    ends = [round(tokens * sum(weights[: user + 1]) / sum(weights)) for user in range(users)]
    return tuple(zip(range(users), [0, *ends], ends, strict=False))


def seconds(model: Any, bank: Bank | None, spans: tuple[tuple[int, int, int], ...], x: torch.Tensor) -> float:
    """One forward and backward of the layer."""
    layer = model.get_submodule(LAYER)
    with ExitStack() as stack:
        if bank is not None:
            stack.enter_context(bank.attach())
        stack.enter_context(use_layout(Spread(spans)))
        started = now(x)
        layer(x).sum().backward()
        return now(x) - started


def now(x: torch.Tensor) -> float:
    """CPU time, which other work on the machine disturbs less; on CUDA the clock, when all that was asked is done."""
    if x.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(x.device)
    return time.perf_counter()


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", default="512,2048", help="of a pass")
    parser.add_argument("--users", default="1,8,64", help="in a pass")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    sizes = {"hidden_size": 576, "num_attention_heads": 9, "intermediate_size": 1536, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).requires_grad_(False).to(given.device)
    print("tokens  users  layer alone ms  modules span by span ms  in blocks ms  ratio")
    for tokens in map(int, given.tokens.split(",")):
        x = torch.randn(1, tokens, 576, device=given.device, requires_grad=True)
        for users in map(int, given.users.split(",")):
            spans = spans_of(tokens, users)
            banks: dict[str, Bank | None] = {"alone": None}
            for stacked in (False, True):
                bank = banks[str(stacked)] = Bank(model, LoraConfig(given.rank, given.rank), users, stacked=stacked)
                for slot in range(users):
                    bank.reset(slot, seed=slot)
            taken: dict[str, list[float]] = {name: [] for name in banks}
            for repeat in range(given.repeats + 3):
                for name, bank in banks.items():
                    found = seconds(model, bank, spans, x)
                    if repeat >= 3:  # the first ones prepare
                        taken[name].append(found)
            alone, loop, blocks = (1e3 * statistics.median(listed) for listed in taken.values())
            ratio = (loop - alone) / (blocks - alone)
            print(f"{tokens:6}  {users:5}  {alone:14.2f}  {loop - alone:23.2f}  {blocks - alone:12.2f}  {ratio:5.2f}")


if __name__ == "__main__":
    main()
