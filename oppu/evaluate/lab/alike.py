"""How alike users are: by the labels that they gave, or by the words of their items."""

from collections.abc import Sequence

from oppu.errors import ConfigError
from oppu.evaluate.baselines import as_label
from oppu.evaluate.lab.likeness import cosines, share_vectors, word_vectors
from oppu.evaluate.metrics import FloatArray
from oppu.prompts import training_pair
from oppu.records import Example, User
from oppu.tasks import Task

LABELS, WORDS = "labels", "words"
BY = (LABELS, WORDS)


def way_of(task: Task, users: Sequence[User], by: str | None) -> str:
    """By what users are compared: as asked, else by labels where their histories hold some; ConfigError else."""
    if by not in (None, *BY):
        raise ConfigError(f"users are not compared by '{by}'", where="--by", fix=f"use one of: {', '.join(BY)}")
    items = [item for user in users for item in user.history]
    labelled = any(as_label(task, training_pair(task, item)[1]) is not None for item in items)
    if by == LABELS and not labelled:
        raise ConfigError(f"the histories hold no labels of task {task.name}", where="--by", fix="use words")
    return by if by is not None else LABELS if labelled else WORDS


def users_alike(task: Task, items: Sequence[Sequence[Example]], by: str) -> FloatArray:
    """Cosine of every two users `[users, users]`: of the shares of their labels, or of their items' words (TF-IDF)."""
    if by == LABELS:
        answers = [[as_label(task, str(item.answer)) or "" for item in of_user] for of_user in items]
        return cosines(share_vectors(answers, task.labels))
    return cosines(word_vectors([" ".join(f"{item.prompt} {item.answer}" for item in of_user) for of_user in items]))
