"""Table 1 of finished runs: for each task, metric and column the mean over seeds, and what each personal column gains.

Runs in, numbers out. What does not belong together is left out of the means, and said; two runs of one task and seed
are refused.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from oppu.errors import DataError
from oppu.evaluate.columns import TABLE_1, TableColumn, table_metrics
from oppu.evaluate.comparisons import counterpart_method, is_personal
from oppu.evaluate.design import method
from oppu.evaluate.metrics import HIGHER_IS_BETTER, primary_metric
from oppu.evaluate.power import DIFFERENCES, gains_by_user, mean_gains, spread_of, users_needed
from oppu.evaluate.reports.page import flatten
from oppu.evaluate.reports.summary import best_two, rounded
from oppu.evaluate.reports.without_model import GROUP, baseline_cells
from oppu.evaluate.results import Cell, Row, predictions_file, score_cell
from oppu.evaluate.runs import Run
from oppu.evaluate.significance import POWER, PairedDifference, paired_difference_over_seeds, verdict
from oppu.tasks import BUILT_IN, Task

MORE_QUERIES = 50
"""Questions of each user, of the second number of users needed."""

_VARIES = ("command", "methods", "k", "seed", "adapt.seed", "personal.seed", "base")
"""Settings in which the runs of a task may differ; the base is compared by itself."""
_VERSIONS = "versions."
_ADAPT_K = "adapt_k"
_COLUMNS = {(column.method, column.k): column for column in TABLE_1}


@dataclass(frozen=True, slots=True)
class Score:
    """A column of one run in one metric."""

    seed: int
    value: float
    seconds: float
    """Training and answers; the same in every metric."""
    predictions: Path
    """The file that it was computed from."""


@dataclass(frozen=True, slots=True)
class Need:
    """How many users find a difference with a power of 80 %."""

    difference: float
    """In the metric's own unit."""
    queries: int
    """Questions of each user, as in these runs (median)."""
    users: int | None
    """None: the methods never differ."""
    users_with_more: int | None
    """With MORE_QUERIES questions each; None where nobody has two questions, so that nothing is known about more."""


@dataclass(frozen=True, slots=True)
class Gain:
    """A personal column minus one without modules, in one metric: of the same prompts, or the best of each."""

    task: Task
    metric: str
    column: TableColumn
    counterpart: TableColumn
    seeds: tuple[int, ...]
    """Those that have both."""
    found: PairedDifference
    need: Need | None
    """None: the metric is no mean over questions, or there is but one user."""
    of_the_best: bool = False

    @property
    def name(self) -> str:
        """`oppu+rag − rag, k = 1`; of the best, `best: oppu, k = 0 − rag, k = 4`."""
        if self.of_the_best:
            column, other = self.column, self.counterpart
            return f"best: {column.method}, k = {column.k} − {other.method}, k = {other.k}"
        return f"{self.column.method} − {self.counterpart.method}" + (f", k = {self.column.k}" if self.column.k else "")

    @property
    def verdict(self) -> str:
        """better or worse where the 95 % interval leaves out zero, else open."""
        return verdict(self.metric, self.found)

    @property
    def sign(self) -> int:
        """1 where the personal column reads better, -1 where it reads worse, 0 where both read the same."""
        shown = rounded(self.found.difference) * (1 if HIGHER_IS_BETTER[self.metric] else -1)
        return (shown > 0) - (shown < 0)


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the table."""

    task: Task
    metric: str
    column: TableColumn
    scores: tuple[Score, ...]
    """By seed."""
    users: int
    queries: int
    rank: int
    """1: the best of its row; 2: the second best; else 0, as for an answer without a model."""
    gain: Gain | None
    """None: no personal column, or its counterpart is missing."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(score.value for score in self.scores)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None with one seed."""
        return stdev(score.value for score in self.scores) if len(self.scores) > 1 else None

    @property
    def is_significant(self) -> bool:
        """Whether it is significantly better than its counterpart without OPPU: the table's asterisk."""
        return self.gain is not None and self.gain.verdict == "better"


