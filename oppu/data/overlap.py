"""Held-out users who did what a test user is asked about: such items must not adapt the base."""

from collections.abc import Mapping
from dataclasses import replace

from oppu.records import Dataset, User
from oppu.tasks import Task


def without_test_questions(task: Task, dataset: Dataset) -> Dataset:
    """The data without the held-out users' items and questions that ask what a test user is asked.

    Two ask the same if retrieval sees the same text of them, letter case and spaces aside: a film that both tagged, a
    paper that both wrote. A held-out user with nothing left is left out.
    """
    asked = {_text(task, query.fields) for user in dataset.users for query in user.queries}

    def rest(user: User) -> User:
        return replace(
            user,
            history=tuple(item for item in user.history if _text(task, item.fields) not in asked),
            queries=tuple(query for query in user.queries if _text(task, query.fields) not in asked),
        )

    left = (rest(user) for user in dataset.base_users)
    return replace(dataset, base_users=tuple(user for user in left if user.history or user.queries))


def _text(task: Task, fields: Mapping[str, str]) -> str:
    return " ".join(task.search_text(fields).casefold().split())
