"""Activity (Figure 3): methods by the number of history items.

The paper draws different users for each range of lengths. That mixes how much is known of someone with who it is; so by
default the same users are taken at every length, with their newest so many items.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from oppu.errors import ConfigError, DataError
from oppu.evaluate.comparisons import score_cells
from oppu.evaluate.lab.trial import (
    Trial,
    TrialSettings,
    count,
    differences,
    gains_of,
    metric_columns,
    metric_values,
    open_trial,
    series,
)
from oppu.evaluate.metrics import primary_metric
from oppu.evaluate.reports.panels import Panel, lines_of
from oppu.evaluate.reports.summary import TITLES, title
from oppu.evaluate.results import Cell
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.records import Dataset, User

METHODS = ("base", "rag", "oppu", "oppu+rag")


@dataclass(frozen=True, slots=True)
class Settings(TrialSettings):
    """Which lengths are compared."""

    items: tuple[int, ...] = option("Lengths of the histories: the newest so many items.", (4, 8, 16, 32), least=1)
    ranges: tuple[str, ...] | None = option(
        "As in the paper instead: --users different users, drawn at random, for each range of lengths, such as 10-20.",
        None,
    )
    newest: int | None = option("Train on at most the newest so many of these items. [default: all]", None, least=1)


@dataclass(frozen=True, slots=True)
class _Level:
    """A point on the axis."""

    name: str
    items: float
    """In a history; of different ones the median."""
    users: tuple[User, ...]


def _run(settings: Settings, place: Workplace) -> Outcome:
    if settings.ranges is None:
        trial = open_trial(settings, place)
        levels = _cut(trial, settings.items)
    else:
        trial = open_trial(replace(settings, users=None), place)
        levels = _drawn(trial, settings.ranges, settings.users, settings.seed)
    cells: dict[str, dict[str, Cell]] = {}
    for place_of, level in enumerate(levels):
        # with the same users, the base, which sees no history, says the same at every length
        again = settings.ranges is not None or place_of == 0
        dataset = Dataset(level.users, trial.dataset.base_users)
        ran = trial.run(f"items-{level.name}", METHODS if again else METHODS[1:], k=(settings.k,), dataset=dataset)
        found = {cell.method: cell for cell in ran.cells}
        cells[level.name] = found if again else {"base": cells[levels[0].name]["base"], **found}
    return Outcome(
        found=_found(trial, levels, cells),
        panels=_panels(trial, levels, cells),
        table=_table(trial, levels, cells),
        facts=_facts(trial, settings, levels),
        notes=(_NOTE_CUT if settings.ranges is None else _NOTE_RANGES,),
    )


def _cut(trial: Trial, items: Sequence[int]) -> list[_Level]:
    """The same users at every length: those who have so many items at least."""
    users = [user for user in trial.dataset.users if len(user.history) >= max(items)]
    if not users:
        most = len(trial.dataset.users[0].history)
        raise ConfigError(
            f"nobody has {max(items)} items; the longest history has {most}", where="--items", fix="use fewer"
        )
    return [_Level(str(n), n, tuple(replace(user, history=user.history[-n:]) for user in users)) for n in sorted(items)]


def _drawn(trial: Trial, ranges: Sequence[str], size: int | None, seed: int) -> list[_Level]:
    """Different users for each range of lengths."""
    levels = []
    for low, high in sorted(map(_range, ranges)):
        fitting = sorted(
            (user for user in trial.dataset.users if low <= len(user.history) <= high), key=lambda user: user.id
        )
        name = f"{low}-{high}"
        if not fitting:
            fix = "use a range in which there are users (`oppu data check` shows the lengths)"
            raise DataError([f"nobody has {low} to {high} items"], where=f"--ranges {name}", fix=fix)
        drawn = random.Random(f"{seed} {name}").sample(fitting, min(size or len(fitting), len(fitting)))
        levels.append(_Level(name, median(len(user.history) for user in drawn), tuple(drawn)))
    return levels


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or int(match[1]) > int(match[2]) or int(match[1]) < 1:
        raise ConfigError(f"'{text}' is no range", where="--ranges", fix="use for example --ranges 1-20,21-40")
    return int(match[1]), int(match[2])


def _panels(trial: Trial, levels: Sequence[_Level], cells: Mapping[str, Mapping[str, Cell]]) -> tuple[Panel, ...]:
    task, metric = trial.task, primary_metric(trial.task)
    x = [level.items for level in levels]
    lines = [series(task, method, x, [cells[level.name][method] for level in levels]) for method in METHODS]
    gains = [
        gains_of(task, f"{a} − {b}", x, [(cells[level.name][a], cells[level.name][b]) for level in levels])
        for a, b in (("oppu", "base"), ("oppu+rag", "rag"))
    ]
    return (
        Panel(
            "By length of the history",
            lines_of(lines, "history items", title(metric), log_x=True),
            "Upright lines: 95 % intervals.",
        ),
        Panel(
            "What a module adds",
            lines_of(gains, "history items", f"gain in {TITLES[metric]}", log_x=True, level=0.0),
            "Above the thin line the module helps.",
        ),
    )


def _table(trial: Trial, levels: Sequence[_Level], cells: Mapping[str, Mapping[str, Cell]]) -> Table:
    columns = (
        Column("items", "Items"),
        Column("users", "Users"),
        Column("queries", "Questions", brief=False),
        Column("method", "Method"),
        Column("k", "k", brief=False),
        *metric_columns(trial.task),
    )
    rows: list[tuple[Value, ...]] = []
    for level in levels:
        for scored in score_cells(trial.task, list(cells[level.name].values())):
            name, k = scored.cell.method, scored.cell.k
            rows.append((level.name, scored.users, scored.queries, name, k, *metric_values(trial.task, scored)))
    return Table(columns, tuple(rows))


def _found(trial: Trial, levels: Sequence[_Level], cells: Mapping[str, Mapping[str, Cell]]) -> tuple[str, ...]:
    def found(words: str, a: str, b: str) -> str:
        pairs = {f"with {level.name} items": (cells[level.name][a], cells[level.name][b]) for level in levels}
        return f"{words}: {differences(trial.task, pairs)}."

    return (
        found("Module and retrieval against retrieval alone", "oppu+rag", "rag"),
        found("The module against the base", "oppu", "base"),
        found("Retrieval against the base", "rag", "base"),
    )


def _facts(trial: Trial, settings: Settings, levels: Sequence[_Level]) -> str:
    users = {user.id for level in levels for user in level.users}
    where = "the same at every length" if settings.ranges is None else "by length of the history"
    return f"{trial.task.title}: {count(len(users), 'user')}, {where}; base {trial.base_name}; k {settings.k}."


_NOTE_CUT = (
    "The same users and questions at every length: of each history the newest items are known, to retrieval and module "
    "alike. The paper takes different users for each range of lengths (--ranges); there who they are differs, too."
)
_NOTE_RANGES = "Different users for each range of lengths, drawn at random; the axis has the median length of each."

STUDY = Study(
    name="activity",
    title="Activity levels",
    summary="methods by the number of history items",
    help="""Compare base, retrieval, modules and both by the number of history items (Figure 3): with the same users'
    newest items, or as the paper with different users by range.

    Example: `oppu study activity --out runs/out/activity --items 4,16`""",
    source="Figure 3",
    paper="With 20 users drawn from each range of lengths, in movie tagging and tweet paraphrasing, modules are better "
    "than the baselines at every length; the longer the history, the more so; retrieval helps at every length, and "
    "both together are best.",
    settings=Settings,
    run=_run,
)
