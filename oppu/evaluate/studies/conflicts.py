"""Conflicting histories: how module and retrieval bear items that contradict the others.

Section 9 of the paper names conflicts within a history as unsolved. Here they are put into histories by hand
(`oppu/evaluate/lab/contradict.py`), so that the questions and their right answers stay; what changes is what is learnt
and what is retrieved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from oppu.errors import ConfigError, DataError
from oppu.evaluate.lab.answers import (
    NLL,
    Answer,
    gain,
    measure_columns,
    measures_of,
    name_of,
    questions_of,
    scores_of,
)
from oppu.evaluate.lab.contradict import CONFLICTS, contradicted
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.lab.trial import Trial, TrialSettings, known, open_trial
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.reports.summary import signed
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.records import User

METHODS = ("rag", "oppu", "oppu+rag")
_NAMES = {"rag": "retrieval", "oppu": "module", "oppu+rag": "module and retrieval"}
_WHAT = {
    "noise": "wrong answers here and there",
    "former": "another habit in the oldest items",
    "contradiction": "items that stand twice, first with a wrong answer",
}


@dataclass(frozen=True, slots=True)
class Settings(TrialSettings):
    """Which conflicts, and how many."""

    conflicts: tuple[str, ...] = option(f"Some of {', '.join(CONFLICTS)}.", CONFLICTS)
    shares: tuple[float, ...] = option("Shares of a user's items that are in conflict, above 0.", (0.25, 0.5))


@dataclass(frozen=True, slots=True)
class _Case:
    """A method on histories with a share in conflict."""

    conflict: str
    share: float
    method: str
    answers: tuple[Answer, ...]


def _run(settings: Settings, place: Workplace) -> Outcome:
    _check(settings)
    trial = open_trial(settings, place)
    base, cases = _measured(trial, settings)
    measures = measures_of(trial.task, base)
    plain = {case.method: case for case in cases if case.share == 0}
    columns = (
        Column("conflict", "Conflict"),
        Column("share", "Share", 2),
        Column("method", "Method"),
        *measure_columns(measures),
        Column("loss", "NLL lost", 3),
        Column("loss_low", "95 % from", 3, brief=False),
        Column("loss_high", "to", 3, brief=False),
        Column("gain_base", "NLL gain over base", 3),
    )
    rows: list[tuple[Value, ...]] = [("none", 0.0, "base", *_scores(trial, base, measures), None, None, None, None)]
    for case in cases:
        lost = gain(plain[case.method].answers, case.answers)
        ends = (lost.value, known(lost.low), known(lost.high)) if case.share else (None, None, None)
        over = gain(case.answers, base).value
        conflict = case.conflict if case.share else "none"
        rows.append((conflict, case.share, case.method, *_scores(trial, case.answers, measures), *ends, over))
    return Outcome(
        found=tuple(_sentence(trial, conflict, settings, cases, base) for conflict in settings.conflicts),
        panels=tuple(
            _panel(trial, conflict, measure, cases, base)
            for conflict in settings.conflicts
            for measure in dict.fromkeys((measures[0], NLL))
        ),
        table=Table(columns, tuple(rows)),
        facts=trial.facts(f", the same for retrieval (k = {settings.k})"),
        notes=(
            "Noise: items drawn at random have a wrong answer. Former: the oldest items follow another habit, in which "
            "each label stands for the next one in the user's order of use; of a text task, the words of an answer "
            "from last to first. Contradiction: items drawn at random stand in the history twice, first with a wrong "
            "answer. A wrong answer is a label drawn from the others; of a text task, the answer to another item of "
            "the user. Questions and right answers stay as they are, and so does the base. With contradictions a "
            "history is longer, so that its module takes more steps.",
            "NLL lost: against the same method on the unchanged history; intervals by resampling users.",
        ),
    )


def _check(settings: Settings) -> None:
    for share in settings.shares:
        if not 0 < share <= 1:
            raise ConfigError(
                f"{share:g} is no share of a history", where="--shares", fix="use numbers above 0 up to 1"
            )
    for conflict in settings.conflicts:
        if conflict not in CONFLICTS:
            fix = f"use some of: {', '.join(CONFLICTS)}"
            raise ConfigError(f"unknown conflict '{conflict}'", where="--conflicts", fix=fix)


def _measured(trial: Trial, settings: Settings) -> tuple[tuple[Answer, ...], list[_Case]]:
    """The base's answers, and every method's with every history."""
    from oppu.examples import PLAIN, Setting, training_examples

    probe = Probe(trial)
    users = [_newest(user, settings.newest) for user in trial.dataset.users]
    short = [
        f"user {user.id} has {len(user.history)} items, of which a share of {min(settings.shares):g} is none"
        for user in users
        if round(min(settings.shares) * len(user.history)) == 0
    ]
    if short:
        raise DataError(short, fix="use larger --shares, or fewer --users")
    versions = [("none", 0.0, users)]
    for conflict in settings.conflicts:
        for share in sorted(settings.shares):
            versions.append((conflict, share, [_contradicted(trial, user, share, conflict) for user in users]))
    retrieval = Setting(k=settings.k, retriever=settings.retriever, seed=settings.seed)
    found: dict[tuple[str, float, str], tuple[Answer, ...]] = {}
    base: tuple[Answer, ...] = ()
    for setting, methods in ((PLAIN, ("oppu",)), (retrieval, ("rag", "oppu+rag"))):  # one adapted base after the other
        for conflict, share, changed in versions:
            asked = questions_of(trial.task, changed, setting)
            learnt = {user.id: tuple(training_examples(trial.task, user, setting)) for user in changed}
            if setting == PLAIN and not share:
                base = probe.answers("base", [Lesson(u.id, (), asked[u.id]) for u in changed], setting).listed
            for method in methods:
                lessons = [Lesson(u.id, learnt[u.id] if method != "rag" else (), asked[u.id]) for u in changed]
                name = f"{_NAMES[method]}, {conflict} {share:g}" if share else _NAMES[method]
                found[conflict, share, method] = probe.answers(name, lessons, setting).listed
    return base, [
        _Case(conflict, share, method, found[conflict, share, method])
        for conflict, share, _ in versions
        for method in METHODS
    ]


def _newest(user: User, newest: int | None) -> User:
    return replace(user, history=user.history[-newest:]) if newest is not None else user


def _contradicted(trial: Trial, user: User, share: float, conflict: str) -> User:
    seed = f"{trial.settings.seed} {user.id}"
    return replace(user, history=contradicted(trial.task, user.history, share, conflict, seed))


def _scores(trial: Trial, answers: Sequence[Answer], measures: Sequence[str]) -> tuple[float, ...]:
    found = scores_of(trial.task, answers)
    return tuple(found[measure] for measure in measures)


def _panel(trial: Trial, conflict: str, measure: str, cases: Sequence[_Case], base: Sequence[Answer]) -> Panel:
    series = []
    for method in METHODS:
        these = [case for case in cases if case.method == method and case.conflict in ("none", conflict)]
        y = tuple(scores_of(trial.task, case.answers)[measure] for case in these)
        series.append(Series(_NAMES[method], tuple(case.share for case in these), y))
    level = scores_of(trial.task, base)[measure]
    draw = lines_of(
        series, "share of items", name_of(measure, arrow=True), level=level, level_name="base", from_zero=False
    )
    return Panel(f"{conflict.capitalize()}: {name_of(measure)}", draw, f"{_WHAT[conflict].capitalize()}.")


def _sentence(trial: Trial, conflict: str, settings: Settings, cases: Sequence[_Case], base: Sequence[Answer]) -> str:
    most = max(settings.shares)
    these = {case.method: case for case in cases if case.conflict == conflict and case.share == most}
    plain = {case.method: case for case in cases if case.share == 0}
    losses = {method: gain(plain[method].answers, these[method].answers) for method in METHODS}
    parts = [
        f"{_NAMES[method]} {lost.text}, its gain over the base then {signed(gain(these[method].answers, base).value)}"
        for method, lost in losses.items()
    ]
    chance = [_NAMES[method] for method, lost in losses.items() if not lost.is_certain]
    told = f" May be chance: {', '.join(chance)}." if chance else ""
    return f"{_WHAT[conflict].capitalize()}, in {most:.0%} of a history. NLL lost: {'; '.join(parts)}.{told}"


STUDY = Study(
    name="conflicts",
    title="Conflicting histories",
    summary="wrong, former and contradicting items: what they cost a module, and what retrieval",
    help="""Put conflicts into users' histories and compare what they cost modules, retrieval, and both together: wrong
    answers, a former habit in the oldest items, and items that stand twice with different answers.

    Example: `oppu study conflicts --task movie_tagging --data data/movies --shares 0.1,0.3 --out runs/out/odd`""",
    source="Section 9",
    paper="Interests may be inconsistent or in conflict over time; managing that is named as future work, and not "
    "measured.",
    settings=Settings,
    run=_run,
)
