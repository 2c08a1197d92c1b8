"""History formats (Table 3): items without their answer, or without their question, against whole ones.

What is left of an item is what is left of the task's templates: the words before a field go with it, and an item
without question or answer is learnt by next-token prediction (section 3).
"""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from oppu.errors import ConfigError, DataError
from oppu.evaluate.comparisons import score_cells
from oppu.evaluate.lab.trial import (
    Ran,
    Trial,
    TrialSettings,
    differences,
    metric_columns,
    metric_values,
    open_trial,
    series,
)
from oppu.evaluate.metrics import primary_metric
from oppu.evaluate.reports.panels import Panel, marks_of
from oppu.evaluate.reports.summary import title
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace
from oppu.records import Dataset, HistoryItem, User
from oppu.tasks import HistoryForm, Task

WHOLE, QUESTIONS, ANSWERS = "whole", "questions alone", "answers alone"
METHODS = ("rag", "oppu", "oppu+rag")


@dataclass(frozen=True, slots=True)
class Settings(TrialSettings):
    """As of every trial."""


def _run(settings: Settings, place: Workplace) -> Outcome:
    trial = open_trial(settings, place)
    _check_reducible(trial)
    ran: dict[str, Ran] = {WHOLE: trial.run(WHOLE, ("base", *METHODS), k=(settings.k,))}
    for name in (QUESTIONS, ANSWERS):
        task = reduced_task(trial.task, name)
        users = tuple(reduced_user(trial.task, user, name) for user in trial.dataset.users)
        dataset = Dataset(users, trial.dataset.base_users)
        ran[name] = trial.run(name.replace(" ", "-"), METHODS, k=(settings.k,), dataset=dataset, task=task)
    metric = primary_metric(trial.task)
    marks = [
        series(trial.task, name, range(3), [each.cell(method) for method in METHODS]) for name, each in ran.items()
    ]
    base = score_cells(trial.task, [ran[WHOLE].cell("base")])[0].metrics[metric]
    return Outcome(
        found=_found(trial, ran),
        panels=(
            Panel(
                "By what an item holds",
                marks_of(marks, METHODS, title(metric), level=base, level_name="base"),
                "Upright lines: 95 % intervals.",
            ),
        ),
        table=_table(trial, ran),
        facts=trial.facts(),
        notes=(_note(trial),),
    )


def reduced_task(task: Task, kept: str) -> Task:
    """The task with history forms for items of which only the questions, or only the answers, are there.

    ConfigError where no item has both.
    """
    forms = tuple(_reduced_form(form, kept) for form in task.history)
    if forms == task.history:
        raise ConfigError(
            f"items of task {task.name} have no question and answer that could be told apart",
            where="--task",
            fix="use one whose history has both, such as movie_tagging",
        )
    return task.model_copy(update={"history": forms})


def reduced_user(task: Task, user: User, kept: str) -> User:
    """The user with items that hold these fields alone; their baselines, prompts and searches see no others."""
    return replace(user, history=tuple(_reduced_item(task, item, kept) for item in user.history))


def _check_reducible(trial: Trial) -> None:
    """DataError where every item holds its question, or its answer, alone already."""
    users = trial.dataset.users
    if all(reduced_user(trial.task, user, kept) == user for user in users for kept in (QUESTIONS, ANSWERS)):
        what = "no item of these histories has a question and an answer that could be told apart"
        raise DataError([what], where=trial.task.name, fix="use data whose items have both")


def _reduced_form(form: HistoryForm, kept: str) -> HistoryForm:
    questions, answers = _parts(form)
    if not questions or not answers:
        return form
    text = _pieces(form.shown, questions if kept == QUESTIONS else answers)
    return HistoryForm(prompt="", answer=text, shown=text)


def _reduced_item(task: Task, item: HistoryItem, kept: str) -> HistoryItem:
    form = task.form_for(item.fields)
    questions, answers = _parts(form) if form is not None else (frozenset(), frozenset())
    if not questions or not answers:
        return item
    # fields that no template names, such as an abstract that is only searched, belong to the question
    fields = {name: value for name, value in item.fields.items() if (name in answers) == (kept == ANSWERS)}
    return replace(item, fields=fields)


def _parts(form: HistoryForm) -> tuple[frozenset[str], frozenset[str]]:
    """The fields of a form's question, and those of its answer."""
    return form.asked - form.answered, form.answered


def _pieces(template: str, fields: Iterable[str]) -> str:
    """Each of the fields with the words before it: of `note: {input} folder: {output}`, `folder: {output}`."""
    kept = set(fields)
    found = [
        f"{literal.replace('{', '{{').replace('}', '}}')}{{{name}}}"
        for literal, name, _, _ in string.Formatter().parse(template)
        if name in kept
    ]
    return "".join(found).strip()


def _table(trial: Trial, ran: Mapping[str, Ran]) -> Table:
    columns = (
        Column("history", "History"),
        Column("method", "Method"),
        Column("k", "k"),
        *metric_columns(trial.task),
    )
    rows: list[tuple[Value, ...]] = []
    for name, each in ran.items():
        for scored in score_cells(trial.task, each.cells):
            rows.append((name, scored.cell.method, scored.cell.k, *metric_values(trial.task, scored)))
    return Table(columns, tuple(rows))


def _found(trial: Trial, ran: Mapping[str, Ran]) -> tuple[str, ...]:
    base = ran[WHOLE].cell("base")
    words = {"rag": "retrieval", "oppu": "module", "oppu+rag": "both"}

    def against(name: str, what: str) -> str:
        others = [base if what == "base" else ran[WHOLE].cell(method) for method in METHODS]
        pairs = {words[method]: (ran[name].cell(method), other) for method, other in zip(METHODS, others, strict=True)}
        return differences(trial.task, pairs)

    return (
        f"Questions alone against whole items: {against(QUESTIONS, WHOLE)}.",
        f"Answers alone against whole items: {against(ANSWERS, WHOLE)}.",
        f"Against the base, questions alone: {against(QUESTIONS, 'base')}.",
        f"Against the base, answers alone: {against(ANSWERS, 'base')}.",
    )


def _note(trial: Trial) -> str:
    forms = [
        (form.shown, *(_reduced_form(form, kept).shown for kept in (QUESTIONS, ANSWERS))) for form in trial.task.history
    ]
    whole, questions, answers = next(each for each in forms if each[0] != each[1])
    return (
        f"A whole item reads “{whole}”, its question alone “{questions}”, its answer alone “{answers}”; without both, "
        "it is learnt as running text. Answers alone cannot be searched with a question: the newest are shown. "
        f"{trial.base_note('on whole items')}"
    )


STUDY = Study(
    name="formats",
    title="History formats",
    summary="histories without the answers or without the questions",
    help="""Leave out the answers, or the questions, of all history items, and compare retrieval and modules with those
    on whole items (Table 3).

    Example: `oppu study formats --out runs/out/formats`""",
    source="Table 3",
    paper="In movie tagging modules alone lose most of their gain without tags or without descriptions (.486 and .499, "
    "whole .600, base .478), while modules with retrieval keep theirs or gain (.624 and .634, whole .626). In "
    "scholarly titles all come close to whole items (modules alone .497 and .489, whole .519, base .476).",
    settings=Settings,
    run=_run,
)
