"""How fast a module ages, and which refresh interval pays.

A user's newest items are cut into a first training window and blocks after it. A module is trained before each block,
on as many newest items, and asked every later block: items themselves are the questions, through the task's form. A
block is always asked of its freshest module, too, so that ages are compared on the same questions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from statistics import fmean, median

from oppu.errors import ConfigError, DataError
from oppu.evaluate.lab.answers import (
    Answer,
    Gain,
    gain,
    gain_columns,
    gain_values,
    measure_columns,
    measures_of,
    name_of,
    scores_of,
)
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.lab.trial import TrainingSettings, Trial, count, known, open_trial
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.reports.summary import signed
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.records import Example, User

_DAY = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Settings(TrainingSettings):
    """How histories are cut, and what a refresh must keep."""

    newest: int | None = option("Train on so many items, the newest before the training.", 16, least=1)
    blocks: int = option("Blocks after the first training; the last begins with the oldest module.", 4, least=2)
    block: int = option("Items of a block, which are its questions.", 4, least=1)
    grow: bool = option("Train on all items before the training instead of --newest alone.", False)
    keep: float = option("Share of a fresh module's gain that a refresh interval has to keep.", 0.9, least=0.0)


@dataclass(frozen=True, slots=True)
class _Timeline:
    """A user's items as examples, cut into what is learnt and what is asked."""

    user: User
    examples: tuple[Example, ...]
    """Oldest first."""
    settings: Settings

    def start(self, block: int) -> int:
        """Place of a block's first item."""
        return len(self.examples) - (self.settings.blocks - block) * self.settings.block

    def asked(self, block: int) -> tuple[Example, ...]:
        """The items of a block."""
        return self.examples[self.start(block) : self.start(block + 1)]

    def learnt(self, block: int) -> tuple[Example, ...]:
        """What a module learns that is trained just before a block."""
        window = None if self.settings.grow else self.settings.newest
        before = self.examples[: self.start(block)]
        return before if window is None else before[-window:]

    def days(self, trained: int, block: int) -> list[float]:
        """From the last item learnt to each one asked; nothing where times are mere positions."""
        history = self.user.history
        if all(item.time == place for place, item in enumerate(history)):
            return []
        last = history[self.start(trained) - 1].time
        return [(item.time - last) / _DAY for item in history[self.start(block) : self.start(block + 1)]]


@dataclass(frozen=True, slots=True)
class _Age:
    """Modules that have missed up to so many blocks, and the base, on every block that is old enough for all."""

    missed: int
    """Blocks."""
    by_age: tuple[tuple[Answer, ...], ...]
    """The same questions, answered by modules that have missed none, one, and so on."""
    base: tuple[Answer, ...]
    days: float | None
    """Median time from the last item learnt to the question of the oldest; None: the history has no dates."""

    @property
    def fresh(self) -> tuple[Answer, ...]:
        """By modules that have missed nothing."""
        return self.by_age[0]

    @property
    def stale(self) -> tuple[Answer, ...]:
        """By modules that have missed all of `missed`."""
        return self.by_age[-1]

    @property
    def gain(self) -> Gain:
        """Of fresh modules over the base."""
        return gain(self.fresh, self.base)

    @property
    def refresh_loss(self) -> float:
        """Of a refresh when the next block would be missed: the mean over the ages until then."""
        return fmean(gain(self.fresh, answers).value for answers in self.by_age)

    @property
    def kept(self) -> float | None:
        """What such a refresh keeps of the fresh modules' gain, as a share; None where that gains nothing."""
        whole = self.gain.value
        return (whole - self.refresh_loss) / whole if whole > 0 else None


@dataclass(frozen=True, slots=True)
class _Found:
    """What was measured."""

    ages: tuple[_Age, ...]
    learnt: float
    """Items of a user's training, on average."""
    seconds: float
    """Of a user's training, on average."""


