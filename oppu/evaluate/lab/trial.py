"""What studies that train modules share: their options, a task with its users, bases adapted once, a run per variant.

A variant is an `experiment.run` in a folder of its own under `out/runs`, named after its inputs: what is finished is
not computed again, and what changed does not stand in the way. All variants stand on the same adapted bases, in
`out/store`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from oppu.errors import ConfigError, DataError
from oppu.evaluate.comparisons import ScoredCell, is_baseline, score_cells
from oppu.evaluate.metrics import HIGHER_IS_BETTER, metrics_of, primary_metric
from oppu.evaluate.reports.panels import Series
from oppu.evaluate.reports.summary import TITLES, number, signed, title
from oppu.evaluate.results import Cell, predictions_file
from oppu.evaluate.significance import paired_difference
from oppu.evaluate.study import RUNS, STORE, Column, Value, Workplace, option
from oppu.records import Dataset, UserProfile
from oppu.tasks import Task, find_task

if TYPE_CHECKING:
    from oppu.evaluate.experiment import Stage
    from oppu.examples import Setting
    from oppu.recipes import Recipe
    from oppu.train import TrainConfig


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Whom a study trains modules for, and how; options as of `oppu experiment`, sizes for two cores."""

    task: str | None = option(
        "A task's name (`oppu tasks`), its LaMP id, or a TOML file of one's own. [default: simulated sample data]", None
    )
    data: Path | None = option("Folder or file with the users' histories; with --task.", None)
    base_data: Path | None = option("Data whose held-out users adapt the base. [default: --data]", None)
    base: str | None = option("Base model: the embedded one, a folder, or a name on the hub. [default: embedded]", None)
    retriever: str = option("Retriever, where items are retrieved: bm25, random, recent, or one of your own.", "bm25")
    users: int | None = option("The users with the longest histories.", 4, least=1)
    newest: int | None = option("Train on the newest so many items of a history.", 20, least=1)
    adapt: bool = option("Adapt the base to the task first (section 2.2).", True)
    adapt_histories: bool = option("Use held-out users' histories as pairs, too.", True)
    adapt_pairs: int | None = option(
        "Pairs to adapt on, drawn at random. [default: all; of the sample data 96]", None, least=1
    )
    adapt_epochs: int | None = option(
        "Passes over these pairs. [default: the base's; of the sample data 1]", None, least=1
    )
    bases: Path | None = option(
        "Folder of an experiment or another study, or a store: bases that it adapted on the same are taken over.", None
    )
    epochs: int | None = option("Passes over a history. [default: the base's]", None, least=1)
    learning_rate: float | None = option("Highest learning rate. [default: the base's]", None, least=0.0)
    batch_size: int | None = option("Examples per optimizer step. [default: the base's]", None, least=1)
    rank: int | None = option("Rank of the modules. [default: the base's]", None, least=1)
    seed: int = option("Seed of every random choice.", 0, least=0)
    device: str = option("Where the base lies: auto (CUDA where there is one), cpu, cuda, cuda:1 or mps.", "auto")


@dataclass(frozen=True, slots=True)
class TrialSettings(TrainingSettings):
    """The same for a study with one number of retrieved items."""

    k: int = option("Number of retrieved items.", 1, least=1)


S = TypeVar("S", bound=TrainingSettings)

_SAMPLE_PAIRS, _SAMPLE_EPOCHS = 96, 1
"""As in the demo."""


@dataclass(frozen=True, slots=True)
class AdaptedBase:
    """A base that variants stand on."""

    name: str
    """What `load_base` takes: the folder of an adapted one."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a variant."""

    cells: tuple[Cell, ...]
    """Baselines, then the methods in the order asked for, each at every k."""
    bases: Mapping[str, AdaptedBase]
    """What answered, by cell name; baselines have none."""
    stores: Mapping[str, Path]
    """Where the cell's modules lie, by cell name."""

    def cell(self, method: str, k: int | None = None) -> Cell:
        """The cell of a method (at this k; None: at the first)."""
        return next(cell for cell in self.cells if cell.method == method and k in (None, cell.k))


