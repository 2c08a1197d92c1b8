"""The page of a joint report: tables, studies and where they came from as values for its template."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oppu import __version__
from oppu.evaluate.columns import TABLE_1, TableColumn, groups, table_metrics
from oppu.evaluate.metrics import HIGHER_IS_BETTER, primary_metric
from oppu.evaluate.paper import SOURCE, Reported, table_1
from oppu.evaluate.reports.page import fill_page, flatten, href, source_links
from oppu.evaluate.reports.panels import within_page
from oppu.evaluate.reports.plots import PERSONAL_COLOR, PLAIN_COLOR, WORSE_COLOR, Mark, plot_marks
from oppu.evaluate.reports.summary import TITLES, count, duration, interval, number, p_value, signed, title
from oppu.evaluate.reports.table import MORE_QUERIES, Gain, JointTable, Number, TaskTable
from oppu.evaluate.reports.table_files import SHORT, short_name
from oppu.evaluate.reports.without_model import GROUP, WORDS
from oppu.evaluate.runs import Run, StudyResult, adaption_seconds
from oppu.evaluate.significance import LEVEL, POWER, SAMPLES, SEED
from oppu.evaluate.study import headings, shown_rows, table_of
from oppu.tasks import BUILT_IN, Task

if TYPE_CHECKING:
    from oppu.evaluate.reports.joint import Wins

_VERDICT_COLORS = {"better": PERSONAL_COLOR, "worse": WORSE_COLOR, "open": PLAIN_COLOR}
_RANKS = ("", "first", "second")
_IN_OTHER_TABLES = ("command", "seed", "adapt.seed", "personal.seed")


def joint_page(
    table: JointTable,
    studies: Sequence[StudyResult],
    wins: "Sequence[Wins]",
    found: Sequence[str],
    warnings: Sequence[str],
    out: Path,
    command: str,
) -> str:
    """The page's HTML; links are as seen from `out`. The same values give the same text."""
    runs = [run for each in table.tasks for run in each.runs]
    columns = [(column.title, starts) for column, starts in _with_starts()]
    floors = dict.fromkeys(name for each in table.tasks for _, name in each.without_model)
    floor_groups, floor_columns = ([(GROUP, 1)], [("best", True)]) if floors else ([], [])
    return fill_page(
        "joint.html.j2",
        facts=_facts(table, studies),
        found=found,
        warnings=warnings,
        groups=groups(),
        columns=columns,
        own_groups=[*floor_groups, *groups()],
        own_columns=[*floor_columns, *columns],
        tasks=[_task_rows(each, out, bool(floors)) for each in table.tasks],
        floors=[f"{name}: {WORDS[name]}" for name in floors],
        own_tasks=", ".join(each.task.name for each in table.tasks if not each.is_of_the_paper),
        several=any(len(each.runs) > 1 for each in table.tasks),
        by_seed=_by_seed(table.tasks, out),
        others=[(each.task.name, ", ".join(each.others)) for each in table.tasks if each.others],
        gain_plots=[_gain_plot(each) for each in table.tasks if each.gains],
        wins=[_win(each) for each in wins],
        comparisons=[(e.task.title, [*map(_comparison, e.comparisons)]) for e in table.tasks if e.comparisons],
        more_queries=MORE_QUERIES,
        paper=_paper_rows(),
        paper_source=SOURCE,
        studies=[_study(place, each, out) for place, each in enumerate(studies)],
        runs=[_run(run, out) for run in runs],
        times=[_times(each) for each in table.tasks],
        commands=list(dict.fromkeys(str(run.config.get("command") or "") for run in runs if run.config.get("command"))),
        command=command,
        settings=_settings(runs),
        bootstrap={"samples": f"{SAMPLES:,}", "seed": SEED, "level": f"{LEVEL:.0%}", "power": f"{POWER:.0%}"},
        version=__version__,
    )


def _facts(table: JointTable, studies: Sequence[StudyResult]) -> str:
    facts = []
    if table.tasks:
        seeds = sorted({run.seed for each in table.tasks for run in each.runs})
        facts += [
            count(len(table.tasks), "task"),
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
            f"base {', '.join(dict.fromkeys(run.base for each in table.tasks for run in each.runs))}",
        ]
    if studies:
        facts.append(f"{len(studies)} {'study' if len(studies) == 1 else 'studies'}")
    return ", ".join(facts) + "."


def _with_starts() -> list[tuple[TableColumn, bool]]:
    """The columns, and whether each is the first of its group."""
    return [(column, place == 0 or TABLE_1[place - 1].group != column.group) for place, column in enumerate(TABLE_1)]


