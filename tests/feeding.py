"""What is really fed to the model, as text: whole experiments are walked through with it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaModel

from oppu.model.base import make_base, save_base

_PIECE = r"\w+|\s|[^\w\s]"
_SPECIAL = ("<unk>", "<s>", "</s>")
POSITIONS = 16_384
"""Long enough for every prompt, so that none is cut."""


class Pieces:
    """A token for each word, white space and sign of the given texts; two texts side by side are their tokens so."""

    def __init__(self, texts: Iterable[str]) -> None:
        found = sorted({piece for text in texts for piece in re.findall(_PIECE, text)} | {" ", "\n"})
        self.texts = [*_SPECIAL, *found]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        vocabulary = {text: number for number, text in enumerate(self.texts)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
        )

    def base_folder(self, folder: Path) -> Path:
        """A tiny random base that reads them."""
        model = tiny_model(vocabulary=len(self.texts))
        model.config.max_position_embeddings = POSITIONS
        save_base(make_base("tiny", model, self.tokenizer()), folder)
        return folder

    def text(self, tokens: Sequence[int]) -> str:
        """Of a sequence, without special tokens; empty for one of these alone, as the model is tried with."""
        if max(tokens) < len(_SPECIAL):
            return ""
        assert 0 not in tokens, "a text that is not of these pieces"
        return "".join(self.texts[token] for token in tokens if token >= len(_SPECIAL))


class Fed:
    """Every sequence that goes through the model's body, read off its own inputs: the paths of the packed trees."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sequences: set[tuple[int, ...]] = set()
        forward = LlamaModel.forward

        def watched(model: LlamaModel, *arguments: Any, **named: Any) -> Any:
            self._take(named["input_ids"].tolist(), named["position_ids"].tolist())
            return forward(model, *arguments, **named)

        patch.setattr(LlamaModel, "forward", watched)

    def _take(self, tokens: list[list[int]], depths: list[list[int]]) -> None:
        if depths[0][0] != 0:  # a decoding step: the model's own last token
            return
        assert len(tokens) == 1
        self.sequences |= set(paths(tokens[0], depths[0]))


def paths(tokens: Sequence[int], depths: Sequence[int]) -> list[tuple[int, ...]]:
    """The sequences from the roots to the leaves of trees in depth-first order."""
    path: list[int] = []
    found = []
    for place, (token, depth) in enumerate(zip(tokens, depths, strict=True)):
        assert depth <= len(path)
        path[depth:] = [token]
        if place + 1 == len(tokens) or depths[place + 1] <= depth:
            found.append(tuple(path))
    return found
