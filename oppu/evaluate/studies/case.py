"""Case study (Figure 5): the question on which a module tells most, with what each method saw and said.

What is told is the log-probability of the true answer, so that a difference shows even where the answers are the same.
One case proves nothing and the best one least of all; so the question on which the module does most harm stands beside
it, and the figure shows all questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from oppu.evaluate.circumstances import versions
from oppu.evaluate.comparisons import is_personal
from oppu.evaluate.lab.trial import Ran, Trial, TrialSettings, count, open_trial
from oppu.evaluate.reports.panels import Panel, Series, marks_of
from oppu.evaluate.reports.plots import BETTER_COLOR, LINE_COLOR, WORSE_COLOR
from oppu.evaluate.reports.summary import signed
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.prompts import cut_words
from oppu.records import Query, User, UserProfile

if TYPE_CHECKING:
    from oppu.examples import Setting
    from oppu.records import Example

PLAIN_METHODS: tuple[str, ...] = ("base", "rag")
PERSONAL_METHODS: tuple[str, ...] = ("oppu", "oppu+rag")


@dataclass(frozen=True, slots=True)
class Settings(TrialSettings):
    """What is shown beside the usual methods."""

    profiles: Path | None = option(
        "File of textual profiles (JSON {user: profile} or JSONL): adds the methods pag and oppu+pag.", None
    )
    words: int = option("Words of a text that are shown; longer ones are cut.", 60, least=1)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question, and by method what came of it."""

    user: User
    query: Query
    log_probs: Mapping[str, float]
    """Of the true answer, as `score_users` has it."""
    outputs: Mapping[str, str]

    def gain(self, personal: str, others: Sequence[str]) -> float:
        """By how much the method finds the true answer likelier than the best of the others."""
        return self.log_probs[personal] - max(self.log_probs[name] for name in others)


def _run(settings: Settings, place: Workplace) -> Outcome:
    from oppu.profiles import read_profiles

    profiles: Mapping[str, UserProfile] | None = None
    plain, personal = PLAIN_METHODS, PERSONAL_METHODS
    if settings.profiles is not None:
        profiles = read_profiles(settings.profiles)
        plain, personal = (*plain, "pag"), (*personal, "oppu+pag")
    trial = open_trial(settings, place, profiles=profiles)
    ran = trial.run("case", (*plain, *personal), k=(settings.k,))
    asked = _asked(trial, settings, ran, (*plain, *personal))
    ordered = sorted(asked, key=lambda each: (-each.gain("oppu", plain), each.query.id))
    cases = {_name(each, plain, place): each for place, each in _ends(ordered)}
    seen = {name: _seen(trial, settings, each) for name, each in cases.items()}
    return Outcome(
        found=_found(trial, ordered, cases, plain, seen),
        panels=_panels(trial.task.kind, ordered, cases, plain, (*plain, *personal)),
        table=_table(settings, cases, (*plain, *personal), seen),
        facts=trial.facts(),
        notes=_NOTES,
        numbers={
            "gains": {each.query.id: round(each.gain("oppu", plain), 6) for each in ordered},
            "prompts": {name: {method: each.prompt for method, each in by.items()} for name, by in seen.items()},
        },
    )


def _ends(ordered: Sequence[_Asked]) -> list[tuple[int, _Asked]]:
    """The first and the last, with 0 and 1; of one question, that one."""
    return [(0, ordered[0]), (1, ordered[-1])][: len(ordered)]


def _name(case: _Asked, plain: Sequence[str], place: int) -> str:
    """What an end of the order is: even the first may have been harmed."""
    helped = case.gain("oppu", plain) > 0
    return (("least harm", "most help") if place == 0 else ("most harm", "least help"))[helped]


def _asked(trial: Trial, settings: Settings, ran: Ran, methods: Sequence[str]) -> list[_Asked]:
    """Every question with the true answer's log-probability under each method."""
    outputs: dict[tuple[str, str], dict[str, str]] = {}
    log_probs: dict[tuple[str, str], dict[str, float]] = {}
    for done, method in enumerate(methods):
        trial.place.on_stage("log-probabilities", done, len(methods))
        scores = _log_probs(trial, settings, ran, method)
        for said in ran.cell(method).predictions:
            outputs.setdefault((said.user_id, said.query_id), {})[method] = said.output
        for user in trial.dataset.users:
            for query, score in zip(user.queries, scores[user.id], strict=True):
                log_probs.setdefault((user.id, query.id), {})[method] = score
    return [
        _Asked(user, query, log_probs[user.id, query.id], outputs[user.id, query.id])
        for user in trial.dataset.users
        for query in user.queries
    ]


def _log_probs(trial: Trial, settings: Settings, ran: Ran, method: str) -> dict[str, list[float]]:
    """By user; what was scored before with the same modules is not scored again."""
    from oppu.answering import score_users
    from oppu.model.base import load_base
    from oppu.personalize import Plan
    from oppu.store import Store

    cell = ran.cell(method)
    base, folder = ran.bases[cell.name], ran.stores[cell.name]
    plan = Plan(trial.task, trial.recipe.personal, _setting(method, settings), settings.newest)

    def measure() -> dict[str, Any]:
        loaded = load_base(base.name, device=settings.device)
        users = trial.dataset.users
        with Store(folder) as store:
            return {"scores": score_users(loaded, plan, users, store if is_personal(method) else None, trial.profiles)}

    inputs = {"what": "log-probabilities", "cell": cell.fingerprint, "method": cell.name, "versions": versions()}
    found: dict[str, list[float]] = trial.place.measured(inputs, measure, f"{cell.name}: log-probabilities")["scores"]
    return found


