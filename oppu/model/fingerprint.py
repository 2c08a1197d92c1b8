"""A base's fingerprint: SHA-256 over everything that decides what the model computes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from oppu.model.embedded import cache_folder

KEPT_FROM = 64 << 20
"""Bytes of a base whose fingerprint is worth keeping; a smaller one is read in no time."""


def folder_fingerprint(folder: Path) -> str:
    """Over weights, configuration and tokenizer of a folder, hexadecimal.

    Reading them takes about a second per gigabyte, so the result is kept in the cache and holds while no file's size,
    time or inode changes.
    """
    files = [f for f in sorted(folder.iterdir()) if _counts(f)]
    if sum(f.stat().st_size for f in files) < KEPT_FROM:
        return _of_files(files)
    state = [(f.name, s.st_size, s.st_mtime_ns, s.st_ino) for f in files for s in [f.stat()]]
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    kept = cache_folder() / "fingerprints" / f"{place}.json"
    try:
        found = json.loads(kept.read_bytes())
        if found["files"] == [list(entry) for entry in state]:
            return str(found["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or damaged: read the files
    fingerprint = _of_files(files)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"fingerprint": fingerprint, "files": state}), encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written costs a second each time, nothing else
    return fingerprint


def memory_fingerprint(model: PreTrainedModel) -> str:
    """Over the configuration and the weights in memory, hexadecimal."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _counts(file: Path) -> bool:
    return file.suffix == ".safetensors" or file.name in ("config.json", "tokenizer.json")


def _of_files(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