@dataclass
class Trial:
    """A task with the users of a study, and the bases that its variants share."""

    settings: TrainingSettings
    place: Workplace
    task: Task
    dataset: Dataset
    """The users with the longest histories, longest first, and the held-out ones."""
    recipe: "Recipe"
    """How base and modules are trained, by the base's settings and the options."""
    profiles: Mapping[str, UserProfile] | None = None
    """For methods with a profile."""
    _bases: "dict[Setting, AdaptedBase]" = field(default_factory=dict)

    @property
    def base_name(self) -> str:
        """The base as it was asked for."""
        return _base_name(self.settings)

    def adapted(self, setting: "Setting") -> AdaptedBase:
        """The base adapted under the setting, made once; with --no-adapt the base itself."""
        if setting not in self._bases:
            self._bases[setting] = self._adapt(setting)
        return self._bases[setting]

    def run(
        self,
        name: str,
        methods: Sequence[str],
        *,
        k: Sequence[int] = (1,),
        dataset: Dataset | None = None,
        task: Task | None = None,
        personal: "TrainConfig | None" = None,
    ) -> Ran:
        """A variant: these methods, each at every k and on the base that was adapted for its prompts.

        `name`: for the folder and the progress. `dataset`, `task`, `personal`: in place of the trial's own; the base
        is adapted on the trial's own task and data all the same.
        """
        from oppu.evaluate.design import Experiment, method, run_fingerprint
        from oppu.evaluate.experiment import run
        from oppu.model.devices import AUTO, dtype_name, find_device

        seed, data = self.settings.seed, dataset if dataset is not None else self.dataset
        retriever = self.settings.retriever
        groups: dict[Setting, tuple[int, list[str]]] = {}
        for items in k:
            for each in methods:
                asked = groups.setdefault(method(each, items, seed, retriever=retriever).adapted_with, (items, []))[1]
                if each not in asked:
                    asked.append(each)
        cells: dict[tuple[str, int], Cell] = {}
        bases, stores = {}, {}
        for setting, (items, asked) in groups.items():
            base = self.adapted(setting)
            experiment = Experiment(
                task=task if task is not None else self.task,
                methods=tuple(asked),
                k=(items,),
                base=base.name,
                adapt=None,
                personal=personal if personal is not None else self.recipe.personal,
                newest=self.settings.newest,
                seed=seed,
                dtype=dtype_name(AUTO, find_device(self.settings.device)),
                retriever=retriever,
            )
            key = run_fingerprint(experiment, data.users, data.base_users)[:12]
            out = self.place.out / RUNS / f"{name}-{setting.name}-{key}"
            device = self.settings.device
            shown = _Shown(self.place, name)
            found = run(experiment, data, out, profiles=self.profiles, report=False, device=device, on_stage=shown)
            for cell in found:
                if cells.setdefault((cell.method, cell.k), cell) is cell:
                    self.place.uses(out / predictions_file(cell), f"{name}: {cell.name}")
                if not is_baseline(cell.method):
                    bases[cell.name], stores[cell.name] = base, out / STORE
        # by their place in `methods`, as if it had been one run; baselines first
        order = {each: place for place, each in enumerate(methods)}
        listed = sorted(cells.values(), key=lambda cell: order.get(cell.method, -1))
        return Ran(tuple(listed), bases, stores)

    @property
    def subject(self) -> str:
        """On what: task, users, questions, base."""
        users = self.dataset.users
        queries = count(sum(len(user.queries) for user in users), "question")
        return f"{self.task.title}: {count(len(users), 'user')}, {queries}; base {self.base_name}"

    def base_note(self, how: str) -> str:
        """A sentence on the base; `how` it was adapted, where it was: `on whole items`."""
        return f"The base was adapted {how}." if self.settings.adapt else "The base is taken as it is, not adapted."

    def facts(self, more: str = "") -> str:
        """The line under a study's headline."""
        items = "all" if self.settings.newest is None else f"the newest {self.settings.newest}"
        return f"{self.subject}; modules of {items} items{more}."

    def _adapt(self, setting: "Setting") -> AdaptedBase:
        from oppu.adapt import AdaptConfig, adapt_into_store
        from oppu.model.base import load_base
        from oppu.store import Store

        base = load_base(self.base_name, device=self.settings.device)
        if not self.settings.adapt:
            return AdaptedBase(self.base_name, base.fingerprint)
        config = AdaptConfig(self.recipe.adapt, setting, self.settings.adapt_histories, self.settings.adapt_pairs)
        stage = f"adapting the base ({setting.name})"
        with Store((self.place.out / STORE).absolute()) as store:
            adapted = adapt_into_store(
                store,
                base,
                self.task,
                self.dataset.base_users,
                config,
                profiles=self.profiles,
                made_in=self.settings.bases,
                on_progress=lambda done, total, _: self.place.on_stage(stage, done, total),
            )
            return AdaptedBase(str(store.base_folder(adapted.name)), adapted.fingerprint)


