"""Held-out users who did what a test user is asked about."""

from dataclasses import replace
from pathlib import Path

import pytest
from toys import COLOUR, colour_user, write_release

from oppu.data import read_dataset, without_questions_of_others, without_test_questions
from oppu.errors import DataError
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


def test_items_of_a_test_user_may_serve_as_questions_too() -> None:
    asking, telling = TESTED.history[1], replace(TESTED.history[1], id="told")
    held_out = User("h", (TESTED.history[0], telling))
    found = without_test_questions(COLOUR, Dataset((TESTED,), (held_out,)), [asking])
    assert found.base_users == (User("h", TESTED.history[:1]),)


def test_users_who_learn_together_tell_nothing_that_another_of_them_is_asked() -> None:
    other, third = colour_user("other", 2), colour_user("third", 2)
    own = HistoryItem("own", {"text": ASKED, "colour": "red"}, 9.0)
    told = HistoryItem("told", {"text": f" {ASKED.upper()}", "colour": "blue"}, 9.0)
    tested = replace(TESTED, history=(*TESTED.history, own))
    telling = replace(other, history=(told, *other.history))
    assert without_questions_of_others(COLOUR, [tested, telling, third]) == (tested, other, third)
    assert without_questions_of_others(COLOUR, [telling, third]) == (telling, third)
    both = replace(telling, queries=(*telling.queries, TESTED.queries[0]))
    found = without_questions_of_others(COLOUR, [tested, both])
    assert [user.history for user in found] == [TESTED.history, other.history]


def test_a_held_out_user_with_nothing_left_is_left_out() -> None:
    held_out = User("h", (), TESTED.queries)
    assert without_test_questions(COLOUR, Dataset((TESTED,), (held_out,))).base_users == ()


def test_held_out_users_of_other_data_are_none_of_the_users(tmp_path: Path) -> None:
    ann, bob, cem = (colour_user(name, 2) for name in ("ann", "bob", "cem"))
    data = write_release(tmp_path / "data", [ann], [bob])
    others = write_release(tmp_path / "others", [bob], [cem])
    found = read_dataset(data, COLOUR, others)
    assert [[user.id for user in group] for group in (found.users, found.base_users)] == [["ann"], ["cem"]]
    with pytest.raises(DataError, match=r"held-out user ann is a user of .*data, too; the base must not have seen"):
        read_dataset(data, COLOUR, write_release(tmp_path / "wrong", [bob], [ann, cem]))
