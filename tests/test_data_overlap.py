"""Held-out users who did what a test user is asked about."""

from dataclasses import replace

from toys import COLOUR, colour_user

from oppu.data import without_test_questions
from oppu.records import Dataset, HistoryItem, Query, User

TESTED = colour_user("tested", 3, queries=2)
ASKED = TESTED.queries[0].fields["text"]


def test_held_out_items_and_questions_that_ask_a_test_question_are_left_out() -> None:
    plain = colour_user("plain", 2)
    shared = HistoryItem("same", {"text": f"  {ASKED.upper()} ", "colour": "blue"}, 9.0)
    sharing = replace(plain, id="sharing", history=(*plain.history, shared))
    found = without_test_questions(COLOUR, Dataset((TESTED,), (plain, sharing)))
    assert found.users == (TESTED,)
    assert found.base_users == (plain, replace(sharing, history=plain.history))


def test_a_question_of_history_items_of_a_test_user_is_no_test_question() -> None:
    held_out = User("h", TESTED.history, (Query("q", "", {"text": "another"}, "red"),))
    assert without_test_questions(COLOUR, Dataset((TESTED,), (held_out,))).base_users == (held_out,)


def test_a_held_out_user_with_nothing_left_is_left_out() -> None:
    held_out = User("h", (), TESTED.queries)
    assert without_test_questions(COLOUR, Dataset((TESTED,), (held_out,))).base_users == ()
