"""What the layers below the modules make of an example, computed once and kept on disk.

Where modules sit on the upper layers alone, the frozen layers below never see a gradient, and what they make of an
example is the same over epochs, and over runs. It is kept in a memory-mapped file of bounded size, a ring: when it is
full, the oldest examples make room. It is made of what users wrote, so it goes with the run, unless a folder is given
in which it shall stay.

Glossary: N tokens of a pass, T tokens of an example, D hidden size, C tokens that the file holds.
"""

import fcntl
import hashlib
import json
import logging
import os
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch

from oppu.model.base import Base
from oppu.model.embedded import cache_folder
from oppu.model.forward import SlotRow
from oppu.model.layers import SplitModel, first_layer, split_model
from oppu.model.tokens import Encoded

_LOG = logging.getLogger("oppu.model")
_ALLOCATED_TOGETHER = 64 << 20
"""Bytes of the file that are claimed at a time."""


class Trunk:
    """The model above the lower layers, and the file of what these make of examples. Threads may share it."""

    def __init__(self, base: Base, split: SplitModel, max_bytes: int, folder: Path | None) -> None:
        self._split = split
        self._device = base.device
        weight = base.model.get_input_embeddings().weight
        name = f"{base.fingerprint[:24]}-{split.first}-{str(base.model.dtype).removeprefix('torch.')}"
        self._file = HiddenFile(folder, name, int(weight.shape[1]), base.model.dtype, max_bytes)

    def body(self, rows: Sequence[SlotRow]) -> torch.Tensor:
        """The body's output [N, D] for rows laid one after another, under the current layout."""
        return self._split.upper([row.row for row in rows], self.hidden(rows))

    def hidden(self, rows: Sequence[SlotRow]) -> torch.Tensor:
        """What the lower layers make of the rows, [N, D]: from the file, or computed and put there."""
        lengths = [len(row.row) for row in rows]
        hidden = torch.empty(sum(lengths), self._file.width, dtype=self._file.dtype)
        parts = list(zip(rows, hidden.split(lengths), strict=True))  # type: ignore[no-untyped-call]
        missing = [(row, part) for row, part in parts if not self._read(row, part)]
        if missing:
            made = self._split.lower([row.row for row, _ in missing]).cpu()  # an accelerator is waited for once
            for row, part in missing:
                part.copy_(made[: len(part)])
                made = made[len(part) :]
                self._keep(row, part)
        return hidden.to(self._device)

    def close(self) -> None:
        """Leave the model as it was, and let others use the file."""
        self._split.close()
        self._file.close()

    def _read(self, row: SlotRow, hidden: torch.Tensor) -> bool:
        """Fill in a row's hidden states [len(row), D]; whether all its examples are in the file."""
        for example, path in zip(row.examples, row.row.paths, strict=True):
            part = self._file.get(_key(example))
            if part is None:
                return False
            hidden[list(path)] = part
        return True

    def _keep(self, row: SlotRow, hidden: torch.Tensor) -> None:
        for example, path in zip(row.examples, row.row.paths, strict=True):
            self._file.put(_key(example), hidden[list(path)])


@contextmanager
def trunk_below(base: Base, names: Sequence[str], max_bytes: int, folder: Path | None = None) -> Iterator[Trunk | None]:
    """The trunk below modules on the layers of these `names`; None: they touch the lowest, or the model is not cut."""
    split = split_model(base.model, first_layer(base.model, names))
    if split is None:
        yield None
        return
    trunk = Trunk(base, split, max_bytes, folder)
    try:
        yield trunk
    finally:
        trunk.close()


