"""Products over blocks of tokens, which serve on a GPU, give what products span by span give, for every kind."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from test_bank import MIXES, Spans
from test_kinds import CONFIG, OURS, XS
from test_train import difference, jobs

from oppu.model import bank
from oppu.model.base import Base, make_base
from oppu.model.blocks import Blocks, blocks_of
from oppu.model.kinds import ModuleConfig, ia3, lora, lora_xs
from oppu.model.kinds.lora import LoraConfig
from oppu.model.kinds.lora_xs import LoraXsConfig
from oppu.train import Machine, TrainConfig, train

CPU = torch.device("cpu")
IN, OUT, RANK = 10, 7, 4
RANKS = (4, 2, 3)
"""Of the three slots."""
ALPHAS = (4.0, 8.0, 1.5)
LONG: dict[str, Spans] = {
    **MIXES,
    "longer than a block": ((0, 0, 150), (1, 150, 153), (0, 153, 217), (-1, 217, 230), (2, 230, 359)),
}
MIX = pytest.mark.parametrize("mix", LONG)

Product = Callable[[torch.Tensor, Spans, Blocks | None], torch.Tensor]


@dataclass
class Made:
    """A layer's product of x [T, D], and the gradients [U, ...] that its backward adds to."""

    product: Product
    width: int
    grads: tuple[torch.Tensor, ...]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def strided(*shape: int) -> torch.Tensor:
    """Zeros [U, ...] that lie in lines of a wider matrix, as a bank's do."""
    return torch.zeros(shape[0], 5 + int(torch.tensor(shape[1:]).prod()), dtype=torch.float64)[:, 5:].view(shape)


def cornered(values: torch.Tensor, *dims: int) -> torch.Tensor:
    """Zero beyond each slot's own rank in these dimensions."""
    for slot, rank in enumerate(RANKS):
        for dim in dims:
            values[slot].narrow(dim, rank, RANK - rank).zero_()
    return values


def scales() -> torch.Tensor:
    return torch.tensor([alpha / rank for alpha, rank in zip(ALPHAS, RANKS, strict=True)], dtype=torch.float64)


def made_lora() -> Made:
    a, b = cornered(random(3, RANK, IN, seed=1), 0), cornered(random(3, OUT, RANK, seed=2), 1)
    grads = strided(3, RANK, IN), strided(3, OUT, RANK)
    configs = [LoraConfig(rank, alpha) for rank, alpha in zip(RANKS, ALPHAS, strict=True)]
    layer = lora._Layer(a, b, *grads, configs, scales())
    return Made(lambda x, spans, blocks: lora._delta(x, anchor(), layer, spans, blocks), IN, grads)


def made_lora_xs() -> Made:
    cores, grads = cornered(random(3, RANK, RANK, seed=3), 0, 1), strided(3, RANK, RANK)
    configs = [LoraXsConfig(rank, alpha) for rank, alpha in zip(RANKS, ALPHAS, strict=True)]
    halves = random(RANK, IN, seed=4), random(OUT, RANK, seed=5)
    layer = lora_xs._Layer(*halves, cores, grads, configs, scales(), torch.tensor(RANKS))
    return Made(lambda x, spans, blocks: lora_xs._delta(x, anchor(), layer, spans, blocks), IN, (grads,))


def made_ia3() -> Made:
    values, grads = random(3, IN, seed=6), strided(3, IN)
    return Made(lambda x, spans, blocks: ia3._scaled(x, anchor(), values, grads, spans, blocks), IN, (grads,))


MADE = {"lora": made_lora, "lora-xs": made_lora_xs, "ia3": made_ia3}
KIND = pytest.mark.parametrize("kind", MADE)


def anchor() -> torch.Tensor:
    return torch.zeros(1, requires_grad=True)


def outcome(made: Made, x: torch.Tensor, spans: Spans, *, stacked: bool) -> list[torch.Tensor]:
    """The product, and all gradients of a weighted sum of it, added twice as over two passes."""
    x = x.clone().requires_grad_()
    blocks = blocks_of(spans, CPU) if stacked else None
    for _ in range(2):
        y = made.product(x, spans, blocks)
        (y * random(*y.shape, seed=9)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *made.grads]


