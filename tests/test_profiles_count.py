"""Counted profiles: what appendix J asks for as a count, exactly, as it stood before every item."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from toys import COLOUR, MOTTO

from oppu.errors import ConfigError
from oppu.profiles import counted_profiles, shown_profile
from oppu.profiles.count import check_countable
from oppu.records import HistoryItem
from oppu.tasks import BUILT_IN, Task

COUNTED = [task for task in BUILT_IN.values() if task.profile_count]
RATING = BUILT_IN["product_rating"]


def items(task: Task, answers: Sequence[str], times: Sequence[float] | None = None) -> tuple[HistoryItem, ...]:
    """A history with these answers, by default one after another."""
    field = task.history[0].answer.strip("{}")
    (text,) = task.history[0].fields - {field}
    return tuple(
        HistoryItem(str(n), {text: f"thing {n}", field: answer}, float(n) if times is None else times[n])
        for n, answer in enumerate(answers)
    )


def plain_count(task: Task, answers: Sequence[str]) -> str | None:
    """The reference: everything counted anew."""

    def most_common(of: Sequence[str]) -> str:
        counts = Counter(of)
        return next((a for a in reversed(of) if counts[a] == max(counts.values())), "none")

    if not answers:
        return None
    return task.profile_count.format(
        most_common=most_common(answers),
        most_common_positive=most_common([a for a in answers if a in ("4", "5")]),
        most_common_negative=most_common([a for a in answers if a in ("1", "2")]),
    )


def test_the_tasks_whose_prompt_asks_for_a_count_are_counted() -> None:
    assert [task.name for task in COUNTED] == ["news_categorize", "movie_tagging", "product_rating"]
    for task in COUNTED:
        form = task.profile_count.replace("{", "<").replace("}", ">").split("<")[0]
        assert form in task.profile_prompt  # the same words as appendix J asks a model for


def test_a_profile_reads_as_appendix_j_asks_for_it() -> None:
    movies = BUILT_IN["movie_tagging"]
    history = items(movies, ["comedy", "romance", "comedy"])
    assert counted_profiles(movies, history)[-1].text == "most popular tag: comedy"
    assert counted_profiles(RATING, items(RATING, ["5", "4", "4", "3", "1"]))[-1].text == (
        "most common positive score: 4, most common negative score: 1"
    )


def test_a_middling_rating_is_neither_positive_nor_negative_and_what_is_missing_is_said() -> None:
    assert counted_profiles(RATING, items(RATING, ["3", "3"]))[-1].text == (
        "most common positive score: none, most common negative score: none"
    )


def test_of_equally_frequent_answers_the_last_one_counts() -> None:
    movies = BUILT_IN["movie_tagging"]
    assert [p.text.split(": ")[1] for p in counted_profiles(movies, items(movies, ["action", "comedy", "action"]))] == [
        "action",
        "comedy",
        "action",
    ]


def test_a_profile_is_listed_where_it_changes_with_the_time_of_its_newest_item() -> None:
    movies = BUILT_IN["movie_tagging"]
    found = counted_profiles(movies, items(movies, ["action", "action", "comedy", "comedy", "comedy"]))
    assert [(p.text.split(": ")[1], p.time, p.items) for p in found] == [("action", 0.0, 1), ("comedy", 3.0, 4)]


@pytest.mark.parametrize("task", COUNTED, ids=lambda task: task.name)
@pytest.mark.parametrize("seed", range(8))
def test_before_every_item_the_count_is_that_of_the_earlier_items_alone(task: Task, seed: int) -> None:
    draw = random.Random(seed)
    labels = [*task.labels[:5], "no label of the task"]
    times = [float(draw.randrange(12)) for _ in range(40)]  # many at once, and in no order
    history = items(task, draw.choices(labels, k=40), times)
    found = counted_profiles(task, history)
    field = task.history[0].answer.strip("{}")
    ordered = sorted(history, key=lambda item: item.time)
    for before in [None, *(n / 2 for n in range(-1, 26))]:
        earlier = [item.fields[field] for item in ordered if before is None or item.time < before]
        assert shown_profile(found, before) == plain_count(task, [a for a in earlier if a in task.labels])


def test_what_is_counted_is_in_no_dump_of_a_task_and_so_in_no_fingerprint_made_before() -> None:
    assert all("profile_count" not in task.model_dump_json() for task in COUNTED)


def test_nothing_counted_is_no_profile() -> None:
    assert counted_profiles(COUNTED[0], ()) == ()
    assert counted_profiles(COUNTED[0], items(COUNTED[0], ["gossip"])) == ()


@pytest.mark.parametrize("task", [BUILT_IN["citation"], BUILT_IN["news_headline"], COLOUR, MOTTO], ids=lambda t: t.name)
def test_a_task_that_says_nothing_to_count_is_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match=f"task {task.name} has no profile_count: .*; use --by model, or add"):
        check_countable(task)


@pytest.mark.parametrize(
    ("task", "count", "allowed"),
    [
        (COLOUR, "mostly {most_common_positive}", "a profile_count of a label task names some of: most_common$"),
        (COLOUR, "mostly red", "names some of: most_common$"),
        (MOTTO, "{most_common}", "of a text task names some of: nothing, for there are no labels to count"),
        (RATING, "{mode}", "names some of: most_common, most_common_negative, most_common_positive"),
    ],
)
def test_a_count_of_what_cannot_be_counted_is_refused(task: Task, count: str, allowed: str) -> None:
    values = task.model_dump() | {"profile_count": count}
    with pytest.raises(ValueError, match=allowed.removesuffix("$")):
        Task(**values)
