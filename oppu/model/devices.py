"""Where a base lies and in which precision it computes: what suits the machine, unless it is said."""

import torch

from oppu.errors import ConfigError

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(wanted: torch.device | str = AUTO) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1, mps); auto: CUDA where there is one, else the CPU.

    mps is never chosen by itself: it is not tested. ConfigError for a device that is not there.
    """
    if wanted == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"unknown device '{wanted}'", where="--device", fix="use auto, cpu, cuda, cuda:1, ... or mps")
    if device.type == "cuda":
        _check_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("there is no MPS device here", where="--device", fix="use --device cpu")
    return device


def find_dtype(wanted: torch.dtype | str, device: torch.device) -> torch.dtype:
    """The precision of that name; auto: bfloat16 on CUDA where the card computes in it, else float32.

    Never float16 by itself: the gradients of activations leave its range, and nothing here rescales the loss.
    ConfigError for an unknown one.
    """
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted == AUTO:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if wanted not in DTYPES:
        raise ConfigError(f"unknown precision '{wanted}'", where="--dtype", fix=f"use auto, {', '.join(DTYPES)}")
    return DTYPES[wanted]


def dtype_name(wanted: torch.dtype | str, device: torch.device) -> str:
    """`find_dtype` by its name: what auto stands for on this device."""
    return str(find_dtype(wanted, device)).removeprefix("torch.")


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this build of torch has no CUDA)"
        raise ConfigError(f"there is no CUDA device here{built}", where="--device", fix="use --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"there is no {device}: {count} CUDA devices", where="--device", fix=f"use 0 to {count - 1}")
