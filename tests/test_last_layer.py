"""The last feedforward at the answers' positions alone changes no answer and no gradient."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, toy_examples
from torch import nn

from oppu.model import last_layer
from oppu.model.bank import Bank
from oppu.model.base import make_base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import Ia3Config, LoraConfig, ModuleConfig

PLAIN = LoraConfig(rank=2)
INSIDE = LoraConfig(rank=2, targets=("q_proj", "up_proj"))


@contextmanager
def tokens_of_each_feedforward(model: nn.Module) -> Iterator[list[int]]:
    """How many tokens each layer's feedforward is given, in order."""
    seen: list[int] = []
    hooks = [
        module.act_fn.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
        for name, module in model.named_modules()
        if name.endswith("mlp")
    ]
    inside, last_layer._inside = last_layer._inside, lambda block: (p for p in inside(block) if p is not block.act_fn)
    try:
        yield seen
    finally:
        last_layer._inside = inside
        for hook in hooks:
            hook.remove()


def learnt(config: ModuleConfig) -> tuple[torch.Tensor, torch.Tensor, list[int], int, int]:
    """Log-probabilities, gradients, tokens that each feedforward saw, all tokens, and those that predict an answer."""
    model = make_base("tiny", tiny_model(), tiny_tokenizer()).model
    bank = Bank(model, config, 2)
    for slot in (0, 1):
        bank.reset(slot, slot)
        bank.values[slot].add_(torch.randn(bank.size, generator=torch.Generator().manual_seed(slot)) * 0.05)
    rows = [row for slot in (0, 1) for row in rows_of(slot, toy_examples(5, seed=slot), 10_000)]
    with bank.attach(), tokens_of_each_feedforward(model) as seen:
        found = answer_log_probs(model, rows)
        found.sum().backward()
    positions = {
        (n, place)
        for n, row in enumerate(rows)
        for e, path in zip(row.examples, row.row.paths, strict=True)
        for place in path[e.answer_start - 1 :]
    }
    return found.detach(), bank.grads.clone(), seen[-2:], sum(len(row.row) for row in rows), len(positions)


@pytest.mark.parametrize("config", [PLAIN, INSIDE, Ia3Config()])
def test_answers_and_gradients_are_those_of_all_positions(
    config: ModuleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, grads, seen, tokens, answers = learnt(config)
    monkeypatch.setattr(last_layer, "_can_be_cut", lambda _: False)
    whole, all_grads, seen_whole, _, _ = learnt(config)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grads, all_grads, atol=1e-6, rtol=1e-4)
    assert seen_whole == [tokens, tokens]
    assert seen == [tokens, answers if config == PLAIN else tokens]
    assert answers < tokens / 2


class Mixing(nn.Module):
    """A feedforward that looks at its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up_proj(x) + x.mean(1, keepdim=True)


@pytest.mark.parametrize("inside", [False, True])
def test_a_model_whose_feedforward_looks_at_its_neighbours_is_left_as_it_is(inside: bool) -> None:
    model, block = tiny_model(), Mixing()
    model.model.layers[-1].mlp = block
    if inside:  # a module that is no hindrance to trying
        block.up_proj.register_forward_hook(lambda *_: None)
    assert not last_layer._can_be_cut(model)
    assert not block._forward_hooks
    assert not block._forward_pre_hooks
    assert last_layer._can_be_cut(tiny_model())


def test_elsewhere_the_whole_sequence_goes_through() -> None:
    model = tiny_model()
    tokens = torch.arange(6)[None]
    before = model(input_ids=tokens).logits
    assert last_layer._can_be_cut(model)
    assert torch.equal(model(input_ids=tokens).logits, before)
