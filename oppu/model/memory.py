"""How many tokens and users fit at a time: from the memory there is, and from what a token of this model takes.

Glossary: P parameters of a module.
"""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from transformers import PreTrainedModel

from oppu.model.bank import Bank
from oppu.model.forward import packed_logits
from oppu.model.kinds import ModuleConfig
from oppu.model.packing import pack
from oppu.model.recompute import recomputing

_CGROUP = Path("/sys/fs/cgroup")
_USEFUL_TOKENS = {"cpu": 512, "mps": 4096, "cuda": 32768}
"""Tokens of a pass beyond which nothing is gained: the products are large enough. On the CPU, of each worker's pass."""

_SHARE_OF_ACTIVATIONS = 0.5
"""Of the free memory; as much again is left for temporary values, and for what others do on the machine."""
_SHARE_OF_MODULES = 0.1
_PROBE_TOKENS = 32
_MIN_SLOTS = 16
_TOKENS_PER_USER = 64
"""Distinct tokens of a user's step, at least: so many users fill a pass."""


def useful_tokens(device: torch.device, workers: int) -> int:
    """Tokens under way at a time beyond which nothing is gained, over all workers."""
    return _USEFUL_TOKENS.get(device.type, _USEFUL_TOKENS["cuda"]) * workers


def tokens_held(model: PreTrainedModel, config: ModuleConfig, free: int) -> int:
    """Tokens whose activations fit into the part of `free` bytes that is theirs, between forward and backward."""
    return int(_SHARE_OF_ACTIVATIONS * free) // bytes_per_token(model, config)


def tokens_that_fit(held: int, device: torch.device, workers: int) -> int:
    """Tokens under way at a time in training, over all workers: at least 64, at most what is useful.

    `held`: tokens whose activations fit, of which half are left where there are several workers, for then each may have
    a row of two shares.
    """
    return max(64, min(held // min(2, workers), useful_tokens(device, workers)))


def slots_that_fit(device: torch.device, parameters: int, tokens: int, free: int | None = None) -> int:
    """Users trained at a time, with modules of P `parameters`: enough to fill passes of `tokens`; at least 1."""
    free = free_bytes(device) if free is None else free
    each = 4 * 4 * parameters  # value, gradient and AdamW's two moments in float32
    return max(1, min(int(_SHARE_OF_MODULES * free) // each, max(_MIN_SLOTS, tokens // _TOKENS_PER_USER)))


def bytes_per_token(model: PreTrainedModel, config: ModuleConfig) -> int:
    """What a token keeps in memory between forward and backward, found once by counting it in a tiny pass."""
    known, state = _BYTES.setdefault(model, {}), (config, model.device, model.dtype)
    if state not in known:
        known[state] = _counted(model, config)
    return known[state]


_BYTES: WeakKeyDictionary[PreTrainedModel, dict[tuple[Any, ...], int]] = WeakKeyDictionary()


def _counted(model: PreTrainedModel, config: ModuleConfig) -> int:
    kept: dict[int, int] = {}
    own = {weight.untyped_storage().data_ptr() for weight in model.state_dict().values()}

    def count(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()

    bank = Bank(model, config, 1)
    bank.reset(0, seed=0)
    row = pack([[*range(-config.virtual_tokens, 0), *([0] * _PROBE_TOKENS)]])
    with bank.attach(), torch.enable_grad(), recomputing(model, count):
        logits = packed_logits(model, [row], [0], torch.tensor([len(row) - 1], device=model.device))
    del logits
    return max(1, sum(kept.values()) // len(row))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device; on the CPU within the container's limit, where there is one."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int(Path(_CGROUP, name).read_text()) for name in ("memory.max", "memory.current"))
        numbers = dict(line.split() for line in Path(_CGROUP, "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    cached = int(numbers.get("inactive_file", 0))  # of files that were read: given up when something else needs it
    return min(free, max(0, limit - used + cached))