@KIND
@MIX
def test_blocks_give_values_and_gradients_of_the_spans(kind: str, mix: str) -> None:
    spans = LONG[mix]
    x = random(spans[-1][2], IN, seed=8)
    expected = outcome(MADE[kind](), x, spans, stacked=False)
    found = outcome(MADE[kind](), x, spans, stacked=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
    if mix != "empty":
        assert all(part.abs().max() > 0.01 for part in expected)


@KIND
def test_what_is_beyond_a_modules_own_rank_gets_no_gradient(kind: str) -> None:
    made, spans = MADE[kind](), LONG["longer than a block"]
    outcome(made, random(spans[-1][2], IN), spans, stacked=True)
    for grads in made.grads:
        inside = grads.abs().sum()
        dims = [dim for dim in range(grads.dim() - 1) if grads.shape[dim + 1] == RANK]
        assert inside == cornered(grads.clone(), *dims).abs().sum() > 0


@KIND
def test_a_neighbour_that_diverges_reaches_nobody(kind: str) -> None:
    made, spans = MADE[kind](), LONG["longer than a block"]
    x = random(spans[-1][2], IN, seed=8)
    expected = [part.clone() for part in outcome(MADE[kind](), x, spans, stacked=True)]
    x[150:153] = float("nan")
    y, grad_x, *grads = outcome(made, x, spans, stacked=True)
    others = torch.tensor([not 150 <= token < 153 for token in range(len(x))])
    torch.testing.assert_close(y[others], expected[0][others], rtol=0, atol=0)
    torch.testing.assert_close(grad_x[others], expected[1][others], rtol=0, atol=0)
    for found, known in zip(grads, expected[2:], strict=True):
        torch.testing.assert_close(found[[0, 2]], known[[0, 2]], rtol=0, atol=0)
        assert found[1].isnan().any()


@MIX
def test_blocks_hold_every_token_with_a_module_once_and_no_neighbours(mix: str) -> None:
    spans = LONG[mix]
    blocks = blocks_of(spans, CPU)
    owner = {token: slot for slot, start, end in spans for token in range(start, end)}
    assert blocks.tokens.tolist() == [token for token, slot in sorted(owner.items()) if slot >= 0]
    assert blocks.index.flatten()[blocks.places].tolist() == blocks.tokens.tolist()
    assert int(blocks.filled.sum()) == len(blocks.tokens)
    for slot, tokens in zip(blocks.slots.tolist(), blocks.index.tolist(), strict=True):
        assert {owner[token] for token in tokens} == {slot}
    assert blocks.index.shape[1] <= 64


@pytest.mark.parametrize("kind", [*OURS, "lora-xs", "mixed ranks", "dropout"])
def test_training_with_stacked_products_gives_the_same_modules(
    base: Base, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[ModuleConfig | None] = [None, None, None]
    module = {**OURS, "lora-xs": XS, "mixed ranks": XS, "dropout": LoraConfig(4, dropout=0.2)}[kind]
    if kind == "mixed ranks":
        shapes = [XS, replace(XS, rank=2), replace(XS, rank=3, alpha=1)]
    found = [modules(base, replace(CONFIG, module=module), shapes)]
    monkeypatch.setattr(bank, "stacks_on", lambda device: True)
    monkeypatch.setattr("oppu.model.kinds.kind.blocks_of", counted := Counted())
    found.append(modules(base, replace(CONFIG, module=module), shapes))
    assert (counted.calls > 0) == (kind != "prompt")
    for user, tensors in found[0].items():
        assert difference(found[1][user], tensors) < 1e-5


class Counted:
    """How often blocks were asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, spans: Spans, device: torch.device) -> Blocks:
        self.calls += 1
        return blocks_of(spans, device)


def modules(base: Base, config: TrainConfig, shapes: list[ModuleConfig | None]) -> dict[str, dict[str, torch.Tensor]]:
    company = jobs(["long", "medium", "short"])
    given = [replace(job, module=shape) for job, shape in zip(company, shapes, strict=True)]
    return {t.user_id: dict(t.module.tensors) for t in train(base, given, config, Machine(slots=3))}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [*OURS, "lora-xs"])
def test_on_cuda_users_trained_together_get_the_modules_of_the_cpu(kind: str) -> None:
    assert bank.stacks_on(torch.device("cuda"))
    config = replace(CONFIG, module={**OURS, "lora-xs": XS}[kind])
    bases = [make_base("tiny", tiny_model().to(device), tiny_tokenizer()) for device in ("cpu", "cuda")]
    here, there = (modules(base, config, [None, None, None]) for base in bases)
    for user, tensors in here.items():
        assert difference(there[user], tensors) < 1e-3
