"""Does a module exaggerate its user's own skew, and who gains and who loses?

Section 10 of the paper warns of it and measures nothing. A user's usual answer is counted in the history, in the right
answers and in what each method answers (`oppu/evaluate/lab/skew.py`): a method exaggerates where it gives the usual
answer more often than it is right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from statistics import mean, median
from typing import Any

from oppu.errors import DataError
from oppu.evaluate.lab.answers import (
    Answer,
    Gain,
    by_user,
    gain,
    measure_columns,
    measures_of,
    questions_of,
    scores_of,
)
from oppu.evaluate.lab.likeness import words_of
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.lab.skew import USUAL_WORDS, Skew, skews_of
from oppu.evaluate.lab.trial import Trial, TrialSettings, count, known, open_trial
from oppu.evaluate.reports.panels import COLORS, MARKERS, Panel
from oppu.evaluate.reports.plots import LINE_COLOR
from oppu.evaluate.reports.summary import signed
from oppu.evaluate.significance import mean_interval
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.tasks import Task

BASE, RAG, OPPU, BOTH = "base", "rag", "oppu", "oppu+rag"
METHODS = (BASE, RAG, OPPU, BOTH)
_NAMES = {BASE: "base", RAG: "retrieval", OPPU: "module", BOTH: "module and retrieval"}
_COUNTERPART = {OPPU: BASE, BOTH: RAG}


@dataclass(frozen=True, slots=True)
class Settings(TrialSettings):
    """Whose answers are looked at."""

    users: int | None = option("The users with the longest histories.", 8, least=1)


@dataclass(frozen=True, slots=True)
class _Leaning:
    """How much of a method's answers is usual, against how much is right."""

    right: float
    given: float
    excess: Gain
    """given - right, over all questions, with its interval."""
    weight: float | None
    """Probability that is given to the usual label; None for texts."""


def _run(settings: Settings, place: Workplace) -> Outcome:
    trial = open_trial(settings, place)
    skews, answers = _measured(trial, settings)
    task = trial.task
    measures = measures_of(task, answers[BASE])
    leanings = {method: _leaning(task, answers[method], skews) for method in METHODS}
    rows: list[tuple[Value, ...]] = []
    for method in METHODS:
        each, scores = leanings[method], scores_of(task, answers[method])
        other = answers.get(_COUNTERPART.get(method, ""))
        over = gain(answers[method], other) if other is not None else None
        rows.append(
            (
                method,
                mean(skew.in_history for skew in skews.values()),
                each.right,
                each.given,
                each.weight,
                each.excess.value,
                known(each.excess.low),
                known(each.excess.high),
                *_lengths(task, answers[method]),
                *(scores[measure] for measure in measures),
                over.value if over is not None else None,
                *_apart(task, skews, answers[method], other),
            )
        )
    users = _of_users(trial, skews, answers)
    return Outcome(
        found=(
            *_leaning_sentences(task, leanings, skews),
            _gain_sentence(users),
            *([_usual_sentence(task, skews, answers)] if task.labels else []),
        ),
        panels=_panels(task, users),
        table=Table(_columns(task, measures), tuple(rows)),
        facts=trial.facts(f"; retrieval k = {settings.k}"),
        notes=(
            _usual_note(task),
            "Gains: of a module over the same prompt without it, in NLL; intervals: users resampled.",
        ),
        numbers={"users": users},
    )


def _measured(trial: Trial, settings: Settings) -> tuple[dict[str, Skew], dict[str, tuple[Answer, ...]]]:
    """What each user usually answers, and every method's answers."""
    from oppu.examples import PLAIN, Setting, training_examples

    probe, users = Probe(trial), trial.dataset.users
    plain = {u.id: training_examples(trial.task, u, PLAIN, newest=settings.newest) for u in users}
    skews = skews_of(trial.task, {user: [str(each.answer) for each in listed] for user, listed in plain.items()})
    if not skews:
        what = "hold no labels" if trial.task.labels else "are empty"
        raise DataError([f"the histories {what}, so nobody has a usual answer"], fix="use another task")
    retrieval = Setting(k=settings.k, retriever=settings.retriever, seed=settings.seed)
    answers: dict[str, tuple[Answer, ...]] = {}
    for setting, without, with_module in ((PLAIN, BASE, OPPU), (retrieval, RAG, BOTH)):
        asked = questions_of(trial.task, users, setting)
        lessons = [Lesson(user.id, (), asked[user.id]) for user in users]
        answers[without] = probe.answers(_NAMES[without], lessons, setting).listed
        learnt = {u.id: tuple(training_examples(trial.task, u, setting, newest=settings.newest)) for u in users}
        lessons = [Lesson(user.id, learnt[user.id], asked[user.id]) for user in users]
        answers[with_module] = probe.answers(_NAMES[with_module], lessons, setting).listed
    return skews, {method: tuple(a for a in listed if a.user_id in skews) for method, listed in answers.items()}