def open_trial(
    settings: TrainingSettings, place: Workplace, *, profiles: Mapping[str, UserProfile] | None = None
) -> Trial:
    """Task, users and training settings that the options stand for; without --task the sample's label task.

    A user without a question is left out: nothing of it could be scored.
    """
    from oppu.adapt import check_made_in
    from oppu.data import read_dataset, until_asked, without_test_questions
    from oppu.examples import Setting
    from oppu.model.base import family_of
    from oppu.personalize import longest_histories
    from oppu.recipes import recipe_for

    Setting(retriever=settings.retriever)  # an unknown one is refused here, before anything is adapted
    check_made_in(settings.bases)
    if (settings.task is None) != (settings.data is None):
        given, missing = ("--task", "--data") if settings.data is None else ("--data", "--task")
        raise ConfigError(f"{given} needs {missing}", fix="give both, or neither for the sample data")
    if settings.task is None or settings.data is None:
        settings = on_sample(settings)
    task, data = find_task(str(settings.task)), Path(str(settings.data))
    dataset = read_dataset(data, task, settings.base_data)
    dataset = without_test_questions(task, dataset)
    users = tuple(longest_histories([user for user in until_asked(dataset.users) if user.queries], settings.users))
    if not any(user.history for user in users):
        raise DataError(["nobody has both a history and a question"], where=str(data), fix="use data with both")
    recipe = _with_options(recipe_for(family_of(_base_name(settings)), task), settings)
    return Trial(settings, place, task, replace(dataset, users=users), recipe, profiles)


def on_sample(settings: S, place: int = 0) -> S:
    """The settings on the sample's label task (0) or text task (1), with an adaption that takes a minute."""
    from oppu.data.sample import sample_tasks

    sample = sample_tasks()[place]
    changes: dict[str, Any] = {
        "task": str(sample.task),
        "data": sample.data,
        "adapt_pairs": settings.adapt_pairs if settings.adapt_pairs is not None else _SAMPLE_PAIRS,
        "adapt_epochs": settings.adapt_epochs if settings.adapt_epochs is not None else _SAMPLE_EPOCHS,
    }
    return replace(settings, **changes)


def metric_columns(task: Task) -> tuple[Column, ...]:
    """A column for each metric, and the ends of the 95 % interval of the first."""
    first = primary_metric(task)
    ends = (("low", f"{TITLES[first]} from"), ("high", "to (95 %)"))
    return (
        *(Column(metric, title(metric), 3) for metric in metrics_of(task)),
        *(Column(f"{first}_{end}", words, 3, brief=False) for end, words in ends),
    )


