"""A packed row is the prefix tree of its sequences, and a model sees through it what it sees in each alone."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
import torch
from conftest import plain_log_probs, tiny_model, tiny_tokenizer, toy_examples
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from oppu.errors import ModelError
from oppu.model.attention import _mask
from oppu.model.base import make_base
from oppu.model.decode import Decoder, Prompt
from oppu.model.forward import answer_log_probs, packed_logits, rows_of
from oppu.model.packing import Row, attention_blocks, common_prefix, pack
from oppu.model.tokens import Encoded

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8)
"""Few tokens, so that prefixes are shared, sequences equal, and one the beginning of another."""


def prefixes(sequences: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    """The naive trie: each distinct prefix is a node."""
    return {tuple(s[:end]) for s in sequences for end in range(1, len(s) + 1)}


def prefix_of(row: Row) -> list[tuple[int, ...]]:
    """For each token of the row, the prefix that it ends, as the paths say."""
    found: list[tuple[int, ...]] = [()] * len(row)
    for path in row.paths:
        for end, index in enumerate(path, start=1):
            found[index] = tuple(row.tokens[i] for i in path[:end])
    return found


@given(SEQUENCES)
def test_every_sequence_is_read_back_through_its_path(sequences: list[list[int]]) -> None:
    row = pack(sequences)
    assert [[row.tokens[i] for i in path] for path in row.paths] == sequences
    assert all(row.positions[i] == depth for path in row.paths for depth, i in enumerate(path))


@given(SEQUENCES)
def test_every_distinct_prefix_stands_once(sequences: list[list[int]]) -> None:
    found = prefix_of(pack(sequences))
    assert len(found) == len(set(found))
    assert set(found) == prefixes(sequences)


@given(SEQUENCES)
def test_last_is_the_end_of_the_subtree(sequences: list[list[int]]) -> None:
    row = pack(sequences)
    found = prefix_of(row)
    for index, prefix in enumerate(found):
        below = [i for i, other in enumerate(found) if other[: len(prefix)] == prefix]
        assert below == list(range(index, row.last[index] + 1))


@pytest.mark.parametrize("limit", [1, 8, 1000])
@given(SEQUENCES)
def test_blocks_cover_every_token_once_and_show_it_its_ancestors_alone(limit: int, sequences: list[list[int]]) -> None:
    row = pack(sequences)
    found = prefix_of(row)
    blocks = attention_blocks(row, limit)
    assert [i for block in blocks for i in range(block.start, block.end)] == list(range(len(row)))
    for block in blocks:
        keys = [i for a, b in (*block.ancestors, (block.start, block.end)) for i in range(a, b)]
        mask = _mask(row, block, torch.device("cpu"), torch.float32)
        for line, query in enumerate(range(block.start, block.end)):
            if mask is None:
                seen = [key for key in keys if key <= query]
            else:
                seen = [key for key, value in zip(keys, mask[line].tolist(), strict=True) if value == 0]
            assert seen == [i for i, p in enumerate(found) if found[query][: len(p)] == p]


def test_small_subtrees_share_a_block_and_a_long_prefix_is_an_ancestor() -> None:
    row = pack([[0] * 10 + [branch, 1] for branch in (1, 2, 3, 4)])
    assert [(b.start, b.end, b.ancestors) for b in attention_blocks(row, 8)] == [(0, 10, ()), (10, 18, ((0, 10),))]


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_the_common_prefix_is_the_longest_one(a: list[int], b: list[int]) -> None:
    assert common_prefix(a, b) == max(n for n in range(min(len(a), len(b)) + 1) if a[:n] == b[:n])


@torch.no_grad()
def test_packed_log_probabilities_are_those_of_each_sequence_alone() -> None:
    base = make_base("tiny", tiny_model(), tiny_tokenizer())
    examples = toy_examples(40, seed=1, shared=30)
    (row,) = rows_of(-1, examples, 10_000)
    assert len(row.row) < sum(len(e.tokens) for e in examples) / 2
    torch.testing.assert_close(
        answer_log_probs(base.model, [row]), plain_log_probs(tiny_model(), row.examples), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_rows_beside_each_other_do_not_see_each_other() -> None:
    base = make_base("tiny", tiny_model(), tiny_tokenizer())
    rows = [row for slot in (-1, 0, 1) for row in rows_of(slot, toy_examples(7, seed=slot + 1), 100)]
    assert len(rows) > 3
    expected = plain_log_probs(tiny_model(), [e for row in rows for e in row.examples])
    torch.testing.assert_close(answer_log_probs(base.model, rows), expected, atol=1e-5, rtol=0)


def test_rows_hold_no_more_than_the_limit_and_no_example_is_lost() -> None:
    examples = toy_examples(25, seed=3)
    limit = 2 * max(len(e.tokens) for e in examples)
    rows = list(rows_of(0, examples, limit))
    assert len(rows) > 2
    assert sorted((e for row in rows for e in row.examples), key=lambda e: e.tokens) == sorted(
        examples, key=lambda e: e.tokens
    )
    assert all(len(row.row) <= limit for row in rows)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(4, 20))
def test_rows_are_cut_where_the_fewest_tokens_stand_twice(sequences: list[list[int]], limit: int) -> None:
    examples = [Encoded((*tokens, 9), len(tokens)) for tokens in sequences]
    rows = list(rows_of(0, examples, limit))
    ordered = sorted(sequences)
    limit = max(limit, 5 * max(map(len, sequences)) // 4)

    def tokens_in(cuts: Sequence[int]) -> list[int]:
        return [len(pack(ordered[start:end])) for start, end in pairwise([0, *cuts, len(ordered)])]

    ways = [
        sizes
        for count in range(len(ordered))
        for cuts in combinations(range(1, len(ordered)), count)
        if max(sizes := tokens_in(cuts)) <= limit
    ]
    assert max(len(row.row) for row in rows) <= limit
    assert (sum(len(row.row) for row in rows), len(rows)) == min((sum(sizes), len(sizes)) for sizes in ways)


def test_answers_stay_with_a_prompt_that_is_longer_than_a_row() -> None:
    prompts = [tuple(range(100 * n, 100 * n + 60)) for n in range(3)]
    examples = [Encoded((*prompt, answer, 9), len(prompt)) for prompt in prompts for answer in range(5)]
    rows = list(rows_of(0, examples, 50))
    assert [len(row.row) for row in rows] == [65] * 3
    assert [{e.tokens[:60] for e in row.examples} for row in rows] == [{prompt} for prompt in prompts]


SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
GPT2_SIZES = {
    "vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPT_SIZES = {
    "vocab_size": 128, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "word_embed_proj_dim": 32, "init_std": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=64),
    "qwen2 with attention bias": Qwen2Config(**SIZES),
    "qwen3 with normed heads": Qwen3Config(**SIZES, head_dim=16),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gemma2 without soft caps": Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=None),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8),
    "phi": PhiConfig(**SIZES),
    "opt with learned positions": OPTConfig(**OPT_SIZES),
    "gpt2 with transposed weights": GPT2Config(**GPT2_SIZES),
}


def two_of(config: PreTrainedConfig) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same random model twice: to be packed, and as transformers runs it by itself."""
    torch.manual_seed(0)
    packed = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in packed.named_parameters():
        if name.endswith("bias"):  # zero in a fresh model, where it could be left out unnoticed
            torch.nn.init.normal_(weight, std=0.2)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(packed.state_dict())
    return packed, plain


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_causal_language_models_of_any_kind_give_the_same_numbers_packed(name: str) -> None:
    packed, plain = two_of(ARCHITECTURES[name])
    make_base(name, packed, tiny_tokenizer())
    (row,) = rows_of(-1, toy_examples(6, seed=0), 10_000)
    torch.testing.assert_close(answer_log_probs(packed, [row]), plain_log_probs(plain, row.examples), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_causal_language_models_of_any_kind_decode_step_by_step(name: str) -> None:
    packed, plain = two_of(ARCHITECTURES[name])
    make_base(name, packed, tiny_tokenizer())
    sequences = [list(e.tokens) for e in toy_examples(3, seed=4)]
    decoder = Decoder(packed)
    logits = decoder.admit([Prompt(key, -1, tuple(tokens)) for key, tokens in enumerate(sequences)])
    for _ in range(3):
        expected = torch.stack([plain(input_ids=torch.tensor([tokens])).logits[0, -1] for tokens in sequences])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        following = logits.argmax(-1).tolist()
        sequences = [[*tokens, token] for tokens, token in zip(sequences, following, strict=True)]
        logits = decoder.step(following)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Gemma2Config(**SIZES, head_dim=8), "needs softcap"),
        (GPTJConfig(**GPT2_SIZES, rotary_dim=4), "GPTJForCausalLM does not use transformers' attention interface"),
        (
            FalconConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
            "FalconForCausalLM does not use transformers' attention interface",
        ),
        (
            MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4),
            "MambaForCausalLM does not use transformers' attention interface",
        ),
    ],
    ids=["soft caps", "attention of its own", "attention with biases", "no attention"],
)
def test_a_model_that_cannot_be_packed_is_refused_when_it_is_loaded(config: PreTrainedConfig, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        make_base("other", AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    assert "\n" not in caught.value.line()


@torch.no_grad()
def test_a_sequence_longer_than_the_attention_window_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, head_dim=8, sliding_window=8)).eval()
    make_base("window", model, tiny_tokenizer())
    packed_logits(model, [pack([range(8)])], [-1], torch.tensor([7]))
    with pytest.raises(ModelError, match="9 tokens is longer than the model's attention window of 8; lower max_tokens"):
        packed_logits(model, [pack([range(9)])], [-1], torch.tensor([8]))
