"""The head in chunks: values and gradients are those of the whole logits; a head that is not plain is left alone."""

import pytest
import torch
from conftest import tiny_model, toy_examples
from transformers import AutoModelForCausalLM, Gemma2Config

from oppu.model import head
from oppu.model.base import Base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.head import chosen_log_probs, plain_head


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_the_whole_logits(
    monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool
) -> None:
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", rows * 4 * 50)
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 50, bias=bias).requires_grad_(False)
    hidden = torch.randn(7, 16, requires_grad=True)
    which = torch.tensor([5, 0, 0, 2, 6, 5, 3, 3, 3])  # position 1 and 4 have no target
    targets = torch.randint(50, (9,))
    weights = torch.rand(9)
    whole = linear(hidden).log_softmax(-1)[which, targets]
    (expected,) = torch.autograd.grad((whole * weights).sum(), hidden)
    found = chosen_log_probs(hidden, linear, which, targets)
    torch.testing.assert_close(found, whole)
    (grad,) = torch.autograd.grad((found * weights).sum(), hidden)
    torch.testing.assert_close(grad, expected)


def test_the_logits_of_all_positions_are_never_there_at_once(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 4 * 4 * base.model.config.vocab_size)
    sizes = []
    logsumexp = torch.Tensor.logsumexp
    monkeypatch.setattr(
        torch.Tensor, "logsumexp", lambda self, *a, **k: sizes.append(len(self)) or logsumexp(self, *a, **k)
    )
    answer_log_probs(base.model, list(rows_of(-1, toy_examples(6, seed=3), 10_000)))
    assert max(sizes) == 4
    assert len(sizes) > 1


def test_a_head_behind_which_the_model_computes_on_is_not_taken_for_plain() -> None:
    assert plain_head(tiny_model()) is not None
    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0, attn_logit_softcapping=None,
    )  # fmt: skip
    assert plain_head(AutoModelForCausalLM.from_config(config).eval()) is None