def metric_values(task: Task, scored: ScoredCell) -> tuple[Value, ...]:
    """A row's values for `metric_columns`; of one user there is no interval."""
    ends = scored.intervals[primary_metric(task)]
    return (*(scored.metrics[metric] for metric in metrics_of(task)), *map(known, ends))


def score_cell_of(task: Task, cell: Cell) -> ScoredCell:
    """One cell with its metrics and intervals."""
    return score_cells(task, [cell])[0]


def known(value: float) -> float | None:
    """The value of a table: None for nan."""
    return None if math.isnan(value) else value


def series(task: Task, label: str, x: Sequence[float], cells: Sequence[Cell]) -> Series:
    """The first metric of cells with its intervals, for a figure; a cell of one user has none."""
    metric = primary_metric(task)
    scored = [score_cell_of(task, cell) for cell in cells]
    values = tuple(each.metrics[metric] for each in scored)
    ends = [each.intervals[metric] for each in scored]
    ranges = tuple((y, y) if math.isnan(low) else (low, high) for y, (low, high) in zip(values, ends, strict=True))
    return Series(label, tuple(map(float, x)), values, ranges)


def gains_of(task: Task, label: str, x: Sequence[float], pairs: Sequence[tuple[Cell, Cell]]) -> Series:
    """How much better the first of each pair is in the first metric, with intervals, for a figure."""
    metric = primary_metric(task)
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    values, ranges = [], []
    for a, b in pairs:
        found = paired_difference(task, a.predictions, b.predictions, metric)
        ends = (found.difference, found.difference) if math.isnan(found.low) else (found.low, found.high)
        values.append(sign * found.difference)
        ranges.append((min(sign * end for end in ends), max(sign * end for end in ends)))
    return Series(label, tuple(map(float, x)), tuple(values), tuple(ranges))


def count(amount: int, noun: str) -> str:
    """`1 user`, `4 users`."""
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")


def difference(task: Task, a: Cell, b: Cell) -> str:
    """a minus b in the first metric, for a sentence: `+.042 in Accuracy (95 % −.021 to .104)`."""
    metric = primary_metric(task)
    found = paired_difference(task, a.predictions, b.predictions, metric)
    return f"{signed(found.difference)} in {TITLES[metric]} (95 % {number(found.low)} to {number(found.high)})"


def differences(task: Task, pairs: Mapping[str, tuple[Cell, Cell]]) -> str:
    """Several of these, by name: `in Accuracy module +.042 (95 % −.021 to .104), both +.063 (.011 to .120)`."""
    metric = primary_metric(task)
    parts: list[str] = []
    for name, (a, b) in pairs.items():
        found = paired_difference(task, a.predictions, b.predictions, metric)
        level = "" if parts else "95 % "
        parts.append(f"{name} {signed(found.difference)} ({level}{number(found.low)} to {number(found.high)})")
    return f"in {TITLES[metric]} {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class _Shown:
    """Passes a run's news on, under a variant's name."""

    place: Workplace
    name: str

    def __call__(self, stage: "Stage") -> None:
        self.place.on_stage(f"{self.name}: {stage.name}", stage.done, stage.total)


def _base_name(settings: TrainingSettings) -> str:
    from oppu.model.embedded import EMBEDDED

    return settings.base if settings.base is not None else EMBEDDED


def _with_options(recipe: "Recipe", settings: TrainingSettings) -> "Recipe":
    given: dict[str, Any] = {
        "epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
    }
    personal = replace(recipe.personal, seed=settings.seed, **{k: v for k, v in given.items() if v is not None})
    if settings.rank is not None:  # a rank brings its alpha, so that the update's scale stays 1
        changes: dict[str, Any] = {"rank": settings.rank, "alpha": settings.rank}
        personal = replace(personal, module=replace(personal.module, **changes))
    adapt = replace(recipe.adapt, seed=settings.seed)
    if settings.adapt_epochs is not None:
        adapt = replace(adapt, epochs=settings.adapt_epochs)
    return type(recipe)(adapt, personal)
