"""What can be had without a model: a most frequent answer, a mean rating, one rating for all, the question as it is.

Those of labels and ratings need histories that carry the task's answers; where they do not (citations) there is none.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from oppu.evaluate.metrics import rating
from oppu.evaluate.results import Prediction
from oppu.records import HistoryItem, Query, User
from oppu.tasks import Task

MAJORITY = "majority"
USER_MEAN = "user-mean"
CONSTANT = "constant"
COPY = "copy"
BASELINES = (MAJORITY, USER_MEAN, CONSTANT, COPY)
"""The names of all baselines, as methods of a cell."""


def majority_outputs(task: Task, users: Sequence[User]) -> list[Prediction] | None:
    """Every user's most frequent answer so far, of equally frequent ones the newest; None where there is no baseline.

    A user without answers gets the most frequent one of all these users.
    """
    return _outputs(task, users, _most_frequent)


def user_mean_outputs(task: Task, users: Sequence[User]) -> list[Prediction] | None:
    """Every user's mean rating, as the nearest one on the scale (the higher of two); None unless these are ratings."""
    if task.kind != "rating":
        return None
    return _outputs(task, users, lambda answers: _nearest(task, sum(map(float, answers)) / len(answers)))


def constant_outputs(task: Task, users: Sequence[User], base_users: Sequence[User]) -> list[Prediction] | None:
    """For everybody the one rating with the least mean absolute error over the base users' answers."""
    if task.kind != "rating":
        return None
    known = [answer for user in base_users for answer in (*_answers(task, user.history), *_golds(task, user))]
    if not known:
        return None
    values = [float(answer) for answer in known]
    best = min(task.labels, key=lambda label: sum(abs(float(label) - value) for value in values))
    return _predictions(users, lambda *_: best)


def copy_outputs(task: Task, users: Sequence[User]) -> list[Prediction] | None:
    """The text that is to be reworded, as it is; None unless texts are asked for."""
    if task.kind != "text":
        return None
    return _predictions(users, lambda user, query: task.search_text(query.fields))


def baselines(task: Task, users: Sequence[User], base_users: Sequence[User] = ()) -> dict[str, list[Prediction]]:
    """All baselines that the task has, by name."""
    found = {
        MAJORITY: majority_outputs(task, users),
        USER_MEAN: user_mean_outputs(task, users),
        CONSTANT: constant_outputs(task, users, base_users),
        COPY: copy_outputs(task, users),
    }
    return {name: outputs for name, outputs in found.items() if outputs is not None}


def _outputs(task: Task, users: Sequence[User], choose: Callable[[list[str]], str]) -> list[Prediction] | None:
    answers = {user.id: _answers(task, user.history) for user in users} if task.labels else {}
    everybody = [answer for of_user in answers.values() for answer in of_user]
    if not everybody:
        return None
    return _predictions(users, lambda user, _: choose(answers[user.id] or everybody))


def _predictions(users: Iterable[User], output: Callable[[User, Query], str]) -> list[Prediction]:
    return [
        Prediction(user.id, query.id, query.gold, output(user, query))
        for user in users
        for query in user.queries
        if query.gold is not None
    ]


def _answers(task: Task, history: Iterable[HistoryItem]) -> list[str]:
    """The labels that a history's items were given, oldest first; items without one of the labels are passed over."""
    filled = ((task.form_for(item.fields), item) for item in history)
    texts = [form.answer.format_map(item.fields) for form, item in filled if form is not None]
    return [label for text in texts if (label := as_label(task, text)) is not None]


def _golds(task: Task, user: User) -> list[str]:
    texts = [query.gold for query in user.queries if query.gold is not None]
    return [label for text in texts if (label := as_label(task, text)) is not None]


def as_label(task: Task, text: str) -> str | None:
    """The label that a text is; None where it is none."""
    text = text.strip()
    if text in task.labels:
        return text
    value = rating(text) if task.kind == "rating" else None  # `5.0` is the rating 5
    return next((label for label in task.labels if value is not None and float(label) == value), None)


def _most_frequent(answers: list[str]) -> str:
    counts = Counter(answers)
    highest = max(counts.values())
    return next(answer for answer in reversed(answers) if counts[answer] == highest)


def _nearest(task: Task, value: float) -> str:
    return min(task.labels, key=lambda label: (abs(float(label) - value), -float(label)))