def _run(settings: Settings, place: Workplace) -> Outcome:
    if settings.keep > 1:
        raise ConfigError(f"{settings.keep:g} is no share of a gain", where="--keep", fix="use for example 0.9")
    trial = open_trial(settings, place)
    found = _measured(trial, settings)
    ages, task = found.ages, trial.task
    measures = measures_of(task, ages[0].stale)
    whole = ages[0].gain
    losses = [gain(age.fresh, age.stale) for age in ages]
    rows: list[tuple[Value, ...]] = []
    for age, loss in zip(ages, losses, strict=True):
        interval = (age.missed + 1) * settings.block
        scores = [scores_of(task, answers) for answers in (age.stale, age.fresh, age.base)]
        rows.append(
            (
                age.missed * settings.block,
                age.days,
                len(age.stale),
                *(each[measure] for each in scores for measure in measures),
                *((loss.value, known(loss.low), known(loss.high)) if age.missed else (None, None, None)),
                *gain_values(gain(age.stale, age.base)),
                *gain_values(age.gain),
                interval,
                age.refresh_loss,
                age.kept,
                found.learnt / interval,
                found.seconds / interval,
            )
        )
    return Outcome(
        found=(_ageing(settings, losses, whole), _paying(settings, found)),
        panels=_panels(trial, settings, found, losses, measures),
        table=Table(_columns(measures), tuple(rows)),
        facts=_facts(trial, settings),
        notes=(
            "Age: the items that came between a module's training and the block that it is asked; a fresh module has "
            "missed none. Losses are against the fresh module on the same questions, so that a block that is hard for "
            "every module does not count as age; older ages stand on fewer, later blocks. Intervals: users resampled.",
            "A refresh interval's loss is the mean over the ages that it lets come about, and what it keeps a share of "
            "what fresh modules gain, both on the blocks that are old enough for all these ages. Its cost is the items "
            f"trained for each new one, {found.learnt:g} at each refresh; seconds are one user's on this machine.",
        ),
        numbers={"gain_fresh": whole.value, "gain_fresh_low": known(whole.low), "gain_fresh_high": known(whole.high)},
    )


def _facts(trial: Trial, settings: Settings) -> str:
    items = "all items before" if settings.grow else f"the newest {settings.newest} items before"
    return (
        f"{trial.task.title}: {count(len(trial.dataset.users), 'user')}; base {trial.base_name}; modules of {items} "
        f"each of {count(settings.blocks, 'block')} of {count(settings.block, 'item')}, which are the questions."
    )


def _measured(trial: Trial, settings: Settings) -> _Found:
    """Every module asked every later block, and the base, which was adapted on none of them, asked all."""
    from oppu.data import without_test_questions
    from oppu.examples import PLAIN, training_examples

    all_blocks = range(settings.blocks)
    lines = [
        _Timeline(user, tuple(training_examples(trial.task, user, PLAIN)), settings) for user in trial.dataset.users
    ]
    _check(lines, settings)
    items = [item for line in lines for item in line.user.history[line.start(0) :]]
    probe = Probe(replace(trial, dataset=without_test_questions(trial.task, trial.dataset, items)))
    answered: dict[tuple[int | None, int], list[Answer]] = {}
    """By the block before which the module was trained (None: the base), and the block that was asked."""
    seconds, learnt = 0.0, 0
    for trained in (None, *all_blocks):
        blocks = all_blocks if trained is None else all_blocks[trained:]
        lessons = [
            Lesson(
                line.user.id,
                () if trained is None else line.learnt(trained),
                tuple(example for block in blocks for example in line.asked(block)),
            )
            for line in lines
        ]
        name = "base" if trained is None else f"module {trained + 1} of {settings.blocks}"
        answers = probe.answers(name, lessons, PLAIN, write=False)
        seconds += answers.seconds if trained is not None else 0.0
        learnt += sum(len(lesson.learnt) for lesson in lessons)
        listed = iter(answers.listed)
        for _ in lines:  # a lesson's questions come block by block
            for block in blocks:
                answered.setdefault((trained, block), []).extend(islice(listed, settings.block))
    trainings = len(lines) * settings.blocks
    ages = [_age(missed, lines, answered, all_blocks[missed:]) for missed in all_blocks]
    return _Found(tuple(ages), learnt / trainings, seconds / trainings)


def _age(
    missed: int,
    lines: Sequence[_Timeline],
    answered: Mapping[tuple[int | None, int], Sequence[Answer]],
    blocks: Sequence[int],
) -> _Age:
    days = [day for block in blocks for line in lines for day in line.days(block - missed, block)]
    return _Age(
        missed,
        tuple(
            tuple(answer for block in blocks for answer in answered[block - age, block]) for age in range(missed + 1)
        ),
        tuple(answer for block in blocks for answer in answered[None, block]),
        median(days) if days else None,
    )


def _check(lines: Sequence[_Timeline], settings: Settings) -> None:
    """DataError where a history is too short to be cut."""
    window = settings.newest or 1
    needed = window + settings.blocks * settings.block
    short = [
        f"user {line.user.id} has {len(line.examples)} items, which is less than {needed}"
        for line in lines
        if len(line.examples) < needed
    ]
    if short:
        needs = f"{window} to learn and {settings.blocks} blocks of {settings.block}"
        raise DataError(short, fix=f"a history is cut into {needs}: use less of them, or fewer --users")


