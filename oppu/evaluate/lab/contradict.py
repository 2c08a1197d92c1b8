"""Histories in conflict with themselves: some items get another answer, in one of three ways.

A label or rating becomes another one; a text, which has no other right one, becomes the answer of another of the user's
items, or, as a former habit, its words from last to first. Inputs, times and order stay.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from oppu.errors import ConfigError
from oppu.evaluate.baselines import as_label
from oppu.records import HistoryItem
from oppu.tasks import Task

CONFLICTS = ("noise", "former", "contradiction")
"""noise: items here and there have a wrong answer. former: the oldest items follow another habit, throughout.
contradiction: items here and there stand in the history twice, first with a wrong answer."""


def contradicted(
    task: Task, history: Sequence[HistoryItem], share: float, conflict: str, seed: str
) -> tuple[HistoryItem, ...]:
    """The history with a share of its items (rounded) in conflict; deterministic in the seed.

    ConfigError for an unknown conflict, or where an item's answer is no field of its own.
    """
    if conflict not in CONFLICTS:
        raise ConfigError(
            f"unknown conflict '{conflict}'", where="--conflicts", fix=f"use some of: {', '.join(CONFLICTS)}"
        )
    generator = random.Random(seed)
    count = round(share * len(history))
    places = list(range(count)) if conflict == "former" else sorted(generator.sample(range(len(history)), count))
    other = _former(task, history, places) if conflict == "former" else _wrong(task, history, places, generator)
    if conflict == "contradiction":
        twice = [
            (replace(other[place], id=f"{other[place].id}-other"),) if place in other else ()
            for place in range(len(history))
        ]
        return tuple(each for place, item in enumerate(history) for each in (*twice[place], item))
    return tuple(other.get(place, item) for place, item in enumerate(history))


def answer_field(task: Task, item: HistoryItem) -> str:
    """The one field that is an item's answer; ConfigError where the answer is put together from several, or none."""
    form = task.form_for(item.fields)
    names = form.answered if form is not None else frozenset()
    if len(names) != 1:
        raise ConfigError(
            f"the answer of item {item.id} is no field of its own, so it cannot be another",
            where=f"task {task.name}",
            fix="use a task whose items have one field as their answer",
        )
    (name,) = names
    return name


def _wrong(
    task: Task, history: Sequence[HistoryItem], places: Sequence[int], generator: random.Random
) -> dict[int, HistoryItem]:
    """Each with another label, drawn uniformly; a text: with that of another item."""
    changed = {}
    for place in places:
        item = history[place]
        name = answer_field(task, item)
        given = item.fields[name]
        label = as_label(task, given)
        if label is not None:
            answers = [each for each in task.labels if each != label]
        else:
            answers = [each.fields[name] for each in history if each.fields.get(name, given) != given]
        changed[place] = _with(item, name, generator.choice(answers) if answers else given)
    return changed


def _former(task: Task, history: Sequence[HistoryItem], places: Sequence[int]) -> dict[int, HistoryItem]:
    """Each label replaced by the next in the user's own order of use, the last by the first; a text by its reverse."""
    labels = [as_label(task, item.fields[answer_field(task, item)]) for item in history]
    used = Counter(label for label in labels if label is not None)
    order = sorted(task.labels, key=lambda label: -used[label])  # of equally frequent ones the task's first
    next_one: Mapping[str, str] = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    changed = {}
    for place in places:
        item, label = history[place], labels[place]
        name = answer_field(task, item)
        answer = next_one[label] if label is not None else " ".join(reversed(item.fields[name].split()))
        changed[place] = _with(item, name, answer)
    return changed


def _with(item: HistoryItem, name: str, value: str) -> HistoryItem:
    return replace(item, fields={**item.fields, name: value})
