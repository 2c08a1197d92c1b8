"""`report.html`: one file with the tables and plots of a run, readable anywhere and without a network.

Cells, config and history sizes in, a page out; all numbers are computed here from the predictions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from oppu.evaluate.comparisons import (
    Comparison,
    ScoredCell,
    compare,
    counterpart,
    gain_by_user,
    is_baseline,
    is_personal,
    score_cells,
)
from oppu.evaluate.metrics import HIGHER_IS_BETTER, metrics_of, primary_metric
from oppu.evaluate.reports.page import fill_page, flatten
from oppu.evaluate.reports.plots import PERSONAL_COLOR, PLAIN_COLOR, Mark, plot_curves, plot_gains, plot_marks
from oppu.evaluate.reports.summary import TITLES, count, duration, interval, number, p_value, ranks, signed, title
from oppu.evaluate.results import Cell, predictions_file
from oppu.evaluate.significance import LEVEL, POWER, SAMPLES, SEED, verdict
from oppu.store.files import make_folders, os_errors, write_atomically
from oppu.tasks import Task

_NOTES = {
    "f1_macro": "Macro-F1 is the mean over all {labels} labels of the task; a label that never occurs counts 0.",
    "f1_macro_present": "Macro-F1 occurring is the mean over the labels that occur in the true answers.",
    "mae": "An answer that is no number counts as the lowest or highest rating, whichever is worse.",
    "rouge1": "ROUGE: F-measure without stemming, mean over the queries.",
}


def write_report(
    out: Path,
    task: Task,
    config: Mapping[str, Any],
    cells: Sequence[Cell],
    history_sizes: Mapping[str, int],
) -> Path:
    """Write `out/report.html`; gives back its path.

    `config` may be nested; `base` goes into the headline and `command` into a block of its own. `history_sizes`: number
    of history items by user.
    """
    path = out / "report.html"
    with os_errors(out):
        make_folders(out)
    write_atomically(path, render(task, config, cells, history_sizes).encode("utf-8"))
    return path


def render(task: Task, config: Mapping[str, Any], cells: Sequence[Cell], history_sizes: Mapping[str, int]) -> str:
    """The report's HTML; the same values give the same text."""
    scored = score_cells(task, cells)
    comparisons = compare(task, cells)
    return fill_page(
        "report.html.j2",
        task=task,
        base=config.get("base"),
        command=config.get("command"),
        facts=_facts(scored, history_sizes),
        findings=[_finding(task, each) for each in comparisons if each.is_best_against_best],
        metrics=[title(metric) for metric in metrics_of(task)],
        rows=_rows(task, scored),
        comparisons=[_comparison(task, each) for each in comparisons],
        metric_plots=_metric_plots(task, scored),
        gain_plots=_gain_plots(task, cells, history_sizes),
        curve_plots=_curve_plots(cells),
        settings=[pair for pair in flatten(config) if pair[0] != "command"],
        notes=[_NOTES[metric].format(labels=len(task.labels)) for metric in metrics_of(task) if metric in _NOTES],
        bootstrap={"samples": f"{SAMPLES:,}", "seed": SEED, "level": f"{LEVEL:.0%}", "power": f"{POWER:.0%}"},
        total=duration(sum(cell.seconds for cell in cells)),
    )


def _facts(scored: Sequence[ScoredCell], history_sizes: Mapping[str, int]) -> list[str]:
    facts = []
    if scored:
        facts += [count(max(s.users for s in scored), "user"), count(max(s.queries for s in scored), "query")]
    sizes = sorted(history_sizes.values())
    if sizes:
        middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
        facts.append(f"histories of {sizes[0]:,} to {sizes[-1]:,} items (median {middle:,.0f})")
    return facts


def _rows(task: Task, scored: Sequence[ScoredCell]) -> list[dict[str, Any]]:
    rank = ranks(task, scored)
    return [
        {
            **_link(each.cell),
            "kind": _kind(each.cell),
            "last_of_kind": last,
            "numbers": [
                {
                    "value": number(each.metrics[metric]),
                    "interval": interval(*each.intervals[metric]),
                    "rank": rank.get((each.cell.name, metric), 0),
                }
                for metric in metrics_of(task)
            ],
            "users": each.users,
            "queries": each.queries,
            "time": duration(each.cell.seconds),
        }
        for each, last in zip(scored, _ends([_kind(each.cell) == "baseline" for each in scored]), strict=True)
    ]


