"""The numbers of Table 5."""

import io

from rich.console import Console

from oppu.data import statistics, statistics_table
from oppu.records import Dataset, HistoryItem, Query, User
from oppu.tasks import BUILT_IN

NEWS = BUILT_IN["news_categorize"]


def user(identifier: str, items: int, *queries: tuple[str, str | None]) -> User:
    history = tuple(HistoryItem(str(i), {"text": "x", "category": "travel"}, float(i)) for i in range(items))
    asked = tuple(Query(str(i), text, {"text": text}, gold) for i, (text, gold) in enumerate(queries))
    return User(identifier, history, asked)


DATASET = Dataset(
    users=(
        user("a", 1, ("one two", "style & beauty"), ("one", None)),
        user("b", 2, ("one two three", "travel")),
        user("c", 9),
    ),
    base_users=(user("d", 0, ("one two three four", "travel")),),
)


def test_users_queries_history_and_lengths_are_counted_for_both_groups() -> None:
    counted = statistics(DATASET, NEWS)
    personal, base = counted.personal, counted.base
    assert (counted.task, personal.users, personal.queries, personal.labelled, personal.items) == (
        "LaMP_2N", 3, 3, 2, 12,
    )  # fmt: skip
    assert (personal.history_mean, personal.history_min, personal.history_median, personal.history_max) == (4, 1, 2, 9)
    assert (personal.input_tokens, personal.output_tokens) == (2.0, 2.0)
    assert (base.users, base.queries, base.history_mean, base.input_tokens, base.output_tokens) == (1, 1, 0, 4, 1)


def test_lengths_are_in_the_tokens_of_the_counter_that_is_given() -> None:
    assert statistics(DATASET, NEWS, count_tokens=len).personal.input_tokens == (7 + 3 + 13) / 3


def test_a_group_without_users_has_no_means_and_the_table_shows_dashes() -> None:
    counted = statistics(Dataset(users=DATASET.users), NEWS)
    assert (counted.base.users, counted.base.history_mean, counted.base.output_tokens) == (0, None, None)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(statistics_table(counted, unit="tokens"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    assert [row for row in rows if row] == [
        ["users", "0", "3"],
        ["queries", "0", "3"],
        ["queries with a label", "0", "2"],
        ["history items", "0", "12"],
        ["history mean", "-", "4.0"],
        ["history min", "-", "1"],
        ["history median", "-", "2.0"],
        ["history max", "-", "9"],
        ["L_in (tokens)", "-", "2.0"],
        ["L_out (tokens)", "-", "2.0"],
    ]
