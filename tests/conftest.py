"""Tiny models and toy examples for the tests: offline, on the CPU, in float32."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from servers import Servers, servers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from oppu.model.base import Base, make_base
from oppu.model.tokens import Encoded
from oppu.store import Store

if TYPE_CHECKING:
    from shell import World

torch.set_num_threads(1)  # the models are too small to share


def tiny_model(seed: int = 0, layers: int = 2, vocabulary: int = 128) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: ids 3.. are the printable characters and the line break."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: i + 3 for i, c in enumerate(characters)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture
def base() -> Base:
    """A tiny random base of its own for each test."""
    return make_base("tiny", tiny_model(), tiny_tokenizer())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Servers]:
    """PostgreSQL and S3 on this machine."""
    with servers() as started:
        yield started


@pytest.fixture
def folder_store(tmp_path: Path) -> Iterator[Store]:
    """An empty store in a folder."""
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def cluster_store(cluster: Servers) -> Iterator[Store]:
    """An empty store in PostgreSQL and S3."""
    with Store(*cluster.addresses()) as opened:
        yield opened


@pytest.fixture(params=["folder", "cluster"])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store of each sort."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """A base, a task file, data and a store with modules for the command line; made once, and not to be changed."""
    from shell import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made_world: "World", tmp_path: Path) -> "World":
    """The world with a store of one's own."""
    return replace(made_world, store=Path(shutil.copytree(made_world.store, tmp_path / "store")))


def toy_examples(count: int, seed: int, shared: int = 12) -> tuple[Encoded, ...]:
    """Ragged sequences with a shared prefix, answers of one to four tokens, and two equal examples."""
    generator = torch.Generator().manual_seed(seed)

    def random_tokens(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(3, 98, (length,), generator=generator).tolist())

    prefix = random_tokens(shared, shared + 1)
    examples = []
    for _ in range(count):
        prompt, answer = prefix + random_tokens(2, 30), random_tokens(1, 5)
        examples.append(Encoded((*prompt, *answer), len(prompt)))
    return tuple(examples[:-1] + examples[:1]) if count > 2 else tuple(examples)


def plain_log_probs(model: PreTrainedModel, examples: Sequence[Encoded], skipped: int = 0) -> torch.Tensor:
    """log p of each answer token [M] by transformers (or PEFT) itself, each sequence alone, all logits: the reference.

    `skipped`: the virtual tokens that the model puts before each sequence.
    """
    found = []
    for e in examples:
        log_probs = model(input_ids=torch.tensor([e.tokens])).logits[0].log_softmax(-1)[skipped:]
        found += [log_probs[i - 1, e.tokens[i]] for i in range(e.answer_start, len(e.tokens))]
    return torch.stack(found)
