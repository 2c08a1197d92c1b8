"""Children forked from one interpreter that has imported everything: killed and started again in no time.

For scripts that tests run in a process of their own, with `environment()`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

Tell = Callable[[str], object]
"""Says a line to the parent."""


def environment() -> dict[str, str]:
    """Of such a process: it finds the tests' helpers, and computes with one thread."""
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def fork(place: Path, work: Callable[[Path, Tell], object]) -> tuple[int, IO[str]]:
    """A child that works in a place: its process id, and what it tells."""
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            work(place, lambda line: os.write(writing, f"{line}\n".encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, os.fdopen(reading)


def ended(child: int, said: IO[str]) -> tuple[int, list[str]]:
    """Wait for a child's end: its exit code (a signal's number below zero), and the lines that it has told last."""
    lines = said.read().split("\n")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines
