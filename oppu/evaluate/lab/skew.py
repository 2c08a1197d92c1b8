"""A user's own skew, and how much of it stands in an answer.

With labels, a user's usual answer is the label that stands most often in the history; an answer has it or has not. With
texts, the usual words are those that a user writes more often than the other users do, and an answer has a share of
them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oppu.evaluate.baselines import as_label
from oppu.evaluate.lab.likeness import words_of
from oppu.tasks import Task

USUAL_WORDS = 10


@dataclass(frozen=True, slots=True)
class Skew:
    """What a user usually answers."""

    usual: tuple[str, ...]
    """A label; or words, the most typical first."""
    in_history: float
    """Its share of the history's answers; of words, on average over answers."""
    labels: bool

    def share(self, answer: str) -> float:
        """How much of an answer is usual, from 0 to 1."""
        if self.labels:
            return float(answer == self.usual[0])
        words = words_of(answer)
        return sum(word in self.usual for word in words) / len(words) if words else 0.0


def skews_of(task: Task, answers: Mapping[str, Sequence[str]]) -> dict[str, Skew]:
    """The skew of each user, by user, from the answers in their histories; users without any are left out.

    Of equally frequent labels, the newest counts. Words are ranked by the share of the user's words that they are,
    minus their share of the other users' words.
    """
    if task.labels:
        labels = {user: [as_label(task, answer) for answer in listed] for user, listed in answers.items()}
        known_labels = {user: [label for label in listed if label is not None] for user, listed in labels.items()}
        return {user: _of_labels(listed) for user, listed in known_labels.items() if listed}
    known = {user: listed for user, listed in answers.items() if listed}
    counts = {user: Counter(word for text in listed for word in words_of(text)) for user, listed in known.items()}
    everybody = sum(counts.values(), Counter[str]())
    return {user: _of_words(listed, counts[user], everybody - counts[user]) for user, listed in known.items()}


def _of_labels(labels: Sequence[str]) -> Skew:
    counts = Counter(labels)
    usual = max(reversed(labels), key=lambda label: counts[label])
    return Skew((usual,), counts[usual] / len(labels), labels=True)


def _of_words(answers: Sequence[str], own: Counter[str], others: Counter[str]) -> Skew:
    own_total, others_total = own.total() or 1, others.total() or 1
    ranked = sorted(own, key=lambda word: (others[word] / others_total - own[word] / own_total, word))
    skew = Skew(tuple(ranked[:USUAL_WORDS]), 0.0, labels=False)
    return Skew(skew.usual, sum(map(skew.share, answers)) / len(answers), labels=False)