def _task_rows(each: TaskTable, out: Path, with_floor: bool) -> dict[str, Any]:
    """`with_floor`: with the best answer without a model as the first number."""
    metrics = table_metrics(each.task)
    return {
        **_name(each.task),
        "rows": [
            {
                "metric": _short(metric),
                "cells": [
                    *([{"starts": True, **_floor(each.best_without_model(metric), out)}] if with_floor else []),
                    *(
                        {"starts": starts, **_cell(each.numbers.get((metric, column.name)), out)}
                        for column, starts in _with_starts()
                    ),
                ],
            }
            for metric in metrics
        ],
    }


def _name(task: Task) -> dict[str, str]:
    shown = task.title.removeprefix("Personalized ")
    return {"short": short_name(task), "title": shown[:1].upper() + shown[1:]}


def _short(metric: str) -> str:
    """The paper's name of a metric, with the direction that is better."""
    return f"{SHORT[metric]}\N{NO-BREAK SPACE}{'↑' if HIGHER_IS_BETTER[metric] else '↓'}"


def _cell(found: Number | None, out: Path) -> dict[str, Any]:
    """A number with its marks, leading to its predictions, or to the list of them where there are several seeds."""
    if found is None:
        return {"value": "–", "href": "", "mark": "", "star": False, "spread": ""}
    alone = len(found.scores) == 1
    return {
        "value": number(found.mean),
        "href": href(found.scores[0].predictions, out) if alone else f"#{_anchor(found.task, found.column)}",
        "mark": _RANKS[found.rank],
        "star": found.is_significant,
        "spread": "" if found.spread is None else f"± {number(found.spread)}",
    }


def _floor(found: Number | None, out: Path) -> dict[str, Any]:
    """The best answer without a model, by name, leading to its answers; those of several seeds are alike."""
    if found is None:
        return _cell(None, out) | {"value": ""}
    return {
        "value": number(found.mean),
        "href": href(found.scores[0].predictions, out),
        "mark": "",
        "star": False,
        "spread": found.column.method,
    }


def _by_seed(tables: Sequence[TaskTable], out: Path) -> dict[str, Any]:
    """For each column of the tasks with several seeds, the scores of every seed."""
    tables = [each for each in tables if len(each.runs) > 1]
    seeds = sorted({run.seed for each in tables for run in each.runs})
    return {"seeds": seeds, "tasks": [_seeds_of(each, seeds, out) for each in tables]}


