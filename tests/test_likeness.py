"""How alike texts and users are, who is brought together by that, what a user's skew is, and histories in conflict."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from toys import COLOUR, MOTTO, REMARK, colour_user, motto_user

from oppu.errors import ConfigError
from oppu.evaluate.lab.alike import users_alike, way_of
from oppu.evaluate.lab.contradict import contradicted
from oppu.evaluate.lab.likeness import (
    cosines,
    farthest_first,
    groups_of,
    mean_likeness,
    nearest_first,
    word_vectors,
)
from oppu.evaluate.lab.skew import skews_of
from oppu.examples import training_examples
from oppu.records import HistoryItem, User
from oppu.tasks import BUILT_IN, Task

TEXTS = ["a red boat and a red car", "the blue boat", "", "Red, RED car!", "something else again"]
LINE = np.array([0.0, 0.1, 0.2, 0.9, 1.0])
ON_A_LINE = 1 - np.abs(LINE[:, None] - LINE[None, :])
"""Likeness of five who stand on a line."""


def test_word_vectors_are_those_of_scikit_learn() -> None:
    theirs = TfidfVectorizer(token_pattern=r"\w+").fit_transform(TEXTS).toarray()
    np.testing.assert_allclose(word_vectors(TEXTS), theirs, atol=1e-12)


def test_equal_texts_have_a_likeness_of_1_and_texts_without_a_common_word_of_0() -> None:
    alike = cosines(word_vectors([TEXTS[0], TEXTS[0], TEXTS[4], TEXTS[2]]))
    assert alike[0, 1] == 1
    assert alike[0, 2] == alike[0, 3] == alike[3, 3] == 0


def test_the_farthest_comes_first_and_the_nearest_first() -> None:
    assert farthest_first(ON_A_LINE, 3, first=0) == [0, 4, 2]
    assert farthest_first(ON_A_LINE, 9, first=1) == [1, 4, 0, 2, 3]
    assert nearest_first(ON_A_LINE, 3, first=1) == [1, 0, 2]
    assert nearest_first(ON_A_LINE, 2, first=4) == [4, 3]


def test_groups_bring_like_with_like_and_take_everybody_once() -> None:
    assert groups_of(ON_A_LINE, 2) == [[0, 1], [3, 4], [2]]
    assert groups_of(ON_A_LINE, 3) == [[0, 1, 2], [3, 4]]
    assert groups_of(ON_A_LINE, 1) == [[0], [1], [2], [3], [4]]
    assert groups_of(ON_A_LINE, 9) == [[0, 1, 2, 3, 4]]
    assert mean_likeness(ON_A_LINE, [0, 1, 2]) == pytest.approx((0.9 + 0.8 + 0.9) / 3)
    assert np.isnan(mean_likeness(ON_A_LINE, [3]))


def test_users_are_alike_by_the_labels_that_they_gave_or_by_their_words() -> None:
    users = [colour_user("ann", 6), colour_user("bob", 6), colour_user("cy", 1)]
    items = [training_examples(COLOUR, user) for user in users]
    by_labels = users_alike(COLOUR, items, "labels")
    assert by_labels[0, 1] == 1  # two of each colour, both
    assert by_labels[0, 2] == pytest.approx(1 / np.sqrt(3))
    assert users_alike(COLOUR, items, "words")[0, 1] < 1
    assert way_of(COLOUR, users, None) == "labels"
    assert way_of(COLOUR, users, "words") == "words"
    assert way_of(MOTTO, [motto_user("ann", 2)], None) == "words"
    papers = User("ann", (HistoryItem("1", {"title": "on [1]", "citation": "a title"}, 0.0),))
    assert way_of(BUILT_IN["citation"], [papers], None) == "words"  # a label task whose histories hold no labels


@pytest.mark.parametrize(
    ("task", "user", "by", "message"),
    [
        (COLOUR, colour_user("ann", 2), "age", "--by: users are not compared by 'age'; use one of: labels, words"),
        (MOTTO, motto_user("ann", 2), "labels", "--by: the histories hold no labels of task motto; use words"),
    ],
)
def test_users_are_not_compared_by_what_they_do_not_have(task: Task, user: User, by: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        way_of(task, [user], by)
    assert str(raised.value) == message


# skew


def test_the_usual_label_is_the_most_frequent_and_of_equals_the_newest() -> None:
    found = skews_of(
        COLOUR, {"a": ["red", "blue", "blue"], "b": ["red", "green", "green", "red"], "c": [], "d": ["mauve"]}
    )
    assert found.keys() == {"a", "b"}
    assert (found["a"].usual, found["a"].in_history) == (("blue",), 2 / 3)
    assert (found["b"].usual, found["b"].in_history) == (("red",), 1 / 2)
    assert (found["a"].share("blue"), found["a"].share("red")) == (1.0, 0.0)


def test_a_rating_is_counted_however_it_is_written() -> None:
    found = skews_of(BUILT_IN["product_rating"], {"a": ["5.0", "5", "1"]})
    assert (found["a"].usual, found["a"].in_history) == (("5",), 2 / 3)


def test_usual_words_are_those_that_the_others_use_less() -> None:
    texts = {"a": ["Dear the cat", "dear the dog"], "b": ["the cat sat", "the dog sat, the dog"]}
    found = skews_of(MOTTO, texts)
    assert found["a"].usual[0] == "dear"
    assert found["b"].usual[0] == "sat"
    # all of a's four words are among the ten that are the most usual
    assert found["a"].share("a DEAR friend: the dog") == pytest.approx(3 / 5)
    assert found["a"].share("...") == 0.0
    assert found["a"].in_history == 1.0


# conflicts


def colours(items: tuple[HistoryItem, ...]) -> list[str]:
    return [item.fields["colour"] for item in items]


def test_noise_gives_so_many_items_another_label_and_leaves_the_rest() -> None:
    history = colour_user("ann", 20).history
    found = contradicted(COLOUR, history, 0.25, "noise", "0 ann")
    assert sum(a != b for a, b in zip(colours(history), colours(found), strict=True)) == 5
    assert [item.fields["text"] for item in found] == [item.fields["text"] for item in history]
    assert [(item.id, item.time) for item in found] == [(item.id, item.time) for item in history]
    assert set(colours(found)) <= set(COLOUR.labels)
    assert found == contradicted(COLOUR, history, 0.25, "noise", "0 ann")
    assert found != contradicted(COLOUR, history, 0.25, "noise", "1 ann")
    assert contradicted(COLOUR, history, 0.0, "noise", "0 ann") == history


def test_a_former_habit_is_another_label_throughout_in_the_oldest_items() -> None:
    history = colour_user("ann", 9).history
    history = tuple(replace(i, fields={**i.fields, "colour": "blue"}) if n > 3 else i for n, i in enumerate(history))
    found = contradicted(COLOUR, history, 0.5, "former", "0 ann")
    assert found[4:] == history[4:]
    order = [label for label, _ in Counter(colours(history)).most_common()]
    assert order[0] == "blue"
    pairs = set(zip(colours(history)[:4], colours(found)[:4], strict=True))
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    assert all(old != new for old, new in pairs)


def test_a_contradicted_item_stands_twice_first_with_a_wrong_answer() -> None:
    history = colour_user("ann", 8).history
    found = contradicted(COLOUR, history, 0.5, "contradiction", "0 ann")
    assert len(found) == 12
    assert tuple(item for item in found if not item.id.endswith("-other")) == history
    for place, item in enumerate(found):
        if item.id.endswith("-other"):
            right = found[place + 1]
            assert (item.fields["text"], item.time) == (right.fields["text"], right.time)
            assert item.fields["colour"] != right.fields["colour"]


def test_of_texts_another_answer_is_that_of_another_item_or_its_words_backwards() -> None:
    history = motto_user("ann", 4).history
    noisy = contradicted(MOTTO, history, 0.5, "noise", "0")
    mottos = [item.fields["motto"] for item in history]
    changed = [(a, b.fields["motto"]) for a, b in zip(mottos, noisy, strict=True) if a != b.fields["motto"]]
    assert len(changed) == 2
    assert all(new in mottos for _, new in changed)
    former = contradicted(MOTTO, history, 0.5, "former", "0")
    assert [item.fields["motto"] for item in former] == ["0 ann", "1 ann", "ann 2", "ann 3"]
    tweets = tuple(HistoryItem(str(n), {"text": f"tweet number {n}"}, float(n)) for n in range(2))
    assert contradicted(REMARK, tweets, 0.5, "former", "0")[0].fields["text"] == "0 number tweet"


def test_what_cannot_be_contradicted_is_said() -> None:
    history = colour_user("ann", 4).history
    with pytest.raises(ConfigError, match="--conflicts: unknown conflict 'war'; use some of: noise, former"):
        contradicted(COLOUR, history, 0.5, "war", "0")
    both = COLOUR.model_copy(update={"history": (COLOUR.history[0].model_copy(update={"answer": "{colour} {size}"}),)})
    sized = tuple(replace(item, fields={**item.fields, "size": "big"}) for item in history)
    with pytest.raises(ConfigError, match="the answer of item ann-0 is no field of its own"):
        contradicted(both, sized, 0.5, "former", "0")
