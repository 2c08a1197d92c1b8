"""FlexAttention, which CUDA uses, gives what the blocks give; here in its plain form on the CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oppu.model import attention
from oppu.model.attention import PackedLayout
from oppu.model.flex import BLOCK, TreeAttention, _Finite, _FiniteGradient, tree_mask
from oppu.model.packing import pack

CPU = torch.device("cpu")
SEQUENCE = st.lists(st.integers(0, 2), min_size=1, max_size=200)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(SEQUENCE, min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 9))
@torch.no_grad()  # on the CPU it has no backward
def test_attention_is_that_of_the_blocks(batches: list[list[list[int]]], seed: int) -> None:
    rows = [pack(sequences) for sequences in batches]
    torch.manual_seed(seed)
    tokens = sum(len(row) for row in rows)
    query, key, value = (torch.randn(1, heads, tokens, 16) for heads in (4, 2, 2))
    layout = PackedLayout(rows, [0] * len(rows), CPU, torch.float32)
    expected = layout.attend(0, query, key, value, 0.3)
    torch.testing.assert_close(TreeAttention(rows, CPU).attend(query, key, value, 0.3), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@needs_cuda
def test_on_cuda_it_passes_its_own_trial_forward_and_backward() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert attention._flex_works(torch.device("cuda", 0), dtype, 9, 3, 64)


def test_blocks_that_nobody_sees_are_left_out() -> None:
    rows = [pack([range(n * 1000, n * 1000 + BLOCK)]) for n in range(8)]
    ends = [start + end for start, row in zip(range(0, 8 * BLOCK, BLOCK), rows, strict=True) for end in row.last]
    mask = tree_mask(torch.tensor(ends))
    assert mask.kv_num_blocks.tolist() == [[[1] * 8]]
    chain = tree_mask(torch.full((4 * BLOCK,), 4 * BLOCK - 1))
    assert chain.kv_num_blocks.tolist() == [[[1, 2, 3, 4]]]


def test_the_trial_accepts_what_works_and_refuses_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(self: TreeAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, s: None) -> torch.Tensor:
        index = torch.arange(q.shape[2])
        visible = self._mask.mask_mod(0, 0, index[:, None], index[None, :])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)

    for attend, works in ((dense, True), (lambda *given: 1.1 * dense(*given), False), (lambda *_: 1 / 0, False)):
        monkeypatch.setattr(TreeAttention, "attend", attend)
        for dtype in (torch.float32, torch.bfloat16):
            assert attention._flex_works.__wrapped__(CPU, dtype, 4, 2, 32) == works
            with torch.inference_mode():  # as in the first pass of all, when a base is loaded
                assert attention._flex_works.__wrapped__(CPU, dtype, 4, 2, 32) == works


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_a_user_who_diverges_does_not_reach_the_neighbours_in_the_same_block() -> None:
    rows = [pack([range(length)]) for length in (50, 40, 200)]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 290, 16) for heads in (4, 2, 2))
    expected = TreeAttention(rows, CPU).attend(query, key, value, 0.3)
    for tensor in (query, key, value):
        tensor[:, :, 50:70], tensor[:, :, 70:90] = float("nan"), float("inf")
    found = TreeAttention(rows, CPU).attend(query, key, value, 0.3)
    others = [*range(50), *range(90, 290)]
    assert torch.equal(found[:, :, others], expected[:, :, others])


def test_gradients_that_are_not_finite_reach_no_neighbour_either() -> None:
    x = torch.tensor([1.0, float("nan"), float("-inf")], requires_grad=True)
    assert _Finite.apply(x).tolist() == [1.0, 0.0, 0.0]
    (through,) = torch.autograd.grad(_Finite.apply(x).sum(), x)
    assert through.tolist() == [1.0, 1.0, 1.0]
    y = torch.ones(3, requires_grad=True)
    (grad,) = torch.autograd.grad((_FiniteGradient.apply(y) * x.detach()).sum(), y)
    assert grad.tolist() == [1.0, 0.0, 0.0]
