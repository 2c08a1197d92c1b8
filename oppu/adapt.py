"""Base task adaption (section 2.2): LoRA on held-out users' questions, merged into a base with a name and a record.

Theta^(B), Theta^(R) and Theta^(P) differ in the Setting of the prompts alone. What is under way is kept every minute in
a file beside the base's folder, so an interrupted adaption goes on where it stopped.
"""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from oppu import __version__
from oppu.errors import ConfigError, DataError, ModelError, OppuError
from oppu.examples import PLAIN, Setting, query_examples, training_examples
from oppu.model.base import Base, load_base, record_of, save_base
from oppu.model.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint
from oppu.model.engine import Progress
from oppu.model.quantize import check_mergeable
from oppu.model.tokens import encode
from oppu.records import Example, User, UserProfile
from oppu.store import Store
from oppu.store.files import (
    is_garbage,
    make_folders,
    os_errors,
    sync_folder,
    sync_tree,
    temporary_name,
    write_atomically,
)
from oppu.tasks import Task
from oppu.train import Job, Machine, TrainConfig, train_into_base

_LOG = logging.getLogger("oppu.adapt")


@dataclass(frozen=True, slots=True)
class AdaptConfig:
    """What decides an adapted base, besides the base and the users."""

    train: TrainConfig
    setting: Setting = PLAIN
    histories: bool = True
    """Whether the held-out users' histories serve as training pairs, too. # differs from the paper: queries alone"""
    pairs: int | None = None
    """Training pairs, drawn at random from all; None: all of them."""


def adaption_examples(
    task: Task, users: Sequence[User], config: AdaptConfig, profiles: Mapping[str, UserProfile] | None = None
) -> list[Example]:
    """The pairs to adapt on: every answered question and, if wanted, every history item of the held-out users."""
    found: list[Example] = []
    for user in users:
        profile = (profiles or {}).get(user.id)
        found += [e for e in query_examples(task, user, config.setting, profile) if e.answer is not None]
        if config.histories:
            found += training_examples(task, user, config.setting, profile)
    if config.pairs is not None and config.pairs < len(found):
        found = random.Random(config.train.seed).sample(found, config.pairs)
    if not found:
        raise DataError(
            ["there are no held-out users to adapt the base on"], fix="give base users, or use the plain base"
        )
    return found


def adaption_fingerprint(base: Base, task: Task, examples: Sequence[Example], config: AdaptConfig) -> str:
    """Over everything that decides the adapted base; equal fingerprints mean that none needs to be made."""
    parts = [__version__, base.fingerprint, task.model_dump_json(), json.dumps(asdict(config), sort_keys=True)]
    if base.model.dtype != torch.float32:
        parts.append(str(base.model.dtype))
    digest = hashlib.sha256("\n".join(parts).encode())
    for example in examples:
        digest.update(f"\0{example.prompt}\0{example.written}".encode())
    return digest.hexdigest()


