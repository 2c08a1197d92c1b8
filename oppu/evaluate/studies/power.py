"""How many users and questions a difference needs, from the predictions of a finished experiment.

The paper has no such study: it gives no intervals, and marks significant improvements in Table 1 without naming the
test. How power is computed stands in `oppu/evaluate/power.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from oppu.errors import ConfigError, DataError
from oppu.evaluate.comparisons import compare
from oppu.evaluate.metrics import primary_metric
from oppu.evaluate.power import ALPHA, DIFFERENCES, SAMPLES, Spread, gains_by_user, power_of, spread_of, users_needed
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.reports.summary import TITLES, number, rounded, signed
from oppu.evaluate.results import Cell, predictions_file
from oppu.evaluate.runs import read_run
from oppu.evaluate.significance import POWER
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.tasks import Task


@dataclass(frozen=True, slots=True)
class Settings:
    """Which run, and what is asked of it."""

    run: Path = option("Folder of a finished `oppu experiment`.")
    task: str | None = option("The task's TOML file, where it is one's own. [default: as the run's results say]", None)
    metric: str | None = option("accuracy, mae, rouge1 or rougeL. [default: the task's first]", None)
    pairs: tuple[str, ...] | None = option(
        "Pairs of methods, such as oppu-k0:base-k0. [default: those that the run's report compares]", None
    )
    differences: tuple[float, ...] | None = option(
        "True differences, in the metric's own unit. [default: three usual ones]", None, least=0.0
    )
    users: tuple[int, ...] = option(
        "Numbers of users, beside the run's own.", (10, 20, 50, 100, 200, 500, 1000), least=2
    )
    queries: tuple[int, ...] | None = option(
        "Questions of each user, beside the run's own. [default: 1, 10, 50]", None, least=1
    )
    seed: int = option("Seed of the resamples.", 0, least=0)


_QUERIES = (1, 10, 50)
_ALIKE = "Left out, since nothing is known of how they differ: {}, alike everywhere."


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Two methods, how their difference varies, and the differences and sizes that are looked at."""

    a: str
    b: str
    spread: Spread
    differences: tuple[float, ...]
    """The run's own among them, where it is not 0."""
    queries: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.a} against {self.b}"

    @property
    def own(self) -> float:
        """The run's difference as it is shown."""
        return rounded(abs(self.spread.gain))

    @property
    def own_queries(self) -> int:
        return round(self.spread.queries)


def _run(settings: Settings, place: Workplace) -> Outcome:
    read = read_run(settings.run, settings.task)
    task, cells = read.task, read.cells
    metric = settings.metric or primary_metric(task)
    compared = _pairs(settings, task, cells)
    for cell in chain(*compared):
        place.uses(settings.run / predictions_file(cell), cell.name)
    every = [_pair(settings, task, a, b, metric) for a, b in compared]
    pairs = [pair for pair in every if pair.spread.varies]
    if not pairs:
        raise DataError(["the methods answered alike everywhere"], where=str(settings.run), fix="use a larger run")
    found: dict[tuple[str, int, int], list[float]] = {}
    sizes = [(pair, queries, users) for pair in pairs for queries in pair.queries for users in _users(settings, pair)]
    for done, (pair, queries, users) in enumerate(sizes):
        place.on_stage("power", done, len(sizes))
        found[pair.name, queries, users] = power_of(pair.spread, pair.differences, users, queries, seed=settings.seed)
    place.on_stage("power", len(sizes), len(sizes))
    first = pairs[0].spread
    return Outcome(
        found=tuple(_sentence(pair, metric, found) for pair in pairs),
        panels=tuple(panel for pair in pairs for panel in _panels(pair, settings, metric, found)),
        table=_table(pairs, settings, found),
        facts=f"Run {settings.run}, task {task.name}: {first.users} users, {first.queries:g} questions each (median), "
        f"{TITLES[metric]}.",
        notes=(*_notes(first.users), *(_ALIKE.format(pair.name) for pair in every if not pair.spread.varies)),
        numbers={"metric": metric, "pairs": [_numbers(pair) for pair in pairs]},
    )


