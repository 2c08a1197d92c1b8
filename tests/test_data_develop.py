"""Held-out users as a data set of their own."""

import pytest
from toys import colour_user

from oppu.data import development_set
from oppu.errors import DataError
from oppu.records import Dataset, User

TESTED = colour_user("tested", 9)
HELD_OUT = (colour_user("few", 2), colour_user("many", 5), colour_user("b-some", 3), colour_user("a-some", 3))


def test_the_longest_held_out_histories_are_asked_and_the_others_adapt_the_base() -> None:
    found = development_set(Dataset((TESTED,), HELD_OUT), 2)
    assert [user.id for user in found.users] == ["many", "a-some"]
    assert {user.id for user in found.base_users} == {"few", "b-some"}


def test_users_without_a_question_or_a_history_only_adapt_the_base() -> None:
    silent = User("silent", TESTED.history)
    empty = User("empty", (), TESTED.queries)
    found = development_set(Dataset((TESTED,), (silent, empty, *HELD_OUT)), 1)
    assert [user.id for user in found.users] == ["many"]
    assert {"silent", "empty"} <= {user.id for user in found.base_users}


@pytest.mark.parametrize("held_out", [(), HELD_OUT[:1]])
def test_nobody_left_to_adapt_on_is_refused(held_out: tuple[User, ...]) -> None:
    with pytest.raises(DataError, match="too few"):
        development_set(Dataset((TESTED,), held_out), 3)
