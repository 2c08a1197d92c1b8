"""How the measured gain and its interval change with the number of users sampled, and with how alike they are.

Everybody gets a module once. Then samples are drawn from these users, and each is read as if it were the whole run: its
gain, and its interval by resampling users. What is counted here, `oppu study power` computes from a model of the
variance.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from oppu.errors import DataError
from oppu.evaluate.lab.alike import users_alike, way_of
from oppu.evaluate.lab.answers import NLL, Answer, measures_of, name_of, predictions_of, questions_of
from oppu.evaluate.lab.likeness import farthest_first, mean_likeness, nearest_first
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.lab.trial import TrainingSettings, Trial, known, open_trial
from oppu.evaluate.metrics import FloatArray
from oppu.evaluate.power import gains_by_user
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.reports.summary import number, signed
from oppu.evaluate.significance import mean_interval
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option

RANDOM, ALIKE, DIFFERENT, EVERYBODY = "random", "alike", "different", "everybody"


@dataclass(frozen=True, slots=True)
class Settings(TrainingSettings):
    """Whom to sample from, and how."""

    users: int | None = option("The users with the longest histories, from whom samples are drawn.", 8, least=3)
    sizes: tuple[int, ...] = option("Users of a sample.", (2, 4, 6), least=2)
    draws: int = option("Samples drawn at random of each size.", 200, least=1)
    by: str | None = option("What makes users alike: labels or words. [default: labels, where there are some]", None)


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Samples of one size, drawn in one way, in one measure."""

    way: str
    size: int
    measure: str
    likeness: float
    """Of a sample's users, mean over pairs and samples."""
    gains: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]

    @property
    def half_width(self) -> float:
        """Of a sample's interval, on average."""
        return mean((high - low) / 2 for low, high in self.intervals)

    @property
    def found(self) -> float:
        """Share of samples whose interval lies above 0."""
        return mean(low > 0 for low, _ in self.intervals)

    def holding(self, value: float) -> float:
        """Share of samples whose interval holds the value."""
        return mean(low <= value <= high for low, high in self.intervals)

    def range(self) -> tuple[float, float]:
        """Between which nine in ten samples' gains lie."""
        low, high = np.quantile(self.gains, [0.05, 0.95])
        return float(low), float(high)


def _run(settings: Settings, place: Workplace) -> Outcome:
    trial = open_trial(settings, place)
    by = way_of(trial.task, trial.dataset.users, settings.by)
    _check(trial, settings)
    base, personal, alike = _measured(trial, by)
    measures = tuple(dict.fromkeys((measures_of(trial.task, base)[0], NLL)))
    sampled: list[_Sampled] = []
    whole: dict[str, tuple[float, float, float]] = {}
    for measure in measures:
        gains = _gains(trial, measure, personal, base)
        found = _sample("everybody", len(gains), measure, gains, alike, [list(range(len(gains)))])
        whole[measure] = (found.gains[0], *found.intervals[0])
        for done, (way, size, drawn) in enumerate(_drawn(trial, settings, alike)):
            place.on_stage(f"samples, {name_of(measure)}", done, 3 * len(settings.sizes))
            sampled.append(_sample(way, size, measure, gains, alike, drawn))
        place.on_stage(f"samples, {name_of(measure)}", 3 * len(settings.sizes), 3 * len(settings.sizes))
        sampled.append(found)
    rows: list[tuple[Value, ...]] = [
        (
            name_of(each.measure),
            each.way,
            each.size,
            len(each.gains),
            known(each.likeness),
            mean(each.gains),
            *(each.range() if each.way != EVERYBODY else (None, None)),
            each.half_width,
            each.found,
            each.holding(whole[each.measure][0]) if each.way != EVERYBODY else None,
        )
        for each in sampled
    ]
    users = len(trial.dataset.users)
    return Outcome(
        found=tuple(_sentence(measure, sampled, whole[measure], users) for measure in measures),
        panels=tuple(panel for measure in measures for panel in _panels(measure, sampled, whole[measure])),
        table=Table(_COLUMNS, tuple(rows)),
        facts=trial.facts(),
        notes=(
            "Gain: of modules over the base without them, positive where modules are better. Samples are drawn from "
            f"these {users} users without replacement; a sample of nearly all of them differs little from the others, "
            "and says little about other users. Intervals: 95 %, users resampled, which is too narrow with few users: "
            "how often it holds the gain of all users is in the table.",
            "Alike, different: for each user, a sample that begins with that user and takes in those most like the "
            f"first, or always the one least like all before, by {'label counts' if by == 'labels' else 'words'}.",
        ),
        numbers={
            "by": by,
            "everybody": {
                measure: dict(zip(("gain", "low", "high"), whole[measure], strict=True)) for measure in measures
            },
        },
    )


def _check(trial: Trial, settings: Settings) -> None:
    users, most = len(trial.dataset.users), max(settings.sizes)
    if most >= users:
        raise DataError(
            [f"a sample of {most} of {users} users is no sample"], fix="use smaller --sizes, or more --users"
        )


def _measured(trial: Trial, by: str) -> tuple[tuple[Answer, ...], tuple[Answer, ...], FloatArray]:
    """The base's answers, those with modules, and how alike the users are."""
    from oppu.examples import PLAIN, training_examples

    probe, users = Probe(trial), trial.dataset.users
    learnt = {u.id: tuple(training_examples(trial.task, u, PLAIN, newest=trial.settings.newest)) for u in users}
    asked = questions_of(trial.task, users, PLAIN)
    base = probe.answers("base", [Lesson(user.id, (), asked[user.id]) for user in users], PLAIN)
    personal = probe.answers("modules", [Lesson(user.id, learnt[user.id], asked[user.id]) for user in users], PLAIN)
    return base.listed, personal.listed, users_alike(trial.task, [learnt[user.id] for user in users], by)