def _leaning(task: Task, answers: Sequence[Answer], skews: Mapping[str, Skew]) -> _Leaning:
    right = [skews[answer.user_id].share(answer.gold) for answer in answers]
    given = [skews[answer.user_id].share(answer.output or "") for answer in answers]
    excess = [a - b for a, b in zip(given, right, strict=True)]
    users = [answer.user_id for answer in answers]
    weight = mean(_weight(task, skews, answer) for answer in answers) if task.labels else None
    return _Leaning(
        mean(right), mean(given), Gain(mean(excess), *mean_interval(users, excess), len(set(users))), weight
    )


def _weight(task: Task, skews: Mapping[str, Skew], answer: Answer) -> float:
    """Probability of the user's usual label."""
    return exp(answer.labels[task.labels.index(skews[answer.user_id].usual[0])])


def _lengths(task: Task, answers: Sequence[Answer]) -> tuple[float, ...]:
    """Of texts: words of an answer, and of the right one, on average."""
    if task.labels:
        return ()
    return mean(len(words_of(a.output or "")) for a in answers), mean(len(words_of(a.gold)) for a in answers)


def _apart(
    task: Task, skews: Mapping[str, Skew], answers: Sequence[Answer], other: Sequence[Answer] | None
) -> tuple[float | None, ...]:
    """Of labels: gain in NLL where the usual answer is right, and where another one is."""
    if not task.labels:
        return ()
    if other is None:
        return None, None
    found = []
    for usual in (True, False):
        sides = [[a for a in side if bool(skews[a.user_id].share(a.gold)) == usual] for side in (answers, other)]
        found.append(gain(*sides).value if sides[0] else None)
    return tuple(found)


