"""One run, one table: several methods on the same users and questions, with everything written to one folder.

A finished method is a cell on disk; an interrupted run goes on with the users under way and the answers as they were a
minute before. Bases and modules lie in the run's own store, so that the answers can be looked into later (`oppu ask
--store OUT/store`).
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from oppu.adapt import AdaptConfig, adapt_into_store, adaption_examples, check_made_in
from oppu.answering import answer_users
from oppu.data import until_asked, without_test_questions
from oppu.describe.default import default_profiles, default_way, is_counted
from oppu.describe.writer import ANSWER_TOKENS
from oppu.errors import ConfigError, DataError, ModelError
from oppu.evaluate.baselines import baselines
from oppu.evaluate.circumstances import versions
from oppu.evaluate.design import Experiment, cell_fingerprint, fingerprint_without, run_fingerprint
from oppu.evaluate.reports.report import write_report
from oppu.evaluate.results import Cell, Prediction, read_cells, write_cell, write_results
from oppu.evaluate.run_folder import prepare, record_for
from oppu.evaluate.under_way import UnderWay, forget
from oppu.examples import PLAIN, Setting
from oppu.model.base import Base, load_base
from oppu.model.devices import AUTO, dtype_name, find_device
from oppu.model.engine import Progress
from oppu.model.quantize import check_quantization
from oppu.personalize import Plan, base_of, longest_histories, personalize
from oppu.profiles.timeline import WHOLE
from oppu.records import Dataset, User, UserProfile
from oppu.store import Store
from oppu.train import Machine

_LOG = logging.getLogger("oppu.evaluate")


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
    bases: Path | None = None,
    on_stage: Callable[[Stage], None] = lambda _: None,
) -> tuple[Cell, ...]:
    """Run every method that is not finished yet; write results.json, predictions/ and report.html; return the cells.

    `profiles`: what may be shown of users and held-out users, for the methods with a profile; where it has changed,
    these methods are run again, and no others. None: for the columns of Table 1 they are made as `oppu profile` does by
    default, and kept in the run's store; no other method may need them.
    `report`: False leaves report.html out. `bases`: another run's folder, or a store's, whose bases are taken over
    where they were adapted on the very same.
    """
    experiment = _settled(experiment, device)
    checked = _checked(experiment, dataset, out, profiles, fresh, bases)
    prepare(out, checked.record, fresh, checked.is_outdated)
    if checked.without_profile:
        who = f"{checked.without_profile} of {len(checked.users)} users"
        _LOG.warning("%s have no profile; their prompts show none", who)
    users, base_users, finished = checked.users, checked.base_users, dict(checked.finished)
    with Store(out / "store") as store:
        bench = _Bench(
            experiment,
            base_users,
            profiles,
            store,
            out,
            checked.fingerprints,
            machine or Machine(),
            device,
            bases,
            on_stage,
        )
        for name, k in checked.fingerprints:
            if (name, k) not in finished:
                finished[name, k] = bench.cell(name, k, users)
                write_cell(out, finished[name, k])
                forget(out, finished[name, k].name)
    cells = [_baseline(name, found) for name, found in baselines(experiment.task, users, base_users).items()]
    cells += [finished[column] for column in checked.fingerprints]
    config = _config(experiment, command, profiles)
    write_results(out, experiment.task, config, cells)
    if report:
        write_report(out, experiment.task, config, cells, {user.id: len(user.history) for user in users})
    return tuple(cells)


def check(
    experiment: Experiment,
    dataset: Dataset,
    out: Path,
    *,
    profiles: Mapping[str, UserProfile] | None = None,
    fresh: bool = False,
    device: str = AUTO,
    bases: Path | None = None,
) -> None:
    """Raise what `run` would raise of these before it trains anything; nothing is written."""
    _checked(_settled(experiment, device), dataset, out, profiles, fresh, bases)


def _settled(experiment: Experiment, device: str) -> Experiment:
    """With the precision that auto stands for: cells of another one are not taken for these."""
    return replace(experiment, dtype=dtype_name(experiment.dtype, find_device(device)))


@dataclass(frozen=True, slots=True)
class _Checked:
    """A run whose inputs are found right."""

    users: Sequence[User]
    base_users: Sequence[User]
    fingerprints: Mapping[tuple[str, int], str]
    """Of the cells, by method and k, in the order of the table."""
    finished: Mapping[tuple[str, int], Cell]
    """What an earlier run left of them."""
    is_outdated: bool
    """Whether some of what it left was made otherwise, and is to be made anew."""
    without_profile: int
    """Users whose prompts show none where they should."""
    record: Mapping[str, Any]
    """What is to stand in run.json."""


def _checked(
    experiment: Experiment,
    dataset: Dataset,
    out: Path,
    profiles: Mapping[str, UserProfile] | None,
    fresh: bool,
    bases: Path | None,
) -> _Checked:
    check_made_in(bases)
    dataset = without_test_questions(experiment.task, dataset)
    asked = [user for user in until_asked(dataset.users) if user.queries]
    users, base_users = longest_histories(asked, experiment.users), dataset.base_users
    _check_data(experiment, users, base_users)
    methods = {(name, k): experiment.method_of(name, k) for name, k in experiment.columns()}
    way = _way_of_profiles(experiment) if profiles is None and experiment.is_table_1 else ""
    needing = [name for (name, _), m in methods.items() if m.setting.profile]
    if needing and profiles is None and not way:
        raise ConfigError(f"{needing[0]} shows profiles, and there are none", where="--methods", fix="give --profiles")
    without_profile = 0
    if needing and profiles is not None:
        without_profile = _without_profile(profiles, users)
    if experiment.quantize is not None:
        check_quantization(experiment.quantize)
    fingerprint = run_fingerprint(experiment, users, base_users)
    without_modules = fingerprint_without(experiment, users, base_users, ("personal", "newest"))
    everyone = (*users, *base_users)
    wanted = {
        column: cell_fingerprint(fingerprint if m.personal else without_modules, m, everyone, profiles, way)
        for column, m in methods.items()
    }
    modules = fingerprint if any(m.personal for m in methods.values()) else None
    record = record_for(out, without_modules, modules, fresh)
    kept = {(cell.method, cell.k): cell for cell in (() if fresh else read_cells(out))}
    finished = {column: cell for column, cell in kept.items() if wanted.get(column) == cell.fingerprint}
    is_outdated = any(column in wanted and column not in finished for column in kept)
    return _Checked(users, base_users, wanted, finished, is_outdated, without_profile, record)


def _check_data(experiment: Experiment, users: Sequence[User], base_users: Sequence[User]) -> None:
    """DataError for no question, one without an answer, and for held-out users who give nothing to adapt on."""
    task = experiment.task
    if not users:
        raise DataError(["no user has a question"], where=task.name, fix="give data with questions and their answers")
    if unlabelled := [query.id for user in users for query in user.queries if query.gold is None]:
        problems = [f"query {name} has no label" for name in unlabelled]
        raise DataError(problems, where=task.name, fix="an experiment needs every answer")
    if experiment.adapt is not None and not any(_has_pairs(user, experiment.histories) for user in base_users):
        what = "there are no held-out users to adapt the base on"
        raise DataError([what], where=task.name, fix="give --base-data, or use the plain base with --no-adapt")


def _without_profile(profiles: Mapping[str, UserProfile], users: Sequence[User]) -> int:
    """How many of those who are asked have no profile; DataError where nobody has one."""
    without = sum(user.id not in profiles for user in users)
    if without == len(users):
        what = f"none of the {len(profiles)} profiles is of a user who is asked"
        raise DataError([what], where="--profiles", fix="make them with `oppu profile` on the same data")
    return without


def _has_pairs(user: User, histories: bool) -> bool:
    """Whether there is anything of the held-out user to adapt on."""
    return bool(histories and user.history) or any(query.gold is not None for query in user.queries)


@dataclass
class _Bench:
    """What the methods of one run share: the data, the store, and the base in memory."""

    experiment: Experiment
    base_users: Sequence[User]
    profiles: Mapping[str, UserProfile] | None
    store: Store
    out: Path
    fingerprints: Mapping[tuple[str, int], str]
    """Of the cells, by method and k."""
    machine: Machine
    device: str
    bases: Path | None
    on_stage: Callable[[Stage], None]
    base: Base | None = None
    base_setting: Setting | None = None

    def cell(self, name: str, k: int, users: Sequence[User]) -> Cell:
        """One method, from its base to its answers."""
        wanted = self.experiment.method_of(name, k)
        if wanted.setting.profile and self.profiles is None:
            self.profiles = self._own_profiles(users)
        base = self._adapted(wanted.adapted_with)
        fingerprint = self.fingerprints[name, k]
        plan = Plan(self.experiment.task, self.experiment.personal, wanted.setting, self.experiment.newest)
        with UnderWay(self.out, f"{name}-k{k}", fingerprint, self.machine.checkpoint_s) as kept:
            curves = self._train(f"{name} k={k}: training", base, plan, users, kept) if wanted.personal else {}
            self._answer(f"{name} k={k}: answers", base, plan, users, self.store if wanted.personal else None, kept)
        predictions = tuple(
            Prediction(user.id, query.id, str(query.gold), kept.answers[user.id, query.id])
            for user in users
            for query in user.queries
        )
        return Cell(name, k, predictions, kept.seconds, curves, fingerprint)

    def _own_profiles(self, users: Sequence[User]) -> Mapping[str, UserProfile]:
        """Those that `oppu profile` makes by default, with those of the held-out users whose pairs adapt a base."""
        self.base = self.base_setting = None  # lets go of its memory: another model may write them
        described = [*users, *self._adapted_on()]
        stage = f"profiles by {default_way(self.experiment.task)}"
        return default_profiles(
            self.store,
            self.experiment.task,
            described,
            self.experiment.own_profiles,
            self.experiment.profile_tokens,
            device=self.device,
            on_progress=lambda done, total: self.on_stage(Stage(stage, done, total)),
        )

    def _adapted_on(self) -> list[User]:
        """The held-out users whose pairs are drawn: the same in every setting."""
        wanted = self.experiment
        if wanted.adapt is None:
            return []
        config = AdaptConfig(wanted.adapt, PLAIN, wanted.histories, wanted.pairs)
        drawn = {example.user_id for example in adaption_examples(wanted.task, self.base_users, config)}
        return [user for user in self.base_users if user.id in drawn]

    def _answer(
        self, stage: str, base: Base, plan: Plan, users: Sequence[User], store: Store | None, kept: UnderWay
    ) -> None:
        """Ask what is not answered yet; the answers are in `kept`."""
        total = sum(len(user.queries) for user in users)

        def answered(user_id: str, query_id: str, output: str) -> None:
            kept.add(user_id, query_id, output)
            self.on_stage(Stage(stage, len(kept.answers), total))

        open_users = [
            replace(u, queries=tuple(q for q in u.queries if (u.id, q.id) not in kept.answers)) for u in users
        ]
        asked = [user for user in open_users if user.queries]
        answer_users(base, plan, asked, store, self.profiles, self.machine, answered)

    def _train(
        self, stage: str, base: Base, plan: Plan, users: Sequence[User], kept: UnderWay
    ) -> dict[str, tuple[float, ...]]:
        tokens = 0
        done = 0

        def progress(news: Progress) -> None:
            nonlocal tokens
            tokens += news.tokens
            kept.tick()
            self.on_stage(Stage(stage, done, len(users), tokens))

        curves: dict[str, tuple[float, ...]] = {}
        for result in personalize(self.store, base, plan, users, self.profiles, self.machine, progress):
            done += 1
            if result.status == "failed":  # the base's answers in its place would spoil the comparison
                raise ModelError(result.reason)
            if result.record is not None:
                curves[result.user_id] = tuple(result.record.training["losses"])
            if result.status == "trained":
                kept.keep()
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
            made_in=self.bases,
            on_progress=progress,
        )


def _baseline(name: str, predictions: Sequence[Prediction]) -> Cell:
    return Cell(name, 0, tuple(predictions), 0.0)


def _way_of_profiles(experiment: Experiment) -> str:
    task = experiment.task
    way = f"{default_way(task)}: {task.profile_count or task.profile_prompt}"
    if _are_profiles_usual(experiment):
        return way
    return f"{way} {json.dumps([asdict(experiment.own_profiles), experiment.profile_tokens])}"


def _are_profiles_usual(experiment: Experiment) -> bool:
    """Whether the run's own profiles are counted, or written as `oppu profile` writes them unless told otherwise."""
    usual = (experiment.own_profiles, experiment.profile_tokens) == (WHOLE, ANSWER_TOKENS)
    return usual or is_counted(experiment.task)


def _config(experiment: Experiment, command: str, profiles: Mapping[str, UserProfile] | None) -> Mapping[str, Any]:
    shown: dict[str, str] = {}
    if profiles is not None:
        shown["profiles"] = "given"
    elif experiment.is_table_1:
        shown["profiles"] = default_way(experiment.task)
        if not _are_profiles_usual(experiment):
            shown["profiles"] += f", {experiment.own_profiles}, {experiment.profile_tokens} tokens at most"
    left_out = ("task", "own_profiles", "profile_tokens")
    return {
        "command": command,
        **{k: v for k, v in asdict(experiment).items() if k not in left_out},
        **shown,
        "versions": versions(),
    }