def _ageing(settings: Settings, losses: Sequence[Gain], whole: Gain) -> str:
    oldest = (len(losses) - 1) * settings.block
    by_age = ", ".join(
        f"{signed(loss.value)} after {place * settings.block}" for place, loss in enumerate(losses) if place
    )
    return (
        f"Ageing costs {by_age} items. After {oldest}: {losses[-1].told}. A fresh module gains over the base, in NLL: "
        f"{whole.told}."
    )


def _paying(settings: Settings, found: _Found) -> str:
    """The longest interval that keeps enough, and every shorter one does, too."""
    if found.ages[0].kept is None:
        return "Modules gain nothing over the base here, so no refresh interval pays."
    # at least one: fresh modules lose nothing
    enough = list(takewhile(lambda age: age.kept is not None and age.kept >= settings.keep, found.ages))
    last = enough[-1]
    interval = len(enough) * settings.block
    longest = " (the longest that was looked at)" if len(enough) == len(found.ages) else ""
    what = (
        f"{settings.keep:.0%} of the gain"
        if last.gain.is_certain
        else f"If the gain is no chance, {settings.keep:.0%} of it"
    )
    if len(enough) == 1:
        return f"{what} is kept by none but the shortest interval, a refresh every {count(interval, 'item')}."
    return (
        f"{what} is kept by a refresh every {count(interval, 'item')}{longest}: it keeps {last.kept:.0%} of "
        f"{last.gain.text}, the gain on the same blocks, and trains {found.learnt / interval:.1f} items for each new "
        f"one, against {found.learnt / settings.block:.1f} with a refresh every {settings.block}."
    )


def _columns(measures: Sequence[str]) -> tuple[Column, ...]:
    return (
        Column("age_items", "Age in items"),
        Column("age_days", "in days", 1),
        Column("questions", "Questions", brief=False),
        *measure_columns(measures),
        *(
            Column(f"{measure}_{whose}", f"{name_of(measure, arrow=True)} {whose}", 3, brief=False)
            for whose in ("fresh", "base")
            for measure in measures
        ),
        Column("loss", "NLL lost", 3),
        Column("loss_low", "95 % from", 3, brief=False),
        Column("loss_high", "to", 3, brief=False),
        *gain_columns("base", "base"),
        *(replace(column, brief=False) for column in gain_columns("fresh", "base, fresh")),
        Column("refresh_items", "Refresh every"),
        Column("refresh_loss", "NLL lost on average", 3),
        Column("refresh_kept", "Gain kept", 2),
        Column("refresh_trained", "Trained per new item", 1),
        Column("refresh_seconds", "Seconds per new item", 2, brief=False),
    )


def _panels(
    trial: Trial,
    settings: Settings,
    found: _Found,
    losses: Sequence[Gain],
    measures: Sequence[str],
) -> tuple[Panel, ...]:
    ages = tuple(float(age.missed * settings.block) for age in found.ages)
    lost = Series(
        "",
        ages,
        tuple(loss.value for loss in losses),
        tuple((loss.value, loss.value) if math.isnan(loss.low) else (loss.low, loss.high) for loss in losses),
    )
    panels = [
        Panel(
            "What age costs",
            lines_of([lost], "items since the training", "NLL lost", level=0.0, from_zero=False),
            "Against the fresh module on the same questions, with 95 % intervals.",
        )
    ]
    for measure in measures[:1]:
        series = [
            Series(name, ages, tuple(scores_of(trial.task, answers)[measure] for answers in listed))
            for name, listed in (
                ("this age", [age.stale for age in found.ages]),
                ("fresh", [age.fresh for age in found.ages]),
                ("base", [age.base for age in found.ages]),
            )
        ]
        draw = lines_of(series, "items since the training", name_of(measure, arrow=True), from_zero=False)
        panels.append(Panel(f"{name_of(measure)} by age", draw, "Each age on its own blocks."))
    cost = Series(
        "",
        tuple(found.learnt / ((age.missed + 1) * settings.block) for age in found.ages),
        tuple(age.refresh_loss for age in found.ages),
    )
    draw = lines_of([cost], "items trained for each new item", "NLL lost on average", level=0.0, from_zero=False)
    panels.append(
        Panel(
            "What a refresh interval costs and loses",
            draw,
            f"From the right: every {settings.block} items, every {2 * settings.block}, …, each on its own blocks.",
        )
    )
    return tuple(panels)


STUDY = Study(
    name="staleness",
    title="How fast a module ages",
    summary="a module asked ever later items, and which refresh interval pays",
    help="""Train modules on windows of each history and ask them ever later items: what age costs, and what a refresh
    interval loses and costs.

    Example: `oppu study staleness --task news_headline --data data/news --newest 40 --block 10 --out runs/out/age`""",
    source="Section 9",
    paper="Interests are dynamic and may change over time; a module is trained once, on everything before its "
    "questions, and how it ages is not measured.",
    settings=Settings,
    run=_run,
)
