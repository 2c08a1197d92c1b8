"""Work for a process of its own; without torch, so that the process starts at once."""

import os

from oppu.errors import ModelError
from oppu.evaluate.lab.own_process import peak_memory_mib


def hold(mib: int) -> tuple[int, float]:
    """The process and its peak memory in MiB, after it held so many."""
    held = bytearray(mib << 20)
    held[::4096] = b"x" * len(held[::4096])  # touched, so that the system gives the pages
    return os.getpid(), peak_memory_mib()


def fail(reason: str) -> None:
    """An error of oppu's own."""
    raise ModelError(reason, where="there", fix="do it otherwise")


def be_killed(code: int) -> None:
    """Ends as a process does that the system kills."""
    os._exit(code)