@dataclass(frozen=True, slots=True)
class TaskTable:
    """A task's rows."""

    task: Task
    runs: tuple[Run, ...]
    """By seed."""
    numbers: Mapping[tuple[str, str], Number]
    """By (metric, column's name); a missing column is missing here."""
    others: tuple[str, ...]
    """Methods that were run and are no columns of Table 1."""
    without_model: Mapping[tuple[str, str], Number]
    """By (metric, baseline); empty where the runs have none."""
    best_gain: Gain | None
    """Of the best personal column over the best one without modules, in the first metric; None where one is missing."""

    @property
    def is_of_the_paper(self) -> bool:
        """Whether it is one of the paper's seven, and not a task or a way of asking of one's own."""
        return self.task.name in BUILT_IN

    def best_without_model(self, metric: str) -> Number | None:
        """The best answer without a model, of equal ones the first; None where there is none."""
        return _best([number for (name, _), number in self.without_model.items() if name == metric], metric)

    @property
    def gains(self) -> list[Gain]:
        """Column by column, metric by metric."""
        found = [self.numbers.get((metric, c.name)) for c in TABLE_1 for metric in table_metrics(self.task)]
        return [number.gain for number in found if number is not None and number.gain is not None]

    @property
    def comparisons(self) -> list[Gain]:
        """The gains, and last that of the best."""
        return self.gains + ([self.best_gain] if self.best_gain is not None else [])

    @property
    def best_columns(self) -> list[TableColumn]:
        """Those with the best primary metric: several where they read alike."""
        ranked = [(c, self.numbers.get((primary_metric(self.task), c.name))) for c in TABLE_1]
        return [column for column, number in ranked if number is not None and number.rank == 1]

    @property
    def has_both(self) -> bool:
        """Whether there are columns with and without modules, so that one can win."""
        return len({is_personal(number.column.method) for number in self.numbers.values()}) == 2


@dataclass(frozen=True, slots=True)
class JointTable:
    """Table 1 over all tasks that there are runs of."""

    tasks: tuple[TaskTable, ...]
    left_out: tuple[tuple[Run, str], ...]
    """Runs that the numbers do not contain, and why."""
    flags: tuple[str, ...]
    """What a reader must know before comparing rows."""

    @property
    def gains(self) -> list[Gain]:
        """Of all tasks."""
        return [gain for each in self.tasks for gain in each.gains]

    @property
    def comparisons(self) -> list[Gain]:
        """Of all tasks."""
        return [gain for each in self.tasks for gain in each.comparisons]


def make_table(runs: Sequence[Run]) -> JointTable:
    """The table; a DataError names every task and seed of which there are two runs."""
    ordered = sorted(runs, key=lambda run: (*_place(run.task), run.seed))
    _check_distinct(ordered)
    tables: list[TaskTable] = []
    left_out: list[tuple[Run, str]] = []
    for name in dict.fromkeys(run.task.name for run in ordered):
        first, *others = [run for run in ordered if run.task.name == name]
        kept = [first]
        for run in others:  # against all that are kept: two may be alike in what the first has not
            reason = next((why for other in kept if (why := _odd(other, run))), "")
            if reason:
                left_out.append((run, reason))
            else:
                kept.append(run)
        tables.append(_task_table(kept))
    return JointTable(tuple(tables), tuple(left_out), tuple(_flags(tables)))


def _place(task: Task) -> tuple[int, str]:
    """The built-in tasks in their order, others behind them by name."""
    names = list(BUILT_IN)
    return (names.index(task.name), "") if task.name in names else (len(names), task.name)


def _check_distinct(runs: Sequence[Run]) -> None:
    folders: dict[tuple[str, int], list[Path]] = {}
    for run in runs:
        folders.setdefault((run.task.name, run.seed), []).append(run.folder)
    problems = [
        f"task {task}, seed {seed}: {' and '.join(map(str, found))}"
        for (task, seed), found in folders.items()
        if len(found) > 1
    ]
    if problems:
        raise DataError(problems, where="two runs of the same task and seed", fix="name one of them")


