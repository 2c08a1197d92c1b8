"""Users who share a module: groups of users who are alike, against random ones, of growing size.

The paper says that "each user (or user cohort)" may have a module, and tries users alone. Here every module learns from
equally many items, whatever its size: a cohort of four gives a quarter each. So what is seen is what others' items are
worth; with `--pooled` every member gives as many as alone. No member gives an item that asks what another is asked.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from oppu.errors import DataError
from oppu.evaluate.lab.alike import users_alike, way_of
from oppu.evaluate.lab.answers import (
    NLL,
    Answer,
    averaged,
    gain,
    gain_columns,
    gain_values,
    mean_scores,
    measure_columns,
    measures_of,
    name_of,
    questions_of,
)
from oppu.evaluate.lab.likeness import groups_of, mean_likeness
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.lab.trial import TrainingSettings, Trial, count, open_trial
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.reports.summary import number
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.records import Example, User
from oppu.tasks import Task

ALONE, ALIKE, RANDOM, EVERYBODY = "alone", "alike", "random", "everybody"


@dataclass(frozen=True, slots=True)
class Settings(TrainingSettings):
    """Which cohorts."""

    users: int | None = option("The users with the longest histories.", 8, least=2)
    newest: int | None = option("Items that a module learns, over all its users, each one's newest.", 16, least=1)
    sizes: tuple[int, ...] = option("Users of a cohort; users alone are always measured.", (2, 4, 8), least=2)
    by: str | None = option("What makes users alike: labels or words. [default: labels, where there are some]", None)
    draws: int = option("Draws of random cohorts; their mean counts.", 3, least=1)
    pooled: bool = option("Every member gives --newest items, so that a larger cohort learns from more.", False)


@dataclass(frozen=True, slots=True)
class _Cohorts:
    """One way to share modules, and what came of it."""

    way: str
    size: int
    modules: int
    items: float
    """Of a module, on average."""
    likeness: float | None
    """Within the cohorts, mean over pairs of members; None for users alone."""
    draws: tuple[tuple[Answer, ...], ...]

    @property
    def answers(self) -> list[Answer]:
        return averaged(self.draws)


def _run(settings: Settings, place: Workplace) -> Outcome:
    trial = open_trial(settings, place)
    by = way_of(trial.task, trial.dataset.users, settings.by)
    budget = _budget(trial, settings)
    base, found = _measured(trial, settings, by, budget)
    alone = found[0]
    measures = measures_of(trial.task, base)
    rows: list[tuple[Value, ...]] = []
    scores = mean_scores(trial.task, [base])
    rows.append(("none (base)", None, None, None, None, *(scores[m] for m in measures), *[None] * 6))
    for each in found:
        scores = mean_scores(trial.task, each.draws)
        over_alone = gain(each.answers, alone.answers) if each is not alone else None
        rows.append(
            (
                each.way,
                each.size,
                each.modules,
                each.items,
                each.likeness,
                *(scores[measure] for measure in measures),
                *gain_values(gain(each.answers, base)),
                *gain_values(over_alone),
            )
        )
    return Outcome(
        found=tuple(_sentence(trial, each, found, base) for each in found if each.way in (ALIKE, EVERYBODY)),
        panels=tuple(_panel(trial, measure, found, base) for measure in dict.fromkeys((measures[0], NLL))),
        table=Table(
            (
                Column("cohorts", "Cohorts"),
                Column("size", "Users of each"),
                Column("modules", "Modules"),
                Column("items", "Items of each", 1),
                Column("likeness", "Likeness", 3),
                *measure_columns(measures),
                *gain_columns("base", "base"),
                *gain_columns("alone", "alone"),
            ),
            tuple(rows),
        ),
        facts=_facts(trial, settings, budget),
        notes=(
            f"Likeness: the cosine of two users' {'label counts' if by == 'labels' else 'words (TF-IDF)'}. Cohorts of "
            "users who are alike begin with the two most alike of those left, and take in who is most like them; the "
            f"last takes what is left. Random cohorts: mean of {count(settings.draws, 'draw')}.",
            "Each module learns equally many items, divided over its users, their newest; fewer modules thus cost less "
            "training as well as less room."
            if not settings.pooled
            else "Every member gives as many items as alone, so that a larger cohort learns from more of them, and all "
            "cohorts cost the same training.",
        ),
        numbers={"by": by},
    )


def _facts(trial: Trial, settings: Settings, budget: int) -> str:
    items = "of every member at most" if settings.pooled else "in all"
    short = f", as many as the shortest history has instead of {settings.newest}" if budget != settings.newest else ""
    return f"{trial.subject}; a module of {budget} items {items}{short}."


def _budget(trial: Trial, settings: Settings) -> int:
    """Items of each module: --newest, and no more than everybody can give, lest users alone learn less than cohorts."""
    from oppu.data import without_questions_of_others

    wanted = settings.newest or 1
    if settings.pooled:
        return wanted
    given = {user.id: len(user.history) for user in without_questions_of_others(trial.task, trial.dataset.users)}
    if short := [name for name, items in given.items() if not items]:
        problems = [f"user {name} has no item that nobody else is asked" for name in short]
        raise DataError(problems, fix="leave these users out, or give --pooled")
    return min(wanted, *given.values())


def _measured(trial: Trial, settings: Settings, by: str, budget: int) -> tuple[tuple[Answer, ...], list[_Cohorts]]:
    """The base's answers; users alone, then every size, alike and random."""
    from oppu.examples import PLAIN, training_examples

    probe, users = Probe(trial), trial.dataset.users
    if len(users) < 2:
        raise DataError(["one user has nobody to share a module with"], fix="use data with more users")
    examples = [tuple(training_examples(trial.task, user, PLAIN, newest=settings.newest)) for user in users]
    asked = questions_of(trial.task, users, PLAIN)
    alike = users_alike(trial.task, examples, by)
    base = probe.answers("base", [Lesson(user.id, (), asked[user.id]) for user in users], PLAIN).listed

    def cohorts(way: str, size: int, drawn: Sequence[Sequence[Sequence[int]]]) -> _Cohorts:
        draws, items, likeness = [], [], []
        for groups in drawn:
            lessons = [
                Lesson(
                    "+".join(users[place].id for place in group),
                    _learnt(trial.task, [users[place] for place in group], budget, settings.pooled),
                    tuple(example for place in group for example in asked[users[place].id]),
                )
                for group in groups
            ]
            draws.append(probe.answers(f"{way}, {size}", lessons, PLAIN).listed)
            items += [len(lesson.learnt) for lesson in lessons]
            likeness += [mean_likeness(alike, group) for group in groups if len(group) > 1]
        mean = sum(likeness) / len(likeness) if likeness else None
        return _Cohorts(way, size, len(drawn[0]), sum(items) / len(items), mean, tuple(draws))

    everyone = range(len(users))
    found = [cohorts(ALONE, 1, [[[place] for place in everyone]])]
    for size in sorted({min(size, len(users)) for size in settings.sizes}):
        if size == len(users):
            found.append(cohorts(EVERYBODY, size, [[list(everyone)]]))
            continue
        found.append(cohorts(ALIKE, size, [groups_of(alike, size)]))
        seeds = [f"{settings.seed} {size} {draw}" for draw in range(settings.draws)]
        found.append(cohorts(RANDOM, size, [_shuffled(len(users), size, seed) for seed in seeds]))
    return base, found


