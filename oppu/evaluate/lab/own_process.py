"""A measurement in a process of its own, so that peak memory is its own."""

import re
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from oppu.errors import ModelError

S = TypeVar("S")
T = TypeVar("T")


def in_own_process(work: Callable[[S], T], given: S) -> T:
    """`work(given)` in a new Python process; `work` is a function of a module. ModelError where it is killed."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_end_quietly) as pool:
        try:
            return pool.submit(work, given).result()
        except BrokenProcessPool:
            raise ModelError(
                "the process of a measurement was ended from outside, perhaps for want of memory",
                fix="measure smaller sizes; the same command goes on from there",
            ) from None


def peak_memory_mib() -> float:
    """The most memory that this process has held so far, in MiB; Linux counts from the start of the program."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would begin with what the parent held
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None:
            return int(found[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _end_quietly() -> None:
    """Ctrl-C ends the process without a word: the parent says it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
