"""Simulated sample data: two tasks and the same eight made-up people in both, for `oppu demo`; see README.md here."""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple


class SampleTask(NamedTuple):
    """Where a sample task lies."""

    task: Path
    """The task file (TOML)."""
    data: Path
    """Histories and questions (JSONL, as one's own data)."""


def sample_tasks() -> tuple[SampleTask, ...]:
    """The label task, then the text task."""
    folder = Path(str(files(__name__)))
    return tuple(
        SampleTask(folder / f"{name}.toml", folder / f"{name}.jsonl") for name in ("note_filing", "subject_line")
    )