class HiddenFile:
    """Hidden states [T, D] by key, in a memory-mapped ring of C tokens; in a folder it outlives the process.

    Beside `NAME.bin` stands `NAME.jsonl`, a line for each entry with its place and checksum; an entry whose bytes are
    not those that were put (after a loss of power) is dropped. One process holds the file; another that comes meanwhile
    works on a file of its own, which goes with it.
    """

    def __init__(self, folder: Path | None, name: str, width: int, dtype: torch.dtype, max_bytes: int) -> None:
        self.width, self.dtype = width, dtype
        self.capacity = max(1, max_bytes // (width * dtype.itemsize))
        self._usable, self._allocated = self.capacity, 0  # tokens that may have, and that have, their place on the disk
        self._lock = threading.Lock()
        self._order: deque[tuple[str, int, int]] = deque()
        self._places: dict[str, tuple[int, int, int | None]] = {}
        self._next = 0
        index = _locked(folder / f"{name}.jsonl") if folder is not None else None
        self._index = index or tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        if index is not None and folder is not None:
            data = folder / f"{name}.bin"
            if data.exists() and data.stat().st_size != self.capacity * width * dtype.itemsize:
                data.unlink()  # made under another bound
            elif data.exists():
                self._read_index()
            self._data = self._map(data)
        else:
            cache_folder().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="trunk-", dir=cache_folder()) as place:
                self._data = self._map(Path(place, "data"))  # what is mapped stays until it is let go, even if killed
        self._write_index()

    def _map(self, file: Path) -> torch.Tensor:
        size = self.capacity * self.width
        data = torch.from_file(str(file), shared=True, size=size, dtype=self.dtype).view(-1, self.width)
        self._bytes = file.open("r+b")
        return data

    def get(self, key: str) -> torch.Tensor | None:
        """A copy [T, D] of what was put under the key; None: nothing, or no more."""
        with self._lock:
            if key not in self._places:
                return None
            start, length, checksum = self._places[key]
            found = self._data[start : start + length].clone()
            if checksum is not None:  # of an earlier process: looked at once
                if _checksum(found) != checksum:
                    del self._places[key]
                    return None
                self._places[key] = start, length, None
            return found

    def put(self, key: str, hidden: torch.Tensor) -> None:
        """Keep [T, D] under the key; the oldest go where there is no room. What is larger than the file is not kept."""
        length = len(hidden)
        with self._lock:
            if key in self._places or length > self._usable:
                return
            start = self._next if self._next + length <= self._usable else 0
            if not self._allocate(start + length):
                return
            self._make_room(start, start + length)
            self._data[start : start + length] = hidden
            self._enter(key, start, length, None)
            line = {"key": key, "start": start, "length": length, "crc32": _checksum(hidden)}
            with suppress(OSError):  # an entry without a line is computed again by the next process
                self._index.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Lets another process use the file."""
        self._bytes.close()
        with suppress(OSError):
            self._index.close()

    def _allocate(self, end: int) -> bool:
        """Whether the tokens up to `end` have their place on the disk: to write where a full one has none is fatal."""
        if end <= self._allocated:
            return True
        token = self.width * self.dtype.itemsize
        claim = getattr(os, "posix_fallocate", lambda *_: None)  # macOS has none
        for wanted in (min(self._usable, max(end, self._allocated + _ALLOCATED_TOGETHER // token)), end):
            try:
                claim(self._bytes.fileno(), self._allocated * token, (wanted - self._allocated) * token)
            except OSError as error:
                said = error.strerror
                continue
            self._allocated = wanted
            return True
        kept = f"{self._allocated * token >> 20} MiB of what the lower layers make of the items are kept, no more"
        _LOG.warning("%s: %s", said, kept)
        self._usable = self._allocated
        return False

    def _make_room(self, start: int, end: int) -> None:
        """Drop, oldest first, what lies in [start, end), and what the last round left behind where a new one begins."""
        begins_anew = start < self._next
        while self._order:
            key, place, length = self._order[0]
            if not (begins_anew and place >= self._next) and not (place < end and place + length > start):
                return
            self._order.popleft()
            if key in self._places and self._places[key][0] == place:
                del self._places[key]

    def _enter(self, key: str, start: int, length: int, checksum: int | None) -> None:
        self._order.append((key, start, length))
        self._places[key] = start, length, checksum
        self._next = start + length

    def _read_index(self) -> None:
        self._index.seek(0)
        for line in self._index:
            try:
                entry = json.loads(line)
                key, start, length, checksum = entry["key"], entry["start"], entry["length"], entry["crc32"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that a killed process did not finish
            self._make_room(start, start + length)
            self._enter(key, start, length, checksum)
            self._allocated = max(self._allocated, start + length)

    def _write_index(self) -> None:
        """The entries that are still there, alone."""
        kept = [(key, start, length, self._places[key][2]) for key, start, length in self._order if key in self._places]
        self._index.seek(0)
        self._index.truncate()
        for key, start, length, checksum in kept:
            self._index.write(json.dumps({"key": key, "start": start, "length": length, "crc32": checksum}) + "\n")
        self._index.flush()


def _locked(path: Path) -> IO[str] | None:
    """The file, held by this process alone; None where another has it, or it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _checksum(hidden: torch.Tensor) -> int:
    return zlib.crc32(hidden.contiguous().view(torch.uint8).numpy().tobytes())


def _key(example: Encoded) -> str:
    """By the tokens that go through the model: all but the last, which is only predicted."""
    return hashlib.blake2b(json.dumps(example.tokens[:-1]).encode(), digest_size=16).hexdigest()