def _odd(first: Run, run: Run) -> str:
    """Why a run does not belong to the first one of its task; empty where it does."""
    if run.task != first.task:
        return "its task is another: fields, labels or templates differ"
    if run.golds != first.golds:
        users, usual = (len({user for user, _ in each.golds}) for each in (run, first))
        sizes = f"{users} users with {len(run.golds)} questions, not {usual} with {len(first.golds)}"
        return f"it has other users or questions than seed {first.seed}: {sizes}"
    if run.base != first.base:
        return f"its base is {run.base}, not {first.base} as of seed {first.seed}"
    if (run.config.get("adapt") is None) != (first.config.get("adapt") is None):
        adapted, plain = (first.seed, run.seed) if run.config.get("adapt") is None else (run.seed, first.seed)
        return f"the base of seed {adapted} was adapted, that of seed {plain} was not"
    own, usual_settings = _settings(run), _settings(first)
    differing = [key for key in own if key in usual_settings and own[key] != usual_settings[key]]
    if not _is_adapted_otherwise(first, run):
        differing = [key for key in differing if key != _ADAPT_K]
    if "auto" in (own.get("dtype"), usual_settings.get("dtype")):  # of runs that did not note what it stood for
        differing = [key for key in differing if key != "dtype"]
    if differing:
        said = ", ".join(f"{key} {own[key]}, not {usual_settings[key]}" for key in differing)
        return f"its settings differ from those of seed {first.seed}: {said}"
    return ""


def _is_adapted_otherwise(first: Run, run: Run) -> bool:
    """Whether `adapt_k` gave a column that both runs have another base, as it may where something is retrieved or a
    profile shown."""
    names = [{(cell.method, cell.k) for cell in each.cells} for each in (first, run)]
    return any(
        len({method(name, k, 0, each.config.get(_ADAPT_K)).adapted_with for each in (first, run)}) > 1
        for name, k in names[0] & names[1] & _COLUMNS.keys()
    )


def _settings(run: Run) -> dict[str, str]:
    """What decides a run's numbers besides data, base and seed; what only newer runs note is not compared."""
    found = dict(flatten(run.config))
    return {key: text for key, text in found.items() if key not in _VARIES and not key.startswith(_VERSIONS)}


def _flags(tables: Sequence[TaskTable]) -> Iterator[str]:
    runs = [run for each in tables for run in each.runs]
    bases = {run.base: [each.task.name for each in tables if each.runs[0].base == run.base] for run in runs}
    if len(bases) > 1:
        said = "; ".join(f"{base} for {', '.join(tasks)}" for base, tasks in bases.items())
        yield f"The tasks have different bases: {said}."
    made = {tuple(sorted((k, v) for k, v in flatten(run.config) if k.startswith(_VERSIONS))) for run in runs}
    if len(made) > 1:
        names = sorted({key.removeprefix(_VERSIONS) for each in made for key, _ in set(each) ^ set(next(iter(made)))})
        yield f"The runs were made with different versions of {', '.join(names)}."
    for each in tables:
        seeds = {score.seed for number in each.numbers.values() for score in number.scores}
        short = sorted({n.column.name for n in each.numbers.values() if len(n.scores) < len(seeds)})
        if short:
            yield f"{each.task.name}: fewer seeds than the other columns in {', '.join(short)}."


