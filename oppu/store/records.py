"""What the store says of what it keeps: frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oppu.records import Profile


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """One version of one user's module for a task, a setting and a base."""

    user_id: str
    task: str
    setting: str
    base_name: str
    base_fingerprint: str
    version: int
    """1, 2, 3, ... within user, task, setting and base."""
    created: str
    """UTC, ISO 8601."""
    size_bytes: int
    """Of both files."""
    sha256: str
    """Of `cat adapter_config.json adapter_model.safetensors`."""
    path: Path | str
    """The folder of the module's two files; on object storage, its URL."""
    location: str
    """The same, relative to where the store keeps its files."""
    training: Mapping[str, Any]
    """How it was made: config, seed, losses, fingerprint."""


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """A base model, and how it was made."""

    name: str
    fingerprint: str
    path: Path
    """On this machine."""
    created: str
    """UTC, ISO 8601."""
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """A user's profiles in a task, made in one way, and what they were made from."""

    user_id: str
    task: str
    made: str
    """`count`, or `model:` or `api:` and the model's name."""
    how: str
    """Digest over what decided them besides the items: prompt, model, number of profiles."""
    items_digest: str
    """Over the items, word by word."""
    item_ids: tuple[str, ...]
    """Of these items, oldest first."""
    profiles: tuple[Profile, ...]
    """Along the history, oldest first."""
    created: str = ""
    """UTC, ISO 8601; the store says it."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion removed."""

    user_id: str
    task: str | None
    """None: all tasks."""
    modules: int
    """All versions counted."""
    history_items: int
    size_bytes: int
    """Of the module files."""
    paths: tuple[Path | str, ...]
    """The modules' folders, which are gone."""
    profiles: int = 0
    """Rows of textual profiles."""
    checkpoints: int = 0
    """Trainings under way."""