def _ends(flags: Sequence[bool]) -> list[bool]:
    """Where a run of true flags ends and something follows."""
    return [flag and i + 1 < len(flags) and not flags[i + 1] for i, flag in enumerate(flags)]


def _kind(cell: Cell) -> str:
    if is_baseline(cell.method):
        return "baseline"
    return "personal" if is_personal(cell.method) else "plain"


def _link(cell: Cell) -> dict[str, Any]:
    path = predictions_file(cell)
    return {"method": cell.method, "k": cell.k, "file": path.name, "href": quote(path.as_posix())}


def _comparison(task: Task, comparison: Comparison) -> dict[str, Any]:
    return {
        "a": _link(comparison.a),
        "b": _link(comparison.b),
        "reasons": comparison.reasons,
        "rows": [
            {
                "metric": title(metric),
                "difference": signed(found.difference),
                "interval": interval(found.low, found.high, signed) or "–",
                "p": p_value(found.p_value),
                "detectable": number(found.smallest_detectable),
                "verdict": verdict(metric, found),
            }
            for metric, found in comparison.differences.items()
        ],
    }


def _finding(task: Task, comparison: Comparison) -> dict[str, Any]:
    metric = primary_metric(task)
    found = comparison.differences[metric]
    return {
        "a": _name(comparison.a),
        "b": _name(comparison.b),
        "kind": "baseline" if is_baseline(comparison.b.method) else "method without a module",
        "metric": title(metric),
        "difference": signed(found.difference),
        "interval": interval(found.low, found.high, signed),
        "verdict": verdict(metric, found),
    }


def _name(cell: Cell) -> str:
    return f"{cell.method}, k = {cell.k}" if cell.k else cell.method


def _metric_plots(task: Task, scored: Sequence[ScoredCell]) -> list[dict[str, str]]:
    width = 400 if len(metrics_of(task)) < 3 else 320
    return [
        {"title": title(metric), "svg": plot_marks(f"metric{index}", [_mark(s, metric) for s in scored], width)}
        for index, metric in enumerate(metrics_of(task))
        if scored
    ]


def _mark(each: ScoredCell, metric: str) -> Mark:
    low, high = each.intervals[metric]
    return Mark(
        label=_name(each.cell),
        value=each.metrics[metric],
        low=low,
        high=high,
        color=PERSONAL_COLOR if is_personal(each.cell.method) else PLAIN_COLOR,
        hollow=is_baseline(each.cell.method),
    )


def _gain_plots(task: Task, cells: Sequence[Cell], history_sizes: Mapping[str, int]) -> list[dict[str, str]]:
    pairs = [(cell, other) for cell in cells if (other := counterpart(cell, cells)) is not None]
    plots = []
    for index, (cell, other) in enumerate(pairs):
        gains = gain_by_user(task, cell, other)
        named = {f"{user} ({history_sizes[user]})" if user in history_sizes else user: gains[user] for user in gains}
        better, worse = (sum(sign * gain > 0 for gain in gains.values()) for sign in (1, -1))
        plots.append(
            {
                "title": f"{_name(cell)} minus {_name(other)}",
                "caption": f"{better} better, {len(gains) - better - worse} equal, {worse} worse",
                "svg": plot_gains(f"gain{index}", named, _gain_label(primary_metric(task))),
            }
        )
    return plots


def _gain_label(metric: str) -> str:
    name = "accuracy" if metric == "accuracy" else TITLES[metric]
    return f"gain in {name}" if HIGHER_IS_BETTER[metric] else f"gain (lower {name})"


def _curve_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    trained = [cell for cell in cells if any(len(curve) for curve in cell.curves.values())]
    return [
        {"title": _name(cell), "svg": plot_curves(f"curve{index}", cell.curves)} for index, cell in enumerate(trained)
    ]