def _pairs(settings: Settings, task: Task, cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """The pairs asked for; else those of the report."""
    named = {cell.name: cell for cell in cells}
    pairs = []
    for text in settings.pairs or ():
        a, _, b = text.partition(":")
        if a not in named or b not in named or a == b:
            fix = f"use two of {', '.join(sorted(named))}, such as oppu-k0:base-k0"
            raise ConfigError(f"'{text}' is no pair of the run's methods", where="--pairs", fix=fix)
        pairs.append((named[a], named[b]))
    if settings.pairs is None:
        pairs = [(each.a, each.b) for each in compare(task, cells)]
    if not pairs:
        raise ConfigError(
            "the run has no two methods that belong beside each other", where=str(settings.run), fix="name --pairs"
        )
    return pairs


def _pair(settings: Settings, task: Task, a: Cell, b: Cell, metric: str) -> _Pair:
    spread = spread_of(gains_by_user(task, a.predictions, b.predictions, metric))
    own, own_queries = rounded(abs(spread.gain)), round(spread.queries)
    differences = settings.differences or DIFFERENCES[metric]
    queries = settings.queries or (_QUERIES if spread.within is not None else (1,))
    wanted = sorted({*differences, own} - {0.0})
    if not wanted:
        raise ConfigError("no difference above 0 is given", where="--differences", fix="use for example 0.02,0.05")
    return _Pair(a.name, b.name, spread, tuple(wanted), tuple(sorted({*queries, own_queries})))


def _users(settings: Settings, pair: _Pair) -> list[int]:
    return sorted({*settings.users, pair.spread.users})


def _shown_difference(pair: _Pair) -> float:
    """The run's own difference; where there is none, the middle one."""
    return pair.own or pair.differences[len(pair.differences) // 2]


def _panels(
    pair: _Pair, settings: Settings, metric: str, found: dict[tuple[str, int, int], list[float]]
) -> tuple[Panel, Panel]:
    users = _users(settings, pair)
    queries, difference = pair.own_queries, _shown_difference(pair)

    def curve(label: str, queries: int, difference: float) -> Series:
        place = pair.differences.index(difference)
        return Series(label, tuple(users), tuple(found[pair.name, queries, count][place] for count in users))

    by_difference = [curve(_difference(pair, each), queries, each) for each in pair.differences]
    by_queries = [curve(_count(each), each, difference) for each in pair.queries]
    looks: dict[str, Any] = {"log_x": True, "top": 1.03, "level": POWER, "level_name": f"{POWER:.0%}"}
    return (
        Panel(
            f"{pair.name}, by difference",
            lines_of(by_difference, "users", "power", **looks),
            f"{_count(queries)} of each user.",
        ),
        Panel(
            f"{pair.name}, by questions",
            lines_of(by_queries, "users", "power", **looks),
            f"A true difference of {number(difference)} in {TITLES[metric]}.",
        ),
    )


def _difference(pair: _Pair, difference: float) -> str:
    return f"{number(difference)} (this run's)" if difference == pair.own else number(difference)


def _count(queries: int) -> str:
    return f"{queries} question" + ("" if queries == 1 else "s")


def _table(pairs: Sequence[_Pair], settings: Settings, found: dict[tuple[str, int, int], list[float]]) -> Table:
    users = sorted({count for pair in pairs for count in _users(settings, pair)})
    own = {pair.spread.users for pair in pairs}
    columns = (
        Column("methods", "Methods"),
        Column("difference", "Difference", 3),
        Column("queries_per_user", "Questions per user"),
        Column("users_needed", f"Users for {POWER:.0%}"),
        *(Column(f"power_{count}_users", f"{count:,} users", 2, brief=count in own) for count in users),
    )
    rows: list[tuple[Value, ...]] = []
    for pair in pairs:
        for place, difference in enumerate(pair.differences):
            for queries in pair.queries:
                powers = [found.get((pair.name, queries, count)) for count in users]
                rows.append(
                    (
                        pair.name,
                        difference,
                        queries,
                        users_needed(pair.spread, difference, queries, POWER),
                        *(each[place] if each is not None else None for each in powers),
                    )
                )
    return Table(columns, tuple(rows))


def _sentence(pair: _Pair, metric: str, found: dict[tuple[str, int, int], list[float]]) -> str:
    spread, queries, difference = pair.spread, pair.own_queries, _shown_difference(pair)
    power = found[pair.name, queries, spread.users][pair.differences.index(difference)]
    needed = users_needed(spread, difference, queries, POWER)
    most = max(pair.queries)
    more = users_needed(spread, difference, most, POWER)
    gain = f"{pair.name}: gain {signed(spread.gain)} in {TITLES[metric]}, each user counted alike"
    what = f"If {number(difference)} is the true difference, a run of this size finds it with a power of {power:.2f}"
    sentence = f"{gain}. {what}; {POWER:.0%} needs {needed:,} users with {_count(queries)} each"
    sentence += f", or {more:,} with {most}." if most > queries else "."
    return (
        sentence if spread.between else f"{sentence} No variance between users was found beyond that of the questions."
    )


def _numbers(pair: _Pair) -> dict[str, Any]:
    spread = pair.spread
    return {
        "a": pair.a,
        "b": pair.b,
        "gain": spread.gain,
        "users": spread.users,
        "queries_per_user": spread.queries,
        "sd_between_users": math.sqrt(spread.between),
        "sd_within_a_user": None if spread.within is None else math.sqrt(spread.within),
        "standard_error": spread.standard_error(spread.users, pair.own_queries),
    }


def _notes(users: int) -> tuple[str, ...]:
    off = math.sqrt(2 / (users - 1))
    return (
        f"Power: the share of {SAMPLES:,} drawn runs in which a two-sided paired test over users finds the difference, "
        f"alpha {ALPHA:g}. Runs are drawn from this run's users, with the variance between users and that between a "
        "user's questions told apart, and shifted to the true difference. Positive: the first method is better.",
        f"How much users differ is known from {users} users only: numbers of users needed have a standard error of "
        f"about {off:.0%}. The variation from training seeds is not in them. Where the variance between users comes "
        "out as 0, more questions seem to help without end, which more users would show to be wrong.",
    )


STUDY = Study(
    name="power",
    title="How many users and questions a difference needs",
    summary="power of a comparison by difference, users and questions, from a finished experiment",
    help="""Compute how many users, with how many questions each, a difference between two methods needs to be found,
    from the predictions of a finished experiment. Nothing is trained.

    Example: `oppu study power --run runs/out/news --out runs/out/power --differences 0.02,0.05`""",
    source="",
    paper="100 users for each task, in four of the seven tasks with about one question each (Table 5). Table 1 marks "
    "significant improvements, by a test that is not named; no table has intervals, and how large a difference such a "
    "run can tell is not said.",
    settings=Settings,
    run=_run,
)
