"""Held-out users who did what a test user is asked about."""

from dataclasses import replace
from pathlib import Path

import pytest
from toys import COLOUR, colour_user, write_release

from oppu.data import (
    read_dataset,
    until_asked,
    without_asked_texts,
    without_questions_of_others,
    without_test_questions,
)
from oppu.errors import DataError
from oppu.records import Dataset, HistoryItem, Query, User
from oppu.tasks import BUILT_IN

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


def test_an_item_may_say_more_than_a_question_and_ask_the_same() -> None:
    task = BUILT_IN["citation"]
    paper = {"title": "A Paper", "abstract": "We do things.", "citation": "Its reference"}
    question = Query("q", "", {"title": "a  paper", "option1": "Its reference", "option2": "Another"}, "[1]")
    asked, held_out = User("asked", (), (question,)), User("h", (HistoryItem("p", paper, 0.0),))
    assert without_test_questions(task, Dataset((asked,), (held_out,))).base_users == ()
    assert [user.history for user in without_questions_of_others(task, [asked, held_out])] == [(), ()]


def test_items_and_questions_that_hold_what_another_task_asks_are_left_out() -> None:
    texts = ("A paper that is asked for", "short")
    fields = (
        {"text": "Something else"},
        {"text": "in front: a  PAPER that is asked for, and behind"},
        {"text": "SHORT"},
        {"text": "a short text may hold so few words by chance"},
    )
    items = tuple(HistoryItem(str(place), each, float(place)) for place, each in enumerate(fields))
    queries = tuple(Query(item.id, "", item.fields) for item in items)
    (found,) = without_asked_texts([User("u", items, queries)], texts)
    assert (found.history, found.queries) == ((items[0], items[3]), (queries[0], queries[3]))


def test_a_history_is_taken_as_far_as_it_is_older_than_the_first_dated_question() -> None:
    items = tuple(HistoryItem(str(place), {}, float(place)) for place in range(4))
    undated, second, fourth = Query("a", "", {}), Query("b", "", {}, time=1.0), Query("c", "", {}, time=3.5)
    users = [User("all", items, (undated,)), User("some", items, (fourth, undated, second)), User("none", items)]
    found = until_asked(users)
    assert [len(user.history) for user in found] == [4, 1, 4]
    assert [user.queries for user in found] == [user.queries for user in users]