def _learnt(task: Task, members: Sequence[User], budget: int, pooled: bool) -> tuple[Example, ...]:
    """Each member's newest items that no other one is asked; those left over by the division are the first members'."""
    from oppu.data import without_questions_of_others
    from oppu.examples import PLAIN, training_examples

    size = len(members)
    shares = [budget if pooled else budget // size + (place < budget % size) for place in range(size)]
    return tuple(
        example
        for member, share in zip(without_questions_of_others(task, members), shares, strict=True)
        for example in training_examples(task, member, PLAIN, newest=share)
    )


def _shuffled(users: int, size: int, seed: str) -> list[list[int]]:
    places = random.Random(seed).sample(range(users), users)
    return [sorted(places[start : start + size]) for start in range(0, users, size)]


def _panel(trial: Trial, measure: str, found: Sequence[_Cohorts], base: Sequence[Answer]) -> Panel:
    ends = [each for each in found if each.way in (ALONE, EVERYBODY)]
    series = []
    for way in (ALIKE, RANDOM):
        these = sorted([each for each in found if each.way == way] + ends, key=lambda each: each.size)
        y = tuple(mean_scores(trial.task, each.draws)[measure] for each in these)
        series.append(Series(way, tuple(float(each.size) for each in these), y))
    level = mean_scores(trial.task, [base])[measure]
    draw = lines_of(
        series,
        "users who share a module",
        name_of(measure, arrow=True),
        log_x=True,
        level=level,
        level_name="base",
        from_zero=False,
    )
    return Panel(f"{name_of(measure)} by the size of a cohort", draw)


def _sentence(trial: Trial, each: _Cohorts, found: Sequence[_Cohorts], base: Sequence[Answer]) -> str:
    alone = found[0]
    scores = {one.way: mean_scores(trial.task, one.draws)[NLL] for one in found if one.size in (1, each.size)}
    over_base = gain(each.answers, base)
    over_alone = gain(each.answers, alone.answers)
    alike = f"{count(each.modules, 'module')} for cohorts of {each.size} who are alike"
    who = "One module for everybody" if each.way == EVERYBODY else alike
    sentence = (
        f"{who}: NLL {number(scores[each.way])}, alone {number(scores[ALONE])}; gain "
        f"over the base {over_base.text}; over modules of users alone {over_alone.told}"
    )
    if RANDOM in scores and each.way == ALIKE:
        drawn = next(one for one in found if one.way == RANDOM and one.size == each.size)
        sentence += f"; over random cohorts {gain(each.answers, drawn.answers).told}"
    return f"{sentence}."


STUDY = Study(
    name="cohorts",
    title="Users who share a module",
    summary="one module for users who are alike, by the size of the cohort, against random cohorts",
    help="""Let users share modules, in cohorts of users who are alike and in random ones, at equally many items for
    each module.

    Example: `oppu study cohorts --task news_categorize --data data/news --users 16 --out runs/out/cohorts`""",
    source="Section 1",
    paper="A module may belong to a user or to a user cohort; only users alone are tried. Similarities of modules "
    "(appendix B.1) are said to hint at users who could be grouped.",
    settings=Settings,
    run=_run,
)
