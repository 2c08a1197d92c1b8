"""How alike users are: by the labels that they gave, or by the words of their items."""

from collections.abc import Sequence

from oppu.errors import ConfigError
from oppu.evaluate.baselines import as_label
from oppu.evaluate.likeness import cosines, share_vectors, word_vectors
from oppu.evaluate.metrics import FloatArray
from oppu.records import Example
from oppu.tasks import Task

LABELS, WORDS = "labels", "words"
BY = (LABELS, WORDS)


def way_of(task: Task, by: str | None) -> str:
    """By what users are compared: as asked, else by labels where the task has some; ConfigError where it has none."""
    if by is None:
        return LABELS if task.labels else WORDS
    if by not in BY:
        raise ConfigError(f"users are not compared by '{by}'", where="--by", fix=f"use one of: {', '.join(BY)}")
    if by == LABELS and not task.labels:
        raise ConfigError(f"task {task.name} has no labels", where="--by", fix="use words")
    return by


def users_alike(task: Task, items: Sequence[Sequence[Example]], by: str) -> FloatArray:
    """Cosine of every two users `[users, users]`: of the shares of their labels, or of their items' words (TF-IDF)."""
    if by == LABELS:
        answers = [[as_label(task, str(item.answer)) or "" for item in of_user] for of_user in items]
        return cosines(share_vectors(answers, task.labels))
    return cosines(word_vectors([" ".join(f"{item.prompt} {item.answer}" for item in of_user) for of_user in items]))
