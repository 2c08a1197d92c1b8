"""One run, one table: several methods on the same users and questions, with everything written to one folder.

A finished method is a cell on disk; an interrupted run goes on where it stopped, down to the last finished user. Bases
and modules lie in the run's own store, so that the answers can be looked into later (`oppu ask --store OUT/store`).
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from oppu import __version__
from oppu.adapt import AdaptConfig, adapt_into_store
from oppu.errors import ConfigError, DataError, ModelError
from oppu.evaluate.baselines import baselines
from oppu.evaluate.circumstances import versions
from oppu.evaluate.report import write_report
from oppu.evaluate.results import Cell, Prediction, read_cells, write_cell, write_results
from oppu.examples import PLAIN, Setting
from oppu.model.base import Base, load_base
from oppu.model.devices import AUTO, find_device, find_dtype
from oppu.model.engine import Progress
from oppu.model.quantize import check_quantization
from oppu.personalize import Plan, answer_users, base_of, longest_histories, personalize
from oppu.records import Dataset, User, UserProfile
from oppu.store import Store
from oppu.store.files import make_folders, os_errors, write_atomically
from oppu.tasks import Task
from oppu.train import Machine, TrainConfig


@dataclass(frozen=True, slots=True)
class Method:
    """A column of Table 1: what the prompt shows, what the base was adapted with, and whether there is a module."""

    setting: Setting
    adapted_with: Setting
    personal: bool


def method(name: str, k: int, seed: int) -> Method:
    """A method of the paper's tables by its name; ConfigError for an unknown one."""
    retrieval = Setting(k=k, seed=seed)
    profile, both = Setting(profile=True, seed=seed), Setting(k=k, profile=True, seed=seed)
    methods = {
        "base": Method(PLAIN, PLAIN, False),
        "random": Method(Setting(k=k, retriever="random", seed=seed), retrieval, False),
        "rag": Method(retrieval, retrieval, False),
        "oppu": Method(PLAIN, PLAIN, True),
        "oppu+rag": Method(retrieval, retrieval, True),
        "pag": Method(profile, profile, False),
        "pag+rag": Method(both, both, False),
        "oppu+pag": Method(profile, profile, True),
        "oppu+pag+rag": Method(both, both, True),
    }
    if name not in methods:
        raise ConfigError(f"unknown method '{name}'", where="--methods", fix=f"use some of: {', '.join(methods)}")
    return methods[name]


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is compared, on whom, and how everything is trained."""

    task: Task
    methods: tuple[str, ...]
    k: tuple[int, ...]
    base: str
    adapt: TrainConfig | None
    """None: no task adaption; every method uses the base as it is."""
    personal: TrainConfig
    users: int | None = None
    """The users with the longest histories, so many; None: all."""
    newest: int | None = None
    pairs: int | None = None
    histories: bool = True
    seed: int = 0
    dtype: str = AUTO
    quantize: str | None = None
    """How the base is rounded for modules and answers; the task adaption before that is in full precision."""

    def columns(self) -> list[tuple[str, int]]:
        """(method, k) of each row of the table; methods without retrieval have k = 0."""
        listed: list[tuple[str, int]] = []
        for name in self.methods:
            for k in self.k:
                column = (name, method(name, k, self.seed).setting.k)
                if column not in listed:
                    listed.append(column)
        return listed


@dataclass(frozen=True, slots=True)
class Stage:
    """News from a run: what is under way and how much of it is done."""

    name: str
    done: int
    total: int
    tokens: int = 0


def run(
    experiment: Experiment,
    dataset: Dataset,
    out: Path,
    *,
    profiles: Mapping[str, UserProfile] | None = None,
    fresh: bool = False,
    report: bool = True,
    command: str = "",
    machine: Machine | None = None,
    device: str = AUTO,
    on_stage: Callable[[Stage], None] = lambda _: None,
) -> tuple[Cell, ...]:
    """Run every method that is not finished yet; write results.json, predictions/ and report.html; return the cells.

    `profiles`: what may be shown of users and held-out users, for the methods with a profile. `report`: False leaves
    report.html out.
    """
    users = longest_histories(dataset.users, experiment.users)
    unlabelled = [q.id for user in users for q in user.queries if q.gold is None]
    if unlabelled:
        raise DataError([f"query {name} has no label" for name in unlabelled], fix="an experiment needs every answer")
    columns = experiment.columns()  # first, so that an unknown method costs nothing
    if profiles is None and (needing := [name for name, k in columns if method(name, k, 0).setting.profile]):
        raise ConfigError(f"{needing[0]} shows profiles, and there are none", where="--methods", fix="give --profiles")
    find_dtype(experiment.dtype, find_device(device))
    if experiment.quantize is not None:
        check_quantization(experiment.quantize)
    _prepare(out, run_fingerprint(experiment, users, dataset.base_users, profiles), fresh)
    finished = {(cell.method, cell.k): cell for cell in read_cells(out)}
    with Store(out / "store") as store:
        bench = _Bench(experiment, dataset.base_users, profiles, store, machine or Machine(), device, on_stage)
        for name, k in columns:
            if (name, k) not in finished:
                finished[name, k] = bench.cell(name, k, users)
                write_cell(out, finished[name, k])
    cells = [_baseline(name, found) for name, found in baselines(experiment.task, users, dataset.base_users).items()]
    cells += [finished[column] for column in columns]
    config = _config(experiment, command)
    write_results(out, experiment.task, config, cells)
    if report:
        write_report(out, experiment.task, config, cells, {user.id: len(user.history) for user in users})
    return tuple(cells)


@dataclass
class _Bench:
    """What the methods of one run share: the data, the store, and the base in memory."""

    experiment: Experiment
    base_users: Sequence[User]
    profiles: Mapping[str, UserProfile] | None
    store: Store
    machine: Machine
    device: str
    on_stage: Callable[[Stage], None]
    base: Base | None = None
    base_setting: Setting | None = None

    def cell(self, name: str, k: int, users: Sequence[User]) -> Cell:
        """One method, from its base to its answers."""
        wanted = method(name, k, self.experiment.seed)
        base = self._adapted(wanted.adapted_with)
        started = time.perf_counter()
        plan = Plan(self.experiment.task, self.experiment.personal, wanted.setting, self.experiment.newest)
        curves = self._train(f"{name} k={k}: training", base, plan, users) if wanted.personal else {}
        answered = 0

        def count(more: int) -> None:
            nonlocal answered
            answered += more
            self.on_stage(Stage(f"{name} k={k}: answers", answered, sum(len(user.queries) for user in users)))

        outputs = answer_users(
            base, plan, users, self.store if wanted.personal else None, self.profiles, self.machine, count
        )
        predictions = tuple(
            Prediction(user.id, query.id, str(query.gold), output)
            for user in users
            for query, output in zip(user.queries, outputs[user.id], strict=True)
        )
        return Cell(name, k, predictions, time.perf_counter() - started, curves)

    def _train(self, stage: str, base: Base, plan: Plan, users: Sequence[User]) -> dict[str, tuple[float, ...]]:
        tokens = 0
        done = 0

        def progress(news: Progress) -> None:
            nonlocal tokens
            tokens += news.tokens
            self.on_stage(Stage(stage, done, len(users), tokens))

        curves: dict[str, tuple[float, ...]] = {}
        for result in personalize(self.store, base, plan, users, self.profiles, self.machine, progress):
            done += 1
            if result.status == "failed":  # the base's answers in its place would spoil the comparison
                raise ModelError(result.reason)
            if result.record is not None:
                curves[result.user_id] = tuple(result.record.training["losses"])
            self.on_stage(Stage(stage, done, len(users), tokens))
        return curves

    def _adapted(self, setting: Setting) -> Base:
        """The base adapted under `setting`: the one in memory, the one on disk, or a new one."""
        if self.base is not None and self.base_setting == setting:
            return self.base
        wanted = self.experiment
        self.base = None  # lets go of the other base's memory first
        quantize = wanted.quantize if wanted.adapt is None else None
        base = load_base(wanted.base, device=self.device, dtype=wanted.dtype, quantize=quantize)
        if wanted.adapt is not None:
            base = self._adapt(base, AdaptConfig(wanted.adapt, setting, wanted.histories, wanted.pairs))
            if wanted.quantize is not None:
                name = base.name
                del base
                base = base_of(self.store, name, device=self.device, dtype=wanted.dtype, quantize=wanted.quantize)
        self.base, self.base_setting = base, setting
        return base

    def _adapt(self, base: Base, config: AdaptConfig) -> Base:
        def progress(done: int, total: int, tokens: int) -> None:
            self.on_stage(Stage(f"adapting the base ({config.setting.name})", done, total, tokens))

        return adapt_into_store(
            self.store,
            base,
            self.experiment.task,
            self.base_users,
            config,
            profiles=self.profiles,
            machine=self.machine,
            on_progress=progress,
        )


def _baseline(name: str, predictions: Sequence[Prediction]) -> Cell:
    return Cell(name, 0, tuple(predictions), 0.0)


def run_fingerprint(
    experiment: Experiment,
    users: Sequence[User],
    base_users: Sequence[User],
    profiles: Mapping[str, UserProfile] | None,
) -> str:
    """Over what decides the numbers of every cell; the choice of methods and of k decides which cells there are."""
    config = asdict(replace(experiment, methods=(), k=(), task=None))  # type: ignore[arg-type]
    parts = [__version__, experiment.task.model_dump_json(), json.dumps(config, sort_keys=True, default=str)]
    digest = hashlib.sha256("\n".join(parts).encode())
    for user in (*users, *base_users):
        digest.update(json.dumps(asdict(user), sort_keys=True).encode())
        if profiles is not None and (profile := profiles.get(user.id)) is not None:
            told = profile if isinstance(profile, str) else [asdict(each) for each in profile]
            digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()


def _prepare(out: Path, fingerprint: str, fresh: bool) -> None:
    """Make the run's folder; cells of another run's inputs are not taken for this one's."""
    with os_errors(out):
        if fresh:
            for part in ("cells", "predictions", "store"):
                if (out / part).exists():
                    shutil.rmtree(out / part)
            for file in ("run.json", "results.json", "report.html"):
                (out / file).unlink(missing_ok=True)
        record = out / "run.json"
        if record.is_file() and record.read_bytes() != _run_record(fingerprint):
            raise ConfigError(
                "holds another run: its data, users, base or settings differ",
                where=str(out),
                fix="use --fresh to start anew, or another --out",
            )
        make_folders(out)
    write_atomically(record, _run_record(fingerprint))


def _run_record(fingerprint: str) -> bytes:
    return json.dumps({"fingerprint": fingerprint}).encode()


def _config(experiment: Experiment, command: str) -> Mapping[str, Any]:
    return {
        "command": command,
        **{k: v for k, v in asdict(experiment).items() if k != "task"},
        "versions": versions(),
    }
