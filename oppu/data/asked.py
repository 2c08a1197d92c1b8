"""Histories as far as they come before the first question: what an evaluation may teach a module, or count."""

from collections.abc import Iterable
from dataclasses import replace

from oppu.records import User


def until_asked(users: Iterable[User]) -> tuple[User, ...]:
    """The users without the items that are not older than their first dated question.

    A module serves all questions of its user. Questions without a date come after the whole history.
    """
    return tuple(_until_asked(user) for user in users)


def _until_asked(user: User) -> User:
    first = min((query.time for query in user.queries if query.time is not None), default=None)
    if first is None or all(item.time < first for item in user.history):
        return user
    return replace(user, history=tuple(item for item in user.history if item.time < first))
