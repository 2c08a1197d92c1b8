"""What is made again in the backward pass is what would have been kept, bit by bit, and less is kept."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, toy_examples
from test_packing import ARCHITECTURES, two_of
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import flex_attention
from transformers import PreTrainedConfig, PreTrainedModel

from oppu.model.bank import Bank
from oppu.model.base import make_base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import Ia3Config, LoraConfig, LoraXsConfig, ModuleConfig, PromptConfig
from oppu.model.recompute import note_output, recomputing

EVERYWHERE = LoraConfig(rank=2, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


class Kept:
    """The bytes of each memory that autograd keeps."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def note(self, tensor: torch.Tensor) -> None:
        self.bytes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.note(tensor)
        return tensor


def learnt(model: PreTrainedModel, config: ModuleConfig, *, again: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Log-probabilities, gradients, and the bytes that were kept for them."""
    bank = Bank(model, config, 2)
    for slot in (0, 1):
        bank.reset(slot, slot)
        bank.values[slot].add_(torch.randn(bank.size, generator=torch.Generator().manual_seed(slot)) * 0.05)
    examples = [[e.after_virtual(config.virtual_tokens) for e in toy_examples(5, seed=slot)] for slot in (0, 1)]
    rows = [row for slot in (0, 1) for row in rows_of(slot, examples[slot], 10_000)]
    kept = Kept()
    counting = recomputing(model, kept.note) if again else saved_tensors_hooks(kept.keep, lambda tensor: tensor)
    with bank.attach():
        with counting:
            found = answer_log_probs(model, rows)
        found.sum().backward()
    return found.detach(), bank.grads.clone(), sum(kept.bytes.values())


def compared(make: Callable[[], PreTrainedModel], config: ModuleConfig) -> float:
    """The share of the bytes that is still kept, after a check that nothing else differs."""
    found, grads, some = learnt(make(), config, again=True)
    plain, plain_grads, all_of_them = learnt(make(), config, again=False)
    assert torch.equal(found, plain)
    assert torch.equal(grads, plain_grads)
    assert grads.abs().max() > 0
    return some / all_of_them


@pytest.mark.parametrize(
    "config", [LoraConfig(rank=2), EVERYWHERE, LoraConfig(rank=2, dropout=0.5), LoraXsConfig(rank=2), PromptConfig(3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradients_are_the_same_bits(config: ModuleConfig, dtype: torch.dtype) -> None:
    assert compared(lambda: make_base("tiny", tiny_model().to(dtype), tiny_tokenizer()).model, config) < 0.95


def test_ia3_keeps_what_it_scales() -> None:
    compared(lambda: make_base("tiny", tiny_model(), tiny_tokenizer()).model, Ia3Config())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_kind_of_model_learns_the_same(name: str) -> None:
    architecture: PreTrainedConfig = ARCHITECTURES[name]
    assert compared(lambda: make_base(name, two_of(architecture)[0], tiny_tokenizer()).model, LoraConfig(rank=2)) <= 1


class Writing(nn.Module):
    """Of a norm, an activation function, and someone who writes into their outputs, or keeps a part."""

    def __init__(self, then: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.norm, self.act_fn, self.then = nn.LayerNorm(8), nn.SiLU(), then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.then(self.norm(self.act_fn(x)))


@pytest.mark.parametrize(
    "then",
    [
        lambda made: made.mul_(3).square(),
        lambda made: made[:2].square().sum() + made[2:].exp().sum(),
        lambda made: made.T.square(),
        lambda made: made.view(-1).square(),
        lambda made: made.double().square(),
    ],
)
def test_an_output_that_was_changed_or_cut_is_kept_as_it_is(then: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = Writing(then)
    grads = []
    for context in (nullcontext(), recomputing(model)):  # type: ignore[arg-type]
        x = torch.linspace(-2, 2, 32).view(4, 8).requires_grad_()
        with context:
            found = model(x)
        found.sum().backward()
        grads.append(x.grad)
    assert torch.equal(grads[0], grads[1])


def test_memory_that_was_let_go_of_and_used_again_is_not_mistaken() -> None:
    model = Writing(lambda made: made)
    with recomputing(model):  # type: ignore[arg-type]
        for _ in range(50):  # the outputs die at once, and their addresses are given to others
            model(torch.randn(4, 8, requires_grad=True))
            other = torch.randn(4, 8, requires_grad=True)
            squares = (other * 2).square()
            (found,) = torch.autograd.grad(squares.sum(), other)
            assert torch.equal(found, 8 * other)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_compiled_attention_as_on_cuda_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a graph is traced its tensors have no memory to be known by."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # on a CPU there is no kernel
    attend = torch.compile(flex_attention.flex_attention, backend="aot_eager", dynamic=True)
    model = nn.Sequential(nn.LayerNorm(16))
    for tokens in (130, 200):
        mask = flex_attention.create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device="cpu")
        grads = []
        for context in (nullcontext(), recomputing(model)):  # type: ignore[arg-type]
            x = torch.linspace(-2, 2, 32 * tokens).view(1, 2, tokens, 16).requires_grad_()
            with context:
                made = model(x)
                found = attend(made, made, made, block_mask=mask)
            found.square().sum().backward()  # type: ignore[union-attr]
            grads.append(x.grad)
        assert torch.equal(grads[0], grads[1])


def test_the_hooks_are_set_once_and_do_nothing_elsewhere() -> None:
    model = tiny_model()
    tokens = torch.arange(6)[None]
    before = model(input_ids=tokens).logits
    for _ in range(3):
        with recomputing(model):
            pass
    assert torch.equal(model(input_ids=tokens).logits, before)
    assert [list(module._forward_hooks.values()) for module in model.modules() if module._forward_hooks] == [
        [note_output]
    ] * 7  # two layers' two norms and activation function, and the last norm