def _seeds_of(each: TaskTable, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    metrics = table_metrics(each.task)
    rows = []
    for column in TABLE_1:
        if (metrics[0], column.name) not in each.numbers:
            continue
        scores = {
            seed: [s for metric in metrics for s in each.numbers[metric, column.name].scores if s.seed == seed]
            for seed in seeds
        }
        cells = [
            {"values": " / ".join(number(s.value) for s in found), "href": href(found[0].predictions, out)}
            if (found := scores[seed])
            else None
            for seed in seeds
        ]
        rows.append({"anchor": _anchor(each.task, column), "column": _column(column), "cells": cells})
    return {"short": short_name(each.task), "metrics": " / ".join(TITLES[metric] for metric in metrics), "rows": rows}


def _anchor(task: Task, column: TableColumn) -> str:
    return f"{task.name}-{column.name.replace('+', '-')}"


def _column(column: TableColumn) -> str:
    return f"{column.method}, k = {column.k}" if column.k else column.method


def _gain_plot(each: TaskTable) -> dict[str, str]:
    """The first metric's gains with their intervals; to the right is better."""
    metric = primary_metric(each.task)
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    marks = [
        Mark(
            gain.name,
            sign * gain.found.difference,
            min(sign * gain.found.low, sign * gain.found.high),
            max(sign * gain.found.low, sign * gain.found.high),
            _VERDICT_COLORS[gain.verdict],
        )
        for gain in each.gains
        if gain.metric == metric
    ]
    name = "accuracy" if metric == "accuracy" else TITLES[metric]
    return {
        "title": f"{short_name(each.task)}: gain in {name}{'' if sign > 0 else ', lower is better: sign turned'}",
        "svg": plot_marks(f"gain-{each.task.name}", marks, 400, zero=True),
    }


def _win(each: "Wins") -> dict[str, Any]:
    return {
        "column": _column(each.column),
        "counterpart": _column(each.counterpart),
        "better": each.better,
        "equal": each.equal,
        "worse": each.worse,
        "significantly_better": each.significantly_better,
        "significantly_worse": each.significantly_worse,
        "comparisons": each.comparisons,
    }


def _comparison(gain: Gain) -> dict[str, Any]:
    found, need = gain.found, gain.need
    return {
        "pair": gain.name,
        "metric": title(gain.metric),
        "difference": signed(found.difference),
        "interval": interval(found.low, found.high, signed) or "–",
        "p": p_value(found.p_value),
        "detectable": number(found.smallest_detectable),
        "to_find": number(need.difference) if need is not None else "–",
        "users": _count_of(need.users) + f" ({count(need.queries, 'query')})" if need and need.users else "–",
        "users_with_more": _count_of(need.users_with_more) if need else "–",
        "verdict": gain.verdict,
        "size": f"{count(found.users, 'user')}, {count(found.queries, 'query')}",
    }


def _count_of(users: int | None) -> str:
    return "–" if users is None else f"{users:,}"


def _paper_rows() -> list[dict[str, Any]]:
    reported = table_1()
    rows = []
    for task_name in dict.fromkeys(task for task, *_ in reported):
        task = BUILT_IN[task_name]
        rows.append(
            {
                **_name(task),
                "rows": [
                    {
                        "metric": _short(metric),
                        "cells": [
                            {"starts": starts, **_reported(reported[task_name, metric, column.method, column.k])}
                            for column, starts in _with_starts()
                        ],
                    }
                    for metric in table_metrics(task)
                ],
            }
        )
    return rows


def _reported(found: Reported) -> dict[str, Any]:
    return {
        "value": "–" if found.value is None else number(found.value),
        "href": "",
        "mark": {"best": "first", "second": "second"}.get(found.mark, ""),
        "star": found.is_significant,
        "spread": "",
    }


def _study(place: int, each: StudyResult, out: Path) -> dict[str, Any]:
    record = each.record
    table = table_of(record)
    names = ("report.html", *(f"{each.name}.{ending}" for ending in ("csv", "tex", "json", "svg")))
    files = [each.folder / name for name in names]  # older studies have no LaTeX
    return {
        "title": record["title"],
        "source": record["source"],
        "paper": record["paper"],
        "found": record["found"],
        "facts": record["facts"],
        "command": record["command"],
        "svg": within_page(f"study{place}", each.svg, each.folder),
        "notes": record.get("notes") or [],
        "columns": headings(table),
        "rows": shown_rows(table),
        "links": [(file.name, href(file, out)) for file in files if file.is_file()],
        "sources": source_links(record.get("sources") or [], each.folder, out),
        "versions": ", ".join(f"{key} {text}" for key, text in flatten(record.get("versions") or {})),
    }


def _run(run: Run, out: Path) -> dict[str, Any]:
    users = {user for user, _ in run.golds}
    folder = run.folder
    return {
        "task": short_name(run.task),
        "seed": run.seed,
        "folder": f"{folder.parent.name}/{folder.name}" if folder.name == f"seed-{run.seed}" else folder.name,
        "href": href(folder / "report.html", out),
        "users": len(users),
        "queries": len(run.golds),
        "adaption": duration(seconds) if (seconds := adaption_seconds(run)) else "–",
        "methods": duration(sum(cell.seconds for cell in run.cells)),
    }


def _times(each: TaskTable) -> dict[str, Any]:
    """Seconds of training and answers of each column, over all seeds."""
    metric = table_metrics(each.task)[0]
    found = [each.numbers.get((metric, column.name)) for column in TABLE_1]
    return {
        "short": short_name(each.task),
        "cells": [
            {"starts": starts, "value": "–" if one is None else f"{sum(score.seconds for score in one.scores):,.0f}"}
            for (_, starts), one in zip(_with_starts(), found, strict=True)
        ],
    }


def _settings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Each setting once; where runs differ, with the tasks that have each value, or their seeds where those differ."""
    of_runs = [dict(flatten(run.config)) for run in runs]
    rows = []
    for key in dict.fromkeys(key for settings in of_runs for key in settings):
        values = [settings.get(key) for settings in of_runs]
        if key in _IN_OTHER_TABLES:
            continue
        by_task = {run.task.name: value for value, run in zip(values, runs, strict=True)}
        is_by_task = all(by_task[run.task.name] == value for value, run in zip(values, runs, strict=True))
        holders: dict[str, dict[str, None]] = {}
        for value, run in zip(values, runs, strict=True):
            if value is not None:
                name = short_name(run.task) + ("" if is_by_task else f" seed {run.seed}")
                holders.setdefault(value, {})[name] = None
        is_common = len(holders) == 1 and None not in values
        said = [value if is_common else f"{value} ({', '.join(names)})" for value, names in holders.items()]
        rows.append((key, "; ".join(said)))
    return rows