def _of_users(trial: Trial, skews: Mapping[str, Skew], answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """Of each user: history, skew, what each method answers and what the module gains; for figure and JSON."""
    listed = {method: by_user(each) for method, each in answers.items()}
    found = []
    for user in trial.dataset.users:
        if user.id not in skews or user.id not in listed[BASE]:
            continue
        own = {method: listed[method][user.id] for method in METHODS}
        leanings = {method: _leaning(trial.task, own[method], skews) for method in METHODS}
        found.append(
            {
                "user": user.id,
                "items": len(user.history),
                "questions": len(own[BASE]),
                "usual": list(skews[user.id].usual),
                "in_history": skews[user.id].in_history,
                "right": leanings[BASE].right,
                "given": {method: leanings[method].given for method in METHODS},
                "weight": {method: leanings[method].weight for method in METHODS},
                "gain": gain(own[OPPU], own[BASE]).value,
            }
        )
    return found


def _columns(task: Task, measures: Sequence[str]) -> tuple[Column, ...]:
    lengths = () if task.labels else (Column("words", "Words", 1), Column("words_right", "Words right", 1))
    apart = (
        (Column("gain_usual", "where usual is right", 3), Column("gain_other", "where not", 3)) if task.labels else ()
    )
    return (
        Column("method", "Method"),
        Column("usual_in_history", "Usual in history", 3, brief=False),
        Column("usual_right", "Usual is right", 3),
        Column("usual_given", "is given", 3),
        Column("usual_probability", "Probability", 3),
        Column("excess", "Excess", 3),
        Column("excess_low", "95 % from", 3),
        Column("excess_high", "to", 3),
        *lengths,
        *measure_columns(measures),
        Column("gain", "NLL gain", 3),
        *apart,
    )


def _usual_note(task: Task) -> str:
    what = (
        "the label that stands most often in the items that the module learns from"
        if task.labels
        else f"the {USUAL_WORDS} words that a user writes more often than others do, as a share of an answer's words"
    )
    return f"The usual answer: {what}. Excess: how much more often it is given than it is right."


def _leaning_sentences(task: Task, leanings: Mapping[str, _Leaning], skews: Mapping[str, Skew]) -> tuple[str, ...]:
    history = mean(skew.in_history for skew in skews.values())
    right = leanings[BASE].right
    given = ", ".join(f"{_NAMES[method]} {leanings[method].given:.0%}" for method in METHODS)
    first = (
        f"The usual label stands in {history:.0%} of a history's items and is right for {right:.0%} of the questions. "
        f"Given: {given}."
        if task.labels
        else f"Usual words are {history:.0%} of the words in a history's answers and {right:.0%} in right ones. "
        f"Written: {given}."
    )
    parts = [
        f"{_NAMES[method]} {leanings[method].excess.text}{_verdict(leanings[method].excess)}" for method in METHODS
    ]
    return first, f"Excess over what is right: {'; '.join(parts)}."


def _verdict(excess: Gain) -> str:
    if not excess.is_certain:
        return ", which may be chance"
    return ", it exaggerates" if excess.value > 0 else ", it understates"


def _gain_sentence(users: Sequence[Mapping[str, Any]]) -> str:
    gaining = sum(user["gain"] > 0 for user in users)
    parts = [f"{gaining} of {count(len(users), 'user')} gain in NLL from their module, {len(users) - gaining} lose"]
    for what, key in (("a stronger skew", "in_history"), ("a longer history", "items")):
        middle = median(user[key] for user in users)
        upper = [user["gain"] for user in users if user[key] > middle]
        lower = [user["gain"] for user in users if user[key] <= middle]
        if upper:
            parts.append(f"users with {what} gain {signed(mean(upper))}, the others {signed(mean(lower))}")
    return "; ".join(parts) + "."


def _usual_sentence(task: Task, skews: Mapping[str, Skew], answers: Mapping[str, Sequence[Answer]]) -> str:
    usual, other = _apart(task, skews, answers[OPPU], answers[BASE])
    shown = ["no such question" if value is None else signed(value) for value in (usual, other)]
    return (
        f"The module's gain in NLL where the user's usual label is right: {shown[0]}; where another one is: {shown[1]}."
    )


def _panels(task: Task, users: Sequence[Mapping[str, Any]]) -> tuple[Panel, ...]:
    usual = "usual label" if task.labels else "usual words"
    return (
        Panel(
            f"Share of the {usual}",
            _shares(users, [BASE, OPPU]),
            "A dot for each user; on the line it is given as often as it is right, above it more often.",
        ),
        Panel(
            "Gain by skew",
            _dots([(user["in_history"], user["gain"]) for user in users], f"share of the {usual} in the history"),
            "A dot for each user, below the line a loss.",
        ),
        Panel(
            "Gain by history",
            _dots([(user["items"], user["gain"]) for user in users], "items of the history"),
            "A dot for each user, below the line a loss.",
        ),
    )


def _shares(users: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        x = [user["right"] for user in users]
        for place, method in enumerate(methods):
            y = [user["given"][method] for user in users]
            axes.plot(x, y, MARKERS[place], markersize=5, color=COLORS[place], alpha=0.8, label=_NAMES[method])
        top = max([*x, *(user["given"][method] for user in users for method in methods)]) or 1.0
        axes.plot([0, top], [0, top], color=LINE_COLOR, linewidth=0.8)
        axes.set_xlabel("right")
        axes.set_ylabel("given")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, handletextpad=0.1, borderaxespad=0)

    return draw


def _dots(points: Sequence[tuple[float, float]], x_label: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.plot([x for x, _ in points], [y for _, y in points], "o", markersize=5, color=COLORS[0], alpha=0.8)
        axes.axhline(0, color=LINE_COLOR, linewidth=0.8)
        axes.set_xlabel(x_label)
        axes.set_ylabel("NLL gain of the module")
        axes.grid(axis="y")

    return draw


STUDY = Study(
    name="bias",
    title="Does a module exaggerate its user's skew?",
    summary="the user's usual answer in the history, in the right answers and in those given; who gains, who loses",
    help="""Count each user's usual answer in the history, in the right answers and in those of base, retrieval and
    module: whether modules exaggerate it, and who gains and who loses by a module. Of texts, usual words are counted.

    Example: `oppu study bias --task news_categorize --data data/news --users 20 --out runs/out/bias`""",
    source="Section 10",
    paper="A module's answers may perpetuate biased or unrepresentative personal data, which should be monitored and "
    "mitigated; nothing is measured.",
    settings=Settings,
    run=_run,
)
