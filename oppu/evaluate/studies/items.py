"""Which items to keep, where a module may learn from a fixed number of them only.

Section 9 of the paper leaves open how to choose "the most relevant or valuable items from a user's history". Every way
chooses from the same items and asks the same questions; only what is learnt differs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from oppu.errors import ConfigError, DataError
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
from oppu.evaluate.lab.likeness import cosines, farthest_first, word_vectors
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.lab.trial import TrainingSettings, Trial, count, open_trial
from oppu.evaluate.metrics import FloatArray
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.reports.summary import number
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.records import Example

WAYS = ("recent", "random", "diverse", "surprising", "familiar")
_NAMES = {
    "recent": "the newest",
    "random": "random ones",
    "diverse": "the most different",
    "surprising": "the most surprising",
    "familiar": "the least surprising",
}


@dataclass(frozen=True, slots=True)
class Settings(TrainingSettings):
    """What is chosen, and how."""

    newest: int | None = option("Choose from the newest so many items of a history.", 40, least=2)
    budgets: tuple[int, ...] = option("Numbers of items that are kept.", (4, 8, 16), least=1)
    ways: tuple[str, ...] = option(f"Some of {', '.join(WAYS)}.", ("recent", "random", "diverse", "surprising"))
    draws: int = option("Draws of random items; their mean counts.", 3, least=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """A user's items to choose from."""

    user_id: str
    examples: tuple[Example, ...]
    """Oldest first."""
    surprise: tuple[float, ...]
    """NLL of each item's answer with the base."""
    alike: FloatArray
    """Cosine of every two items' words."""

    def kept(self, way: str, budget: int, seed: str) -> tuple[Example, ...]:
        """So many items, chosen in this way, oldest first."""
        places = range(len(self.examples))
        newest_first = places[::-1]
        if way == "recent":
            chosen: Sequence[int] = newest_first[:budget]
        elif way == "random":
            chosen = random.Random(f"{seed} {self.user_id}").sample(places, budget)
        elif way == "diverse":
            chosen = farthest_first(self.alike, budget, places[-1])
        else:
            sign = -1 if way == "surprising" else 1
            chosen = sorted(newest_first, key=lambda place: sign * self.surprise[place])[:budget]
        return tuple(self.examples[place] for place in sorted(chosen))


@dataclass(frozen=True, slots=True)
class _Kept:
    """One way to keep so many items, and what came of it."""

    way: str
    budget: int | None
    """None: all items, or none at all."""
    draws: tuple[tuple[Answer, ...], ...]

    @property
    def answers(self) -> list[Answer]:
        return averaged(self.draws)


def _run(settings: Settings, place: Workplace) -> Outcome:
    _check_ways(settings)
    trial = open_trial(settings, place)
    _check_budgets(trial, settings)
    base, everything, kept = _measured(trial, settings)
    measures = measures_of(trial.task, base.draws[0])
    chance = {each.budget: each for each in kept if each.way == "random"}
    rows: list[tuple[Value, ...]] = []
    for each in (base, everything, *kept):
        scores = mean_scores(trial.task, each.draws)
        over_base = gain(each.answers, base.answers) if each is not base else None
        drawn = chance.get(each.budget) if each.budget is not None and each.way != "random" else None
        over_chance = gain(each.answers, drawn.answers) if drawn is not None else None
        rows.append(
            (
                each.way,
                each.budget,
                *(scores[measure] for measure in measures),
                *gain_values(over_base),
                *gain_values(over_chance),
            )
        )
    return Outcome(
        found=tuple(_sentence(trial, budget, base, everything, kept) for budget in settings.budgets),
        panels=tuple(
            _panel(trial, settings, measure, everything, kept) for measure in dict.fromkeys((measures[0], NLL))
        ),
        table=Table(
            (
                Column("way", "Kept"),
                Column("items", "Items"),
                *measure_columns(measures),
                *gain_columns("base", "base"),
                *gain_columns("random", "random"),
            ),
            tuple(rows),
        ),
        facts=f"{trial.subject}; items are chosen from the newest {settings.newest} of each.",
        notes=(
            "Diverse: beginning with the newest, always the item whose words (TF-IDF) are least like those of any kept "
            f"one. Surprising: the highest NLL of the item's answer with the base. Random: mean of "
            f"{count(settings.draws, 'draw')}. Gains are of NLL, with 95 % intervals by resampling users. All ways "
            "take the same passes over their items, so that fewer items mean fewer steps.",
        ),
    )


def _check_ways(settings: Settings) -> None:
    for way in settings.ways:
        if way not in WAYS:
            raise ConfigError(f"unknown way '{way}'", where="--ways", fix=f"use some of: {', '.join(WAYS)}")