def _gains(trial: Trial, measure: str, personal: Sequence[Answer], base: Sequence[Answer]) -> list[list[float]]:
    """Of each user of the trial, in its order, every question's gain; users without questions have none."""
    found: dict[str, list[float]] = {user.id: [] for user in trial.dataset.users}
    if measure == NLL:
        for a, b in zip(personal, base, strict=True):
            found[a.user_id].append(b.nll - a.nll)
    else:
        listed = gains_by_user(trial.task, predictions_of(personal), predictions_of(base), measure)
        for user, gains in zip(sorted({answer.user_id for answer in base}), listed, strict=True):
            found[user] = gains.tolist()
    return list(found.values())


def _drawn(trial: Trial, settings: Settings, alike: FloatArray) -> list[tuple[str, int, list[list[int]]]]:
    """Every way and size with its samples, as places of users."""
    everyone = range(len(trial.dataset.users))
    found = []
    for size in sorted(settings.sizes):
        generator = random.Random(f"{settings.seed} {size}")
        found.append((RANDOM, size, [generator.sample(everyone, size) for _ in range(settings.draws)]))
        found.append((ALIKE, size, [nearest_first(alike, size, first) for first in everyone]))
        found.append((DIFFERENT, size, [farthest_first(alike, size, first) for first in everyone]))
    return found


def _sample(
    way: str,
    size: int,
    measure: str,
    gains: Sequence[Sequence[float]],
    alike: FloatArray,
    drawn: Sequence[Sequence[int]],
) -> _Sampled:
    means, intervals = [], []
    for places in drawn:
        values = [value for place in places for value in gains[place]]
        users = [str(place) for place in places for _ in gains[place]]
        means.append(mean(values))
        intervals.append(mean_interval(users, values))
    likeness = mean(mean_likeness(alike, places) for places in drawn)
    return _Sampled(way, size, measure, likeness, tuple(means), tuple(intervals))


_COLUMNS = (
    Column("measure", "Measure"),
    Column("way", "Users"),
    Column("size", "Number"),
    Column("samples", "Samples"),
    Column("likeness", "Likeness", 3),
    Column("gain", "Gain", 3),
    Column("gain_low", "nine in ten from", 3),
    Column("gain_high", "to", 3),
    Column("half_width", "± of an interval", 3),
    Column("above_zero", "Intervals above 0", 2),
    Column("holding", "Intervals that hold all users' gain", 2, brief=False),
)


def _panels(measure: str, sampled: Sequence[_Sampled], whole: tuple[float, float, float]) -> tuple[Panel, Panel]:
    def line(way: str, *, ranges: bool) -> Series:
        these = [each for each in sampled if each.way == way and each.measure == measure]
        y = tuple(mean(each.gains) if ranges else each.half_width for each in these)
        spread = tuple(each.range() for each in these) if ranges else ()
        return Series(way, tuple(float(each.size) for each in these), y, spread)

    name = name_of(measure)
    gains = lines_of(
        [line(RANDOM, ranges=True)], "users", f"gain in {name}", log_x=True, level=whole[0], level_name="all users"
    )
    widths = lines_of(
        [line(way, ranges=False) for way in (RANDOM, ALIKE, DIFFERENT)], "users", f"± in {name}", log_x=True
    )
    return (
        Panel(f"Gain in {name} by sample", gains, "Mean of random samples; upright lines hold nine in ten."),
        Panel(f"Half an interval in {name}", widths, "On average over samples."),
    )


def _sentence(measure: str, sampled: Sequence[_Sampled], whole: tuple[float, float, float], users: int) -> str:
    value, low, high = whole
    parts = []
    for each in sampled:
        if each.measure == measure and each.way == RANDOM:
            from_, to = each.range()
            parts.append(
                f"{signed(from_)} to {signed(to)} with {each.size} users (± {number(each.half_width)} each, "
                f"{each.found:.0%} find a gain)"
            )
    most = max(each.size for each in sampled if each.way == RANDOM)
    widths = {each.way: each for each in sampled if each.measure == measure and each.size == most}
    apart = (
        f"{most} users who are alike gain {signed(mean(widths[ALIKE].gains))} ± {number(widths[ALIKE].half_width)}, "
        f"who are different {signed(mean(widths[DIFFERENT].gains))} ± {number(widths[DIFFERENT].half_width)}"
    )
    return (
        f"{name_of(measure)}, all {users} users: gain {signed(value)} (95 % {number(low)} to {number(high)}). Nine in "
        f"ten random samples gain {', '.join(parts)}. {apart}."
    )


STUDY = Study(
    name="users",
    title="How many users, and how different ones",
    summary="the measured gain and its interval by the number of users sampled, and by how alike they are",
    help="""Train a module for everybody once and sample users from the run: how far the measured gain and its interval
    depend on how many users are looked at, and on how alike they are.

    Example: `oppu study users --task news_categorize --data data/news --users 40 --sizes 5,10,20 --out runs/users`""",
    source="",
    paper="100 users with the longest histories for each task; how the result depends on their number or choice is not "
    "said, and tables have no intervals.",
    settings=Settings,
    run=_run,
)
