"""Answers to questions whose right answers are known: how they are got, what they score, what one set gains on another.

Beside the task's metrics stands the NLL of the right answer, which tells more where questions are few.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from oppu.errors import DataError
from oppu.evaluate.baselines import as_label
from oppu.evaluate.lab.trial import count, known
from oppu.evaluate.metrics import metrics_of, score
from oppu.evaluate.reports.summary import TITLES, number, signed, title
from oppu.evaluate.results import Prediction
from oppu.evaluate.significance import mean_interval
from oppu.evaluate.study import Column, Value
from oppu.records import Example, User
from oppu.tasks import Task

if TYPE_CHECKING:
    from oppu.examples import Setting
    from oppu.model.base import Base
    from oppu.predict import Question

NLL = "nll"
"""Beside the task's metrics: negative log-likelihood of the right answer in nats, mean over questions. Of a label:
among the task's labels; of a text: per token, its end counted."""

_ENOUGH = 6
"""Users of whom a percentile interval may say that something is no chance."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question as it was answered."""

    user_id: str
    question_id: str
    gold: str
    output: str | None
    """None: none was written, the likelihood alone is known."""
    nll: float
    labels: tuple[float, ...] = ()
    """log p of each of the task's labels among them; empty for a text."""


def ask(
    base: "Base",
    task: Task,
    questions: "Sequence[Question]",
    *,
    write: bool = True,
    max_tokens: int = 2048,
    virtual_tokens: int = 0,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Answer questions whose right answers are known; the bank with the modules must be attached.

    Where every right answer is a label, labels are scored; else the right answer's likelihood is taken and, of a text
    task and with `write`, an answer written.
    """
    from oppu.predict import generate, score_answers, score_labels

    if not questions:
        return []
    golds = [str(question.example.answer) for question in questions]
    found = [as_label(task, gold) for gold in golds]
    if all(label is not None for label in found) and task.labels:
        scores = score_labels(base, task, questions, max_tokens, None, virtual_tokens, lambda *_: on_done(1))
        answers = []
        for question, label, line in zip(questions, found, scores.double().log_softmax(-1).tolist(), strict=True):
            right = line[task.labels.index(str(label))]
            output = task.labels[line.index(max(line))]
            example = question.example
            answers.append(Answer(example.user_id, example.item_id, str(label), output, -right, tuple(line)))
        return answers
    writes = write and task.kind == "text"
    likelihoods = score_answers(
        base, questions, max_tokens, None, virtual_tokens, (lambda _: None) if writes else on_done
    )
    outputs: list[str | None] = [None] * len(questions)
    if writes:
        written = generate(
            base,
            task,
            questions,
            max_tokens=max_tokens,
            virtual_tokens=virtual_tokens,
            on_answer=lambda *_: on_done(1),
        )
        outputs = [*written]
    return [
        Answer(question.example.user_id, question.example.item_id, gold, output, -likelihood)
        for question, gold, output, likelihood in zip(questions, golds, outputs, likelihoods, strict=True)
    ]


def check_alike(task: Task, examples: Sequence[Example]) -> None:
    """DataError where only some right answers are labels of the task: their NLL would not be of one kind."""
    if not task.labels:
        return
    others = [example.item_id for example in examples if as_label(task, str(example.answer)) is None]
    if 0 < len(others) < len(examples):
        what = (
            f"{len(others)} of {len(examples)} right answers are none of the task's labels, such as that of {others[0]}"
        )
        raise DataError([what], where=task.name, fix="leave these items or questions out; the others are labels")


def questions_of(task: Task, users: Sequence[User], setting: "Setting") -> dict[str, tuple[Example, ...]]:
    """Every user's questions as the model is shown them, by user; DataError for one without a right answer."""
    from oppu.examples import query_examples

    unlabelled = [f"query {query.id} has no label" for user in users for query in user.queries if query.gold is None]
    if unlabelled:
        raise DataError(unlabelled, fix="this study needs every answer")
    return {user.id: tuple(query_examples(task, user, setting)) for user in users}


def predictions_of(answers: Sequence[Answer]) -> tuple[Prediction, ...]:
    """The answers as predictions of a method; those without an output are passed over."""
    return tuple(Prediction(a.user_id, a.question_id, a.gold, a.output) for a in answers if a.output is not None)


def measures_of(task: Task, answers: Sequence[Answer]) -> tuple[str, ...]:
    """What answers are scored by: the task's metrics, where answers were written, and NLL."""
    return (*(metrics_of(task) if all(a.output is not None for a in answers) else ()), NLL)


def scores_of(task: Task, answers: Sequence[Answer]) -> dict[str, float]:
    """All measures of the answers."""
    written = predictions_of(answers)
    found = score(task, [p.gold for p in written], [p.output for p in written]) if len(written) == len(answers) else {}
    return {**found, NLL: sum(a.nll for a in answers) / len(answers)}


def averaged(draws: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Of the same questions, answered in several draws, each with its mean NLL; of one draw, the answers themselves."""
    if len(draws) == 1:
        return list(draws[0])
    found: dict[tuple[str, str], list[Answer]] = {}
    for answer in (answer for draw in draws for answer in draw):
        found.setdefault((answer.user_id, answer.question_id), []).append(answer)
    return [replace(each[0], output=None, nll=sum(a.nll for a in each) / len(each)) for each in found.values()]


def mean_scores(task: Task, draws: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """All measures, each its mean over the draws."""
    scored = [scores_of(task, draw) for draw in draws]
    return {measure: sum(each[measure] for each in scored) / len(scored) for measure in scored[0]}


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much answers are better than others to the same questions; positive: better."""

    value: float
    low: float
    high: float
    """95 %, bootstrap over users; nan with one user."""
    users: int

    @property
    def text(self) -> str:
        """`+.042 (95 % −.021 to .104)`."""
        if math.isnan(self.low):
            return signed(self.value)
        return f"{signed(self.value)} (95 % {number(self.low)} to {number(self.high)})"

    @property
    def is_certain(self) -> bool:
        """Whether the interval lies on one side of 0, and not by that few users agree: with five, they do so by chance
        in one case of sixteen."""
        return self.users >= _ENOUGH and (self.low > 0 or self.high < 0)

    @property
    def told(self) -> str:
        """The text, and that it may be chance where it may."""
        if self.is_certain:
            return self.text
        few = f" with {count(self.users, 'user')} only" if self.low > 0 or self.high < 0 else ""
        return f"{self.text}, which may be chance{few}"


def gain(a: Sequence[Answer], b: Sequence[Answer]) -> Gain:
    """In NLL, of answers `a` over answers `b` to the same questions, in any order."""
    others = {(answer.user_id, answer.question_id): answer.nll for answer in b}
    if {(answer.user_id, answer.question_id) for answer in a} != set(others):
        raise ValueError("the answers are not to the same questions")
    values = [others[answer.user_id, answer.question_id] - answer.nll for answer in a]
    users = [answer.user_id for answer in a]
    return Gain(sum(values) / len(values), *mean_interval(users, values), len(set(users)))


def by_user(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """The answers of each user, in order of appearance."""
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.user_id, []).append(answer)
    return found


def name_of(measure: str, *, arrow: bool = False) -> str:
    """A measure for people: in a sentence, or with the direction that is better."""
    if measure == NLL:
        return "NLL\N{NO-BREAK SPACE}↓" if arrow else "NLL"
    return title(measure) if arrow else TITLES[measure]


def measure_columns(measures: Sequence[str]) -> tuple[Column, ...]:
    """A column for each measure; the terminal shows the first and NLL."""
    return tuple(
        Column(measure, name_of(measure, arrow=True), 3, brief=measure in (measures[0], NLL)) for measure in measures
    )


def gain_columns(of: str, over: str) -> tuple[Column, ...]:
    """Columns for a gain in NLL with its interval."""
    return (
        Column(f"gain_{of}", f"NLL gain over {over}", 3),
        Column(f"gain_{of}_low", "95 % from", 3, brief=False),
        Column(f"gain_{of}_high", "to", 3, brief=False),
    )


def gain_values(found: Gain | None) -> tuple[Value, ...]:
    """A row's values for `gain_columns`."""
    if found is None:
        return None, None, None
    return found.value, known(found.low), known(found.high)