def adapt_into_store(
    store: Store,
    base: Base,
    task: Task,
    users: Sequence[User],
    config: AdaptConfig,
    *,
    name: str | None = None,
    profiles: Mapping[str, UserProfile] | None = None,
    machine: Machine | None = None,
    made_in: Path | None = None,
    on_progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> Base:
    """The base adapted to the task, by default called TASK-SETTING: the store's, when it was made from the very same.

    `made_in`: another run's folder, or a store's, whose base is taken over when it was made from the very same;
    ConfigError where there is no such folder.
    `on_progress(examples done, of, tokens)`. `base` is used up: its weights are let go of before the adapted one is
    loaded. ModelError for a quantized base: the adapted one may be quantized when it is loaded.
    """
    examples = adaption_examples(task, users, config, profiles)
    name = name if name is not None else f"{task.name}-{config.setting.name}"
    return adapt_on(
        store, base, task, examples, config, name=name, machine=machine, made_in=made_in, on_progress=on_progress
    )


def check_made_in(run: Path | None) -> None:
    """ConfigError for a `made_in` that is no folder, before anything is made."""
    if run is not None and not run.is_dir():
        raise ConfigError("is no folder", where=str(run), fix="give the folder of a run, a study or a store")


def adapt_on(
    store: Store,
    base: Base,
    task: Task,
    examples: Sequence[Example],
    config: AdaptConfig,
    *,
    name: str,
    machine: Machine | None = None,
    made_in: Path | None = None,
    on_progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> Base:
    """As `adapt_into_store`, on these very examples."""
    check_mergeable(base.model, base.name)
    there = store.base(name)
    folder = store.base_folder(name)
    wanted = adaption_fingerprint(base, task, examples, config)
    if there is not None and there.path.is_dir() and there.record.get("input_fingerprint") == wanted:
        return _in_place_of(base, there.path)
    if made_in is not None and not _is_made(folder, wanted):
        _take_over(made_in, folder, wanted)
    if _is_made(folder, wanted):  # elsewhere, or by a run that was killed before it could put it into the store
        made = _in_place_of(base, folder)
        store.put_base(name, made.fingerprint, folder, made.record)
        _checkpoint_file(folder).unlink(missing_ok=True)
        return made
    done = tokens = 0

    def count(news: Progress) -> None:
        nonlocal done, tokens
        done, tokens = done + news.examples, tokens + news.tokens
        on_progress(done, len(examples) * config.train.epochs, tokens)

    adapted = adapt(base, task, examples, config, folder, name=name, machine=machine, on_progress=count)
    store.put_base(name, adapted.fingerprint, folder, adapted.record)
    return adapted


def adapt(
    base: Base,
    task: Task,
    examples: Sequence[Example],
    config: AdaptConfig,
    folder: Path,
    *,
    name: str,
    machine: Machine | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Base:
    """Adapt `base` to a task, write it to `folder` (whole or not at all) and return it loaded anew.

    Uses `base` up: load it again if it is needed as it was. An adaption of the same inputs that
    was interrupted is gone on with; its examples that are done are told at once.
    """
    started = datetime.now(UTC)
    fingerprint = adaption_fingerprint(base, task, examples, config)
    encoded = tuple(encode(base.tokenizer, examples, config.train.tokens_for(base)))
    file = _checkpoint_file(folder)
    begun = _begun(file, fingerprint)
    if begun is not None:
        on_progress(Progress(0, begun.examples_done(len(encoded), config.train.batch_size)))

    def keep(under_way: Iterator[tuple[str, Checkpoint]]) -> None:
        for _, checkpoint in under_way:
            try:
                with os_errors(file):
                    make_folders(file.parent)
                write_atomically(file, checkpoint_bytes(checkpoint, fingerprint))
            except OppuError as error:
                _LOG.warning("what is under way cannot be kept; the adaption goes on (%s)", error.line())

    job = Job(f"base:{task.name}", encoded, begun=begun)
    losses = train_into_base(base, job, config.train, machine, on_progress, keep)
    record: dict[str, Any] = {
        "name": name,
        "family": base.family,
        "made_from": {"name": base.name, "fingerprint": base.fingerprint},
        "task": task.name,
        "setting": config.setting.name,
        "config": asdict(config),
        "examples": len(examples),
        "input_fingerprint": fingerprint,
        "losses": losses,
        "made": started.isoformat(timespec="seconds"),
        "seconds": (begun.seconds if begun else 0.0) + (datetime.now(UTC) - started).total_seconds(),
        "oppu": __version__,
    }
    with os_errors(folder):
        _fill(folder, lambda making: save_base(replace(base, record=record), making))
        file.unlink(missing_ok=True)
    return _in_place_of(base, folder)


def _in_place_of(base: Base, folder: Path) -> Base:
    """The base in the folder, where and as precise as the other one, which lets go of its weights first."""
    device, dtype = base.device, base.model.dtype
    base.model.to("meta")
    return load_base(str(folder), device=device, dtype=dtype)


def _take_over(run: Path, folder: Path, fingerprint: str) -> None:
    """Fills the folder with a base of the same name that a run, or a store, elsewhere has made from these inputs."""
    check_made_in(run)
    found = next((place for place in _bases_of(run, folder.name) if _is_made(place, fingerprint)), None)
    if found is None:
        _LOG.warning("%s holds no base '%s' made from the same; one is adapted", run, folder.name)
        return
    with os_errors(folder):
        _fill(folder, lambda making: shutil.copytree(found, making, copy_function=_link, dirs_exist_ok=True))


def _bases_of(run: Path, name: str) -> Iterator[Path]:
    """Where a run's folder, or a store's, would hold the base."""
    return (run / inner / name for inner in ("store/bases", "bases"))


def _link(source: str, target: str) -> None:
    """One file for both, which never change; a copy where the disks differ."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _fill(folder: Path, write: Callable[[Path], object]) -> None:
    """Puts what `write` writes in the folder's place, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_garbage(folder.parent)
    making, old = (folder.parent / temporary_name(folder.name) for _ in range(2))
    making.mkdir()
    try:
        write(making)
        sync_tree(making)
        if folder.exists():
            os.rename(folder, old)
        os.rename(making, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _checkpoint_file(folder: Path) -> Path:
    """Where an adaption that is to fill the folder keeps what is under way."""
    return folder.parent / f".{folder.name}.checkpoint"


def _clear_garbage(folder: Path) -> None:
    """What killed adaptions left half written."""
    for left in folder.glob(".*.tmp"):
        if is_garbage(left):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _is_made(folder: Path, fingerprint: str) -> bool:
    """Whether the base in the folder, which is whole if it is there, was made from these inputs."""
    try:
        return record_of(folder).get("input_fingerprint") == fingerprint
    except ModelError:
        return False


def _begun(file: Path, fingerprint: str) -> Checkpoint | None:
    """Where the adaption of these inputs was interrupted; a damaged checkpoint does not count."""
    try:
        return read_checkpoint(file.read_bytes(), fingerprint) if file.is_file() else None
    except (OSError, ModelError) as error:
        what = "%s: the checkpoint cannot be used, so the adaption begins anew (%s)"
        _LOG.warning(what, file, error)
        return None
