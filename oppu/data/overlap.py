"""Users who did what another one is asked: such items must not adapt the base, nor train a module that both share.

Two ask the same if retrieval sees the same text of them, letter case and spaces aside: a film that both tagged, a paper
that both wrote, whose abstract an item has and a question has not. A user's own history is not touched.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from oppu.records import Dataset, HistoryItem, User
from oppu.tasks import Task


def without_test_questions(task: Task, dataset: Dataset, items: Iterable[HistoryItem] = ()) -> Dataset:
    """The data without the held-out users' items and questions that ask what a test user is asked.

    `items`: of test users' histories, which serve as questions, too. A held-out user with nothing left is left out.
    """
    asked = {_text(task, query.fields) for user in dataset.users for query in user.queries}
    asked |= {_text(task, item.fields) for item in items}

    def rest(user: User) -> User:
        return replace(
            user,
            history=tuple(item for item in user.history if _text(task, item.fields) not in asked),
            queries=tuple(query for query in user.queries if _text(task, query.fields) not in asked),
        )

    left = (rest(user) for user in dataset.base_users)
    return replace(dataset, base_users=tuple(user for user in left if user.history or user.queries))


def without_questions_of_others(task: Task, users: Sequence[User]) -> tuple[User, ...]:
    """Users who together train a module, or a base, each without the items that ask what another of them is asked."""
    asked = [{_text(task, query.fields) for query in user.queries} for user in users]
    askers = Counter(text for texts in asked for text in texts)

    def is_free(item: HistoryItem, own: set[str]) -> bool:
        text = _text(task, item.fields)
        return askers[text] == (text in own)

    return tuple(
        replace(user, history=tuple(item for item in user.history if is_free(item, own)))
        for user, own in zip(users, asked, strict=True)
    )


def without_asked_texts(users: Iterable[User], asked: Iterable[str]) -> tuple[User, ...]:
    """Users of one task without the items and questions that hold a text that is asked, or asked for, in another.

    A field holds it if it is the same, letter case and spaces aside, or has it inside, where it is four words or more.
    """
    texts = {_plain(text) for text in asked}
    long = [text for text in texts if text.count(" ") >= _WORDS_INSIDE - 1]

    def is_free(fields: Mapping[str, str]) -> bool:
        held = [_plain(text) for text in fields.values()]
        return not any(text in texts or any(part in text for part in long) for text in held)

    return tuple(
        replace(
            user,
            history=tuple(item for item in user.history if is_free(item.fields)),
            queries=tuple(query for query in user.queries if is_free(query.fields)),
        )
        for user in users
    )


_WORDS_INSIDE = 4


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _text(task: Task, fields: Mapping[str, str]) -> str:
    """What a question and an item are compared by: of what retrieval sees, the fields that a question has as well."""
    shared = [name for name in task.search_fields if name in task.question_fields]
    return _plain(" ".join(fields.get(name, "") for name in shared) if shared else task.search_text(fields))