def _check_budgets(trial: Trial, settings: Settings) -> None:
    """DataError where a user has no more items than are to be kept: nothing would be chosen."""
    most = max(settings.budgets)
    sizes = {user.id: len(user.history[-(settings.newest or len(user.history)) :]) for user in trial.dataset.users}
    short = [
        f"user {user} has {size} items, which leaves no choice of {most}"
        for user, size in sizes.items()
        if size <= most
    ]
    if short:
        raise DataError(short, fix="use smaller --budgets, a larger --newest, or fewer --users")


def _measured(trial: Trial, settings: Settings) -> tuple[_Kept, _Kept, list[_Kept]]:
    """No items (the base), all items, and every way with every budget."""
    from oppu.examples import PLAIN, training_examples

    probe, users = Probe(trial), trial.dataset.users
    asked = questions_of(trial.task, users, PLAIN)
    examples = {u.id: tuple(training_examples(trial.task, u, PLAIN, newest=settings.newest)) for u in users}
    known = probe.answers("surprise", [Lesson(u.id, (), examples[u.id]) for u in users], PLAIN, write=False).listed
    choices = []
    for user in users:
        surprise = tuple(answer.nll for answer in known if answer.user_id == user.id)
        alike = cosines(word_vectors([f"{each.prompt} {each.answer}" for each in examples[user.id]]))
        choices.append(_Choice(user.id, examples[user.id], surprise, alike))

    def answers(name: str, learnt: dict[str, tuple[Example, ...]]) -> tuple[Answer, ...]:
        return probe.answers(name, [Lesson(u.id, learnt[u.id], asked[u.id]) for u in users], PLAIN).listed

    base = _Kept("none (base)", None, (answers("base", {user.id: () for user in users}),))
    everything = _Kept("all", None, (answers("all items", examples),))
    kept = []
    for budget in settings.budgets:
        for way in settings.ways:
            seeds = [f"{settings.seed} {draw}" for draw in range(settings.draws if way == "random" else 1)]
            draws = [
                answers(f"{way} {budget}", {each.user_id: each.kept(way, budget, seed) for each in choices})
                for seed in seeds
            ]
            kept.append(_Kept(way, budget, tuple(draws)))
    return base, everything, kept


def _panel(trial: Trial, settings: Settings, measure: str, everything: _Kept, kept: Sequence[_Kept]) -> Panel:
    series = []
    for way in settings.ways:
        these = sorted((each for each in kept if each.way == way), key=lambda each: each.budget or 0)
        y = tuple(mean_scores(trial.task, each.draws)[measure] for each in these)
        series.append(Series(way, tuple(float(each.budget or 0) for each in these), y))
    level = mean_scores(trial.task, everything.draws)[measure]
    draw = lines_of(
        series,
        "items kept",
        name_of(measure, arrow=True),
        log_x=True,
        level=level,
        level_name="all items",
        from_zero=False,
    )
    return Panel(f"{name_of(measure)} by the items kept", draw)


def _sentence(trial: Trial, budget: int, base: _Kept, everything: _Kept, kept: Sequence[_Kept]) -> str:
    these = {each.way: each for each in kept if each.budget == budget}
    nll = {way: mean_scores(trial.task, each.draws)[NLL] for way, each in these.items()}
    best = min(nll, key=lambda way: nll[way])
    none, most = (mean_scores(trial.task, each.draws)[NLL] for each in (base, everything))
    listed = ", ".join(f"{_NAMES[way]} {number(nll[way])}" for way in sorted(nll, key=lambda way: nll[way]))
    sentence = f"Of {count(budget, 'item')}: NLL {listed}; all items {number(most)}, the base {number(none)}."
    if most < none:
        sentence += f" The best keep {(none - nll[best]) / (none - most):.0%} of what all items gain."
    if "random" in these and best != "random":
        found = gain(these[best].answers, these["random"].answers)
        sentence += f" {_NAMES[best].capitalize()} against random ones: {found.told}"
        if len(these) > 2:
            sentence += "; they are the best of several ways by these same questions, which flatters them"
        sentence += "."
    return sentence


STUDY = Study(
    name="items",
    title="Which items to keep",
    summary="modules of a fixed number of items: newest, random, most different, most surprising",
    help="""Train modules on a fixed number of each user's items, chosen in several ways, and compare them with modules
    of all items and with the base.

    Example: `oppu study items --task movie_tagging --data data/movies --budgets 4,8 --out runs/out/items`""",
    source="Section 9",
    paper="Choosing the most relevant or valuable items of a history is named as future work; every module learns from "
    "all items.",
    settings=Settings,
    run=_run,
)
