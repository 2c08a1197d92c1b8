"""A base model: loaded, frozen, fingerprinted; merged bases of one's own are folders with a record (`oppu.json`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from oppu.errors import ModelError
from oppu.model.attention import ATTENTION
from oppu.model.devices import AUTO, find_device, find_dtype
from oppu.model.embedded import EMBEDDED, embedded_folder
from oppu.model.fingerprint import folder_fingerprint, memory_fingerprint
from oppu.model.forward import packed_logits
from oppu.model.packing import pack
from oppu.model.quantize import (
    check_quantization,
    compute_plainly,
    let_go_of_files,
    quantization_config,
    quantized_fingerprint,
)

RECORD_FILE = "oppu.json"


@dataclass(frozen=True)
class Base:
    """A frozen causal language model with its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    """SHA-256 over weights, configuration and tokenizer, hexadecimal."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """How the base was made; empty for one that was not made here."""
    quantize: str | None = None
    """8bit or 4bit: how the weights were rounded when they were loaded."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.model.device
        return device

    @property
    def family(self) -> str:
        """The name of the base that this one descends from; settings are kept under it."""
        return str(self.record.get("family", self.name))

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", 2048))


def load_base(
    name: str = EMBEDDED,
    *,
    device: torch.device | str = AUTO,
    dtype: torch.dtype | str = AUTO,
    quantize: str | None = None,
) -> Base:
    """Load a base by the embedded model's name, a folder, or a model's name on the hub.

    `device`, `dtype`: see `find_device`, `find_dtype`. `quantize`: 8bit or 4bit, to round the weights of the linear
    layers (not the head's) as they are read; a base whose files are quantized is loaded as it is. ConfigError for a
    choice that cannot be had, ModelError for a base that cannot.
    """
    place = find_device(device)
    precision = find_dtype(dtype, place)
    if quantize is not None:
        check_quantization(quantize)
    folder = embedded_folder() if name == EMBEDDED else Path(name)
    source: str | Path = folder if folder.is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        how = _placement(AutoConfig.from_pretrained(source), name, place, precision, quantize)
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=precision, attn_implementation=ATTENTION, output_loading_info=True, **how
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _cannot_load(name, error) from None
    if info["missing_keys"]:  # transformers would fill them with random numbers
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"its files lack weights of the model: {missing}", where=name, fix="restore its files")
    record = record_of(folder)
    if how:  # quantized, and in its place already
        let_go_of_files(model)
    else:
        model = model.to(place)
    return make_base(record.get("name", name), model, tokenizer, _files_of(source), record, quantize)


def family_of(name: str) -> str:
    """The family of a base by what `load_base` takes, without loading it."""
    return str(record_of(Path(name)).get("family", name))


def fingerprint_of(name: str, quantize: str | None = None) -> str:
    """The fingerprint that `load_base` gives, from the base's files; ModelError where there are none."""
    folder = embedded_folder() if name == EMBEDDED else Path(name)
    try:
        files = _files_of(folder if folder.is_dir() else name)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from None
    if files is None:  # no safetensors: the fingerprint is of the weights in memory
        return load_base(name, quantize=quantize).fingerprint
    fingerprint = folder_fingerprint(files)
    return fingerprint if quantize is None else quantized_fingerprint(fingerprint, quantize)


def record_of(folder: Path) -> dict[str, Any]:
    """How the base in a folder was made; empty where nothing says so. ModelError for a damaged record."""
    file = folder / RECORD_FILE
    try:
        return dict(json.loads(file.read_bytes())) if file.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            "is no record of a base", where=str(file), fix="restore it, or adapt the base again"
        ) from error


def make_base(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | None = None,
    record: Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> Base:
    """Freeze a model and give it its fingerprint: of the folder's files, or of the weights in memory.

    `quantize`: how the weights were rounded after they were read from the folder; a fingerprint covers it, and neither
    device nor dtype.
    """
    model.requires_grad_(False).eval()
    compute_plainly(model)
    if model.config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    _check_packable(model, name)
    fingerprint = folder_fingerprint(folder) if folder else memory_fingerprint(model)
    if quantize is not None and folder:
        fingerprint = quantized_fingerprint(fingerprint, quantize)
    return Base(name, model, tokenizer, fingerprint, record or {}, quantize)


def save_base(base: Base, folder: Path) -> None:
    """Write model, tokenizer and record in transformers' format; `load_base(folder)` reads them."""
    try:
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        (folder / RECORD_FILE).write_text(json.dumps(dict(base.record), indent=2), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        fix = "free some space, or use a folder that you may write"
        raise ModelError(f"the base cannot be written ({error})", where=str(folder), fix=fix) from error


def _cannot_load(name: str, error: Exception) -> ModelError:
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    fix = f"use '{EMBEDDED}', a folder in transformers' format, or a model's name"
    return ModelError(f"cannot load the base model: {cause}", where=name, fix=fix)


@torch.inference_mode()
def _check_packable(model: PreTrainedModel, name: str) -> None:
    """ModelError unless every layer mixes tokens by attention that oppu can lay out: one tiny packed row shows it.

    Others (state space layers, attention of a model's own, position biases) would give wrong numbers without a word.
    """
    layers: set[int] = set()
    ends = torch.tensor([2], device=model.device)
    try:
        packed_logits(model, [pack([(0, 1), (0, 2)])], [-1], ends, lambda layer, *_: layers.add(layer))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        layers.clear()
    if len(layers) != model.config.get_text_config().num_hidden_layers:
        raise ModelError(
            f"{type(model).__name__} does not use transformers' attention interface in every layer",
            where=name,
            fix="use a model with plain attention, such as Llama, Qwen, Mistral, Gemma, Phi, OLMo, OPT or GPT-2",
        )


def _placement(
    config: Any, name: str, device: torch.device, dtype: torch.dtype, quantize: str | None
) -> dict[str, Any]:
    """What `from_pretrained` needs for quantized weights, which go to their device as they are read; else nothing."""
    given = getattr(config, "quantization_config", None)
    if given is None and quantize is None:
        return {}
    place = {"device_map": {"": str(device)}}
    if quantize is None:
        return place
    if given is not None:
        kind = given.get("quant_method") if isinstance(given, dict) else given.quant_method
        raise ModelError(f"the base is quantized already ({kind})", where=name, fix="leave out --quantize")
    return {**place, "quantization_config": quantization_config(quantize, dtype)}


def _files_of(source: str | Path) -> Path | None:
    """The folder that the weights were read from; of a name on the hub, its snapshot. None: they are no safetensors."""
    folder = source if isinstance(source, Path) else Path(str(cached_file(source, "config.json"))).parent
    return folder if any(folder.glob("*.safetensors")) else None
