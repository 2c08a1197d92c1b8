"""A personal module in PEFT's format: named tensors and what PEFT writes in adapter_config.json.

In and out: a folder with `adapter_model.safetensors` and `adapter_config.json`, as `PeftModel.from_pretrained` loads.
Nothing is trusted: header, names and shapes are checked against the file's length and the config before a tensor is
read, and a pickle is never opened. PEFT itself is not needed here.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from oppu.errors import StoreError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_TEXT_SUFFIXES = {".json", ".jinja", ".md", ".txt"}
_DAMAGED = "restore it from an export, or train the module again"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """A personal module in PEFT's own format."""

    tensors: Mapping[str, torch.Tensor]
    """By PEFT's names, e.g. base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight: [R, I]; lora_B: [O, R]."""
    config: Mapping[str, Any]
    """What PEFT writes in adapter_config.json (peft_type, r, lora_alpha, target_modules, ...)."""


def is_peft(module: Module) -> bool:
    """Whether PEFT itself has this kind of module."""
    return module.config.get("peft_type") in _PEFT


def is_float32(value: object) -> bool:
    """Whether it is a finite number that float32 holds, which Python's JSON does not promise."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= torch.finfo(torch.float32).max  # type: ignore[arg-type]


def check_module(module: Module, *, where: str) -> None:
    """StoreError, one line beginning with `where`, for a module that read_module would refuse."""
    _refuse_misfits(
        json.loads(_config_text(module, where)), {n: tuple(t.shape) for n, t in module.tensors.items()}, where
    )
    _refuse([f"{n} (dtype {t.dtype})" for n, t in module.tensors.items() if t.dtype not in _DTYPES], where)
    _refuse(_values_that_are_no_numbers(module.tensors), where)


def module_files(module: Module, *, where: str) -> dict[str, bytes]:
    """The two files of `module`, by name; StoreError, beginning with `where`, for one that read_module would refuse."""
    check_module(module, where=where)
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in module.tensors.items()}
    config = _config_text(module, where) + "\n"
    return {CONFIG: config.encode(), WEIGHTS: save(tensors, metadata={"format": "pt"})}


def write_module(module: Module, folder: Path) -> None:
    """Writes `module` as two files into `folder`, which is made if need be; neither atomic nor synced.

    StoreError for a module that read_module would refuse (then nothing is written); OSError where the disk fails.
    """
    files = module_files(module, where=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def read_module(folder: Path) -> Module:
    """The module in `folder`, or a StoreError: one line with the path and every bad tensor.

    Text beside the two files (a model card, a tokenizer's JSON) is left alone; any other file, pickles above all, is
    refused.
    """
    try:
        _refuse_other_files(folder)
        files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})", where=str(error.filename or folder)) from error
    return module_of(files, where=str(folder))


def module_of(files: Mapping[str, bytes], *, where: str) -> Module:
    """The module that two files hold, or a StoreError as of read_module; `where`: their folder."""
    config = _read_config(files[CONFIG], f"{where}/{CONFIG}")
    weights = f"{where}/{WEIGHTS}"
    _refuse_misfits(config, _read_shapes(files[WEIGHTS], weights), where)
    try:
        tensors = load(files[WEIGHTS])
    except SafetensorError as error:
        raise StoreError(f"is no valid safetensors file ({error})", where=weights, fix=_DAMAGED) from error
    _refuse(_values_that_are_no_numbers(tensors), where)
    return Module(tensors=tensors, config=config)


def _config_text(module: Module, where: str) -> str:
    try:
        return json.dumps(dict(module.config), indent=2, sort_keys=True, default=_set_as_list)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the module's config is no JSON ({error})", where=where) from error


def _set_as_list(value: object) -> object:
    """PEFT keeps target_modules as a set; JSON has lists."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} in {CONFIG}")


def _refuse(problems: list[str], where: str) -> None:
    if problems:
        count = "1 bad tensor: " if len(problems) == 1 else f"{len(problems)} bad tensors: "
        raise StoreError(count + ", ".join(problems), where=where, fix=_DAMAGED)


def _refuse_other_files(folder: Path) -> None:
    if not folder.is_dir():
        raise StoreError("is no folder", where=str(folder), fix=f"give a folder with {WEIGHTS} and {CONFIG}")
    names = {path.name for path in folder.iterdir()}
    others = sorted(
        name for name in names - {WEIGHTS} if Path(name).suffix not in _TEXT_SUFFIXES and not name.startswith(".")
    )
    if others:
        fix = f"only {WEIGHTS} and {CONFIG} are read, never a pickle: save it again with safe_serialization=True"
        raise StoreError(f"files that are no part of a module: {', '.join(others)}", where=str(folder), fix=fix)
    missing = sorted({WEIGHTS, CONFIG} - names)
    if missing:
        raise StoreError(f"{' and '.join(missing)} missing", where=str(folder), fix=_DAMAGED)


def _read_config(data: bytes, where: str) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError("is no valid JSON", where=where, fix=_DAMAGED) from error
    if not isinstance(config, dict):
        raise StoreError("is no JSON object", where=where, fix=_DAMAGED)
    return config


