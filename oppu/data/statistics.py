"""Dataset -> the numbers of Table 5: users, queries, length of history, of questions and of answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from rich.table import Table

from oppu.records import Dataset, User
from oppu.tasks import Task


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Base users or personal users. Means are None where there is nothing to count."""

    users: int
    queries: int
    labelled: int
    """Queries with a known answer."""
    items: int
    """History items of all users together."""
    history_mean: float | None
    history_min: int | None
    history_median: float | None
    history_max: int | None
    input_tokens: float | None
    """L_in: mean length of a question as the data set words it."""
    output_tokens: float | None
    """L_out: mean length of a known answer."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Both halves of a row of Table 5."""

    task: str
    """The benchmark's name for the task."""
    base: GroupStatistics
    personal: GroupStatistics


def count_words(text: str) -> int:
    """Words between white space: the tokens of someone who has no tokenizer at hand."""
    return len(text.split())


def statistics(dataset: Dataset, task: Task, count_tokens: Callable[[str], int] = count_words) -> Statistics:
    """Table 5 for a data set (appendix B); `count_tokens` gives the length of a text."""
    return Statistics(
        task.benchmark_name, _group(dataset.base_users, count_tokens), _group(dataset.users, count_tokens)
    )


def _group(users: Sequence[User], count_tokens: Callable[[str], int]) -> GroupStatistics:
    queries = [query for user in users for query in user.queries]
    golds = [query.gold for query in queries if query.gold is not None]
    lengths = [len(user.history) for user in users]
    return GroupStatistics(
        users=len(users),
        queries=len(queries),
        labelled=len(golds),
        items=sum(lengths),
        history_mean=fmean(lengths) if lengths else None,
        history_min=min(lengths, default=None),
        history_median=median(lengths) if lengths else None,
        history_max=max(lengths, default=None),
        input_tokens=fmean(count_tokens(query.input) for query in queries) if queries else None,
        output_tokens=fmean(count_tokens(gold) for gold in golds) if golds else None,
    )


def statistics_table(statistics: Statistics, unit: str = "words") -> Table:
    """One table with a column for each group; `unit` says what `count_tokens` counted."""
    table = Table("", title=f"{statistics.task}: users, queries and history")
    for group in ("base", "personal"):
        table.add_column(group, justify="right")
    names = (
        "users", "queries", "queries with a label", "history items",
        "history mean", "history min", "history median", "history max",
        f"L_in ({unit})", f"L_out ({unit})",
    )  # fmt: skip
    for row in zip(names, _cells(statistics.base), _cells(statistics.personal), strict=True):
        table.add_row(*row)
    return table


def _cells(group: GroupStatistics) -> tuple[str, ...]:
    return (
        *(_count(number) for number in (group.users, group.queries, group.labelled, group.items)),
        _mean(group.history_mean),
        _count(group.history_min),
        _mean(group.history_median),
        _count(group.history_max),
        _mean(group.input_tokens),
        _mean(group.output_tokens),
    )


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