def _task_table(runs: Sequence[Run]) -> TaskTable:
    task = runs[0].task
    found: dict[TableColumn, dict[int, tuple[Cell, Row, Path]]] = {column: {} for column in TABLE_1}
    for run in runs:
        for cell in run.cells:
            if (column := _COLUMNS.get((cell.method, cell.k))) is not None:
                found[column][run.seed] = (cell, score_cell(task, cell), run.folder / predictions_file(cell))
    cells = {column: {seed: cell for seed, (cell, _, _) in of_seeds.items()} for column, of_seeds in found.items()}
    numbers: dict[tuple[str, str], Number] = {}
    for metric in table_metrics(task):
        scores = {
            column: tuple(Score(seed, row.metrics[metric], row.seconds, file) for seed, (_, row, file) in each.items())
            for column, each in found.items()
            if each
        }
        ranks = best_two({column: fmean(s.value for s in each) for column, each in scores.items()}, metric)
        for column, each in scores.items():
            _, row, _ = next(iter(found[column].values()))
            gain = _gain(task, cells, column, metric)
            rank = ranks.get(column, 0)
            numbers[metric, column.name] = Number(task, metric, column, each, row.users, row.queries, rank, gain)
    others = dict.fromkeys(cell.name for run in runs for cell in run.cells if (cell.method, cell.k) not in _COLUMNS)
    best_gain = _best_gain(task, cells, numbers)
    return TaskTable(task, tuple(runs), numbers, tuple(others), _without_model(task, runs), best_gain)


def _without_model(task: Task, runs: Sequence[Run]) -> dict[tuple[str, str], Number]:
    """The baselines of the runs in every metric."""
    found: dict[str, list[tuple[Run, Cell, Row]]] = {}
    for run in runs:
        for cell in baseline_cells(run):
            found.setdefault(cell.method, []).append((run, cell, score_cell(task, cell)))
    numbers = {}
    for metric in table_metrics(task):
        for name, each in found.items():
            scores = tuple(
                Score(run.seed, row.metrics[metric], row.seconds, run.folder / predictions_file(cell))
                for run, cell, row in each
            )
            _, _, first = each[0]
            column = TableColumn(GROUP, "best", name, 0)
            numbers[metric, name] = Number(task, metric, column, scores, first.users, first.queries, 0, None)
    return numbers


def _gain(task: Task, cells: Mapping[TableColumn, Mapping[int, Cell]], column: TableColumn, metric: str) -> Gain | None:
    method = counterpart_method(column.method)
    return None if method is None else _between(task, cells, column, _COLUMNS[method, column.k], metric)


def _best_gain(
    task: Task, cells: Mapping[TableColumn, Mapping[int, Cell]], numbers: Mapping[tuple[str, str], Number]
) -> Gain | None:
    metric = primary_metric(task)
    listed = [number for (name, _), number in numbers.items() if name == metric]
    personal = _best([number for number in listed if is_personal(number.column.method)], metric)
    other = _best([number for number in listed if not is_personal(number.column.method)], metric)
    if personal is None or other is None:
        return None
    found = _between(task, cells, personal.column, other.column, metric)
    return None if found is None else replace(found, of_the_best=True)


def _best(numbers: Sequence[Number], metric: str) -> Number | None:
    """Of those that read alike the first; None of none."""
    ranks = best_two({number: number.mean for number in numbers}, metric)
    return next((number for number in numbers if ranks.get(number) == 1), None)


def _between(
    task: Task,
    cells: Mapping[TableColumn, Mapping[int, Cell]],
    column: TableColumn,
    other: TableColumn,
    metric: str,
) -> Gain | None:
    """None where no seed has both columns."""
    pairs = {seed: (cell, cells[other][seed]) for seed, cell in cells[column].items() if seed in cells[other]}
    if not pairs:
        return None
    predictions = [(a.predictions, b.predictions) for a, b in pairs.values()]
    found = paired_difference_over_seeds(task, predictions, metric)
    return Gain(task, metric, column, other, tuple(pairs), found, _need(task, list(pairs.values()), metric))


def _need(task: Task, pairs: Sequence[tuple[Cell, Cell]], metric: str) -> Need | None:
    if metric not in DIFFERENCES:
        return None
    gains = mean_gains([gains_by_user(task, a.predictions, b.predictions, metric) for a, b in pairs])
    if len(gains) < 2:
        return None
    spread = spread_of(gains)
    difference = DIFFERENCES[metric][1]
    queries = math.floor(spread.queries)
    more = users_needed(spread, difference, MORE_QUERIES, POWER) if spread.within is not None else None
    return Need(difference, queries, users_needed(spread, difference, queries, POWER), more)