def _read_shapes(data: bytes, where: str) -> dict[str, Shape]:
    """Names and shapes from the header, checked against the file's length; no tensor is read.

    A safetensors file is: 8 bytes N (little endian), N bytes of JSON, then the tensors one after another.
    """
    size = len(data)
    header_length = int.from_bytes(data[:8], "little")
    if size < 8 or header_length > size - 8:
        raise StoreError(f"is cut short or no safetensors file ({size} bytes)", where=where, fix=_DAMAGED)
    raw = data[8 : 8 + header_length]
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError("has no valid safetensors header", where=where, fix=_DAMAGED) from error
    if not isinstance(header, dict):
        raise StoreError("has no valid safetensors header", where=where, fix=_DAMAGED)
    header.pop("__metadata__", None)
    _refuse([f"{name} ({why})" for name, entry in header.items() if (why := _entry_problem(entry))], where)
    _refuse_wrong_length(header, size - 8 - header_length, where)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _entry_problem(entry: object) -> str:
    """Why a header entry cannot be true, or an empty string."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "its header entry is malformed"
    item_bytes = _ITEM_BYTES.get(str(entry["dtype"]))
    if item_bytes is None:
        return f"dtype {entry['dtype']!r}, not one of {', '.join(_ITEM_BYTES)}"
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        return "shape or offsets are no counts"
    size, expected = offsets[1] - offsets[0], math.prod(shape) * item_bytes
    return "" if size == expected else f"shape {shape} needs {expected} bytes, the header gives it {size}"


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _refuse_wrong_length(header: Mapping[str, Any], data_bytes: int, where: str) -> None:
    """The tensors must lie one after another and fill the file to its end."""
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        if entry["data_offsets"][0] != end:
            raise StoreError(f"has a gap or an overlap before {name}", where=where, fix=_DAMAGED)
        end = entry["data_offsets"][1]
    if end != data_bytes:
        what = f"is {'cut short' if data_bytes < end else 'too long'}: {data_bytes} bytes of tensors instead of {end}"
        raise StoreError(what, where=where, fix=_DAMAGED)


def _values_that_are_no_numbers(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Also those that are none in float32, in which modules are used."""
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor.float()).all())]
    return [f"{name} (NaN or infinite)" for name in bad]


def _refuse_misfits(config: Mapping[str, Any], shapes: Mapping[str, Shape], where: str) -> None:
    """Refuses every tensor whose name or shape is not what the config announces."""
    kind = str(config.get("peft_type"))
    if not _are_targets(config.get("target_modules")):
        raise StoreError("target_modules are neither names nor a regular expression", where=where, fix=_DAMAGED)
    if not shapes:
        raise StoreError("holds no tensors", where=where, fix=_DAMAGED)
    misfits = _misfits(kind, config, shapes)
    if misfits is None:
        raise StoreError(f"peft_type {kind!r} is unknown", where=where, fix=f"use one of: {', '.join(_PEFT)}")
    _refuse(misfits, where)
    if "r" in config and not is_float32(config.get("lora_alpha")):  # what has a rank is scaled
        alpha = config.get("lora_alpha", "missing")
        raise StoreError(f"lora_alpha is {alpha}, not a finite number of float32's range", where=where, fix=_DAMAGED)


def _misfits(kind: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str] | None:
    """What does not fit; None for an unknown kind."""
    if kind in _PEFT:
        return _PEFT[kind](config, shapes)
    from oppu.model.kinds import misfits_in_file  # late: the kinds need transformers, PEFT's formats do not

    return misfits_in_file(kind, config, shapes)


def _lora_misfits(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """A: [R, I] and B: [O, R] of the same target module; R is the config's r unless a rank_pattern varies it."""
    return [f"{name} ({why})" for name in shapes if (why := _lora_misfit(name, config, shapes))]


def _lora_misfit(name: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str:
    match = re.fullmatch(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight", name)
    if match is None or not _is_target(match["module"], config):
        return "not the name of a LoRA tensor of a target module"
    shape, half = shapes[name], match["half"]
    if len(shape) != 2 or 0 in shape:
        return f"shape {list(shape)}, not two-dimensional"
    other_half = "B" if half == "A" else "A"
    other = shapes.get(f"base_model.model.{match['module']}.lora_{other_half}.weight")
    if other is None:
        return f"has no lora_{other_half} beside it"
    rank = shape[0] if half == "A" else shape[1]
    if config.get("rank_pattern"):
        other_rank = other[-1] if half == "A" else other[0]
        return "" if rank == other_rank else f"rank {rank}, its other half {other_rank}"
    return "" if rank == config.get("r") else f"rank {rank} instead of {config.get('r')}"


def _ia3_misfits(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """One vector per target module: [O, 1], or [1, I] for a feedforward module."""
    problems = []
    for name, shape in shapes.items():
        match = re.fullmatch(r"base_model\.model\.(?P<module>.+)\.ia3_l", name)
        if match is None or not _is_target(match["module"], config):
            problems.append(f"{name} (not the name of an IA3 vector of a target module)")
        elif len(shape) != 2 or 1 not in shape or 0 in shape:
            problems.append(f"{name} (shape {list(shape)}, not one vector)")
    return problems


def _prompt_misfits(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """prompt_embeddings alone: [num_virtual_tokens, hidden]."""
    problems = [f"{name} (not prompt_embeddings)" for name in shapes if name != "prompt_embeddings"]
    shape, tokens = shapes.get("prompt_embeddings"), config.get("num_virtual_tokens")
    if shape is None:
        return [*problems, "prompt_embeddings (missing)"]
    if len(shape) != 2 or 0 in shape or shape[0] != tokens:
        problems.append(f"prompt_embeddings (shape {list(shape)}, not [{tokens}, hidden])")
    return problems


_PEFT: dict[str, Callable[[Mapping[str, Any], Mapping[str, Shape]], list[str]]] = {
    "LORA": _lora_misfits,
    "IA3": _ia3_misfits,
    "PROMPT_TUNING": _prompt_misfits,
}


def _are_targets(targets: object) -> bool:
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error:
            return False
        return True
    return targets is None or (isinstance(targets, list) and all(isinstance(target, str) for target in targets))


def _is_target(module: str, config: Mapping[str, Any]) -> bool:
    """Whether the config's target_modules (names, or one regular expression) take in the module."""
    targets = config.get("target_modules")
    if targets is None or targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)