def _setting(method: str, settings: Settings) -> "Setting":
    from oppu.evaluate.design import method as find_method

    return find_method(method, settings.k, settings.seed, retriever=settings.retriever).setting


def _seen(trial: Trial, settings: Settings, case: _Asked) -> "dict[str, Example]":
    """The prompt of each method for the case."""
    from oppu.examples import query_examples

    place = case.user.queries.index(case.query)
    profile = (trial.profiles or {}).get(case.user.id)
    return {
        method: query_examples(trial.task, case.user, _setting(method, settings), profile)[place]
        for method in case.outputs
    }


_UNITS = {
    "label": "Among the task's labels",
    "rating": "Among the task's ratings",
    "text": "The mean over the tokens of the true answer",
}
"""What a log-probability is of, by kind of task."""


def _panels(
    kind: str, ordered: Sequence[_Asked], cases: Mapping[str, _Asked], plain: Sequence[str], methods: Sequence[str]
) -> tuple[Panel, ...]:
    gains = [each.gain("oppu", plain) for each in ordered]

    def draw(axes: Any) -> None:
        colors = [BETTER_COLOR if gain > 0 else WORSE_COLOR for gain in gains]
        axes.bar(range(1, len(gains) + 1), gains, color=colors, width=0.8)
        axes.axhline(0, color=LINE_COLOR, linewidth=0.8)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("questions, greatest gain first")
        axes.set_ylabel("gain in log p of the true answer")
        axes.grid(axis="y")

    marks = [
        Series(name, tuple(map(float, range(len(methods)))), tuple(each.log_probs[method] for method in methods))
        for name, each in cases.items()
    ]
    return (
        Panel("The module on every question", draw, "Against the better of the methods without a module."),
        Panel(
            "The cases by method",
            marks_of(marks, methods, "log p of the true answer"),
            f"{_UNITS[kind]}; higher is better.",
        ),
    )


def _table(
    settings: Settings,
    cases: Mapping[str, _Asked],
    methods: Sequence[str],
    seen: "Mapping[str, Mapping[str, Example]]",
) -> Table:
    columns = (
        Column("case", "Case"),
        Column("method", "Method"),
        Column("said", "Said"),
        Column("log_prob", "log p of the true answer", 3),
        Column("retrieved", "Retrieved", brief=False),
        Column("seen", "Seen above the question", brief=False),
    )
    rows: list[tuple[Value, ...]] = []
    for name, case in cases.items():
        for method in methods:
            example = seen[name][method]
            above = example.prompt.removesuffix(seen[name]["base"].prompt).strip()
            rows.append(
                (
                    name,
                    method,
                    case.outputs[method],
                    case.log_probs[method],
                    ", ".join(example.retrieved) or None,
                    _cut(above, settings.words) or None,
                )
            )
    return Table(columns, tuple(rows))


def _found(
    trial: Trial,
    ordered: Sequence[_Asked],
    cases: Mapping[str, _Asked],
    plain: Sequence[str],
    seen: "Mapping[str, Mapping[str, Example]]",
) -> tuple[str, ...]:
    gains = [each.gain("oppu", plain) for each in ordered]
    helped = sum(gain > 0 for gain in gains)
    sentences = [
        f"{_words(name, case, plain)} The question: “{_cut(seen[name]['base'].prompt, _QUESTION_WORDS)}”"
        for name, case in cases.items()
    ]
    return (
        *sentences,
        f"On {helped} of {count(len(gains), 'question')} the module finds the true answer likelier than every method "
        f"without it; median gain {signed(median(gains))} in log p.",
    )


def _words(name: str, case: _Asked, plain: Sequence[str]) -> str:
    said = ", ".join(f"{method} “{case.outputs[method]}”" for method in case.outputs)
    gain = signed(case.gain("oppu", plain))
    return (
        f"{name.capitalize()} ({gain} in log p), user {case.user.id}: the true answer is “{case.query.gold}”; {said}."
    )


_QUESTION_WORDS = 60


def _cut(text: str, limit: int) -> str:
    """The text in one line, with an ellipsis where it is cut."""
    line = " ".join(text.split())
    short = cut_words(line, limit)
    return line if short == line else f"{short} …"


_NOTES = (
    "Chosen: the question with the greatest, and with the least, gain of the module over the better of the methods "
    "without one, in the log-probability of the true answer: of a label or rating among the allowed ones, of a text "
    "the mean over its tokens and its end. These two are the extremes, not the rule; the figure has all questions.",
)

STUDY = Study(
    name="case",
    title="Case study",
    summary="the question on which modules tell most: what each method saw and said",
    help="""Find the question on which the module helps most, and that on which it harms most, by the log-probability of
    the true answer, and show what each method saw and said (Figure 5).

    Example: `oppu study case --out runs/out/case --k 2`""",
    source="Figure 5",
    paper="A movie's tag is “based on a book”. The base, which sees the question alone, and retrieval, which finds no "
    "closely related item, answer wrongly; the module has learnt that the user often gives this tag, and is right.",
    settings=Settings,
    run=_run,
)
