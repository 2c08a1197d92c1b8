"""Numbers as people read them, and the table of a run for the terminal."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import TypeVar

from rich.table import Table
from rich.text import Text

from oppu.evaluate.comparisons import ScoredCell, is_baseline, score_cells
from oppu.evaluate.metrics import HIGHER_IS_BETTER, metrics_of
from oppu.evaluate.results import Cell
from oppu.tasks import Task

Name = TypeVar("Name", bound=Hashable)

TITLES = {
    "accuracy": "Accuracy",
    "f1_macro": "Macro-F1",
    "f1_macro_present": "Macro-F1 occurring",
    "mae": "MAE",
    "rmse": "RMSE",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
}


def title(metric: str) -> str:
    """A metric's name for people, with the direction that is better."""
    return f"{TITLES[metric]}\N{NO-BREAK SPACE}{'↑' if HIGHER_IS_BETTER[metric] else '↓'}"


def rounded(value: float, digits: int = 3) -> float:
    """To the decimals that are shown, half away from zero: equal differences read alike, whatever their last bits.

    3/48 is .0625 and may stand a bit above or below it as a difference of floats; both are .063.
    """
    if not math.isfinite(value):
        return value
    last = Decimal(1).scaleb(-digits)
    return float(Decimal(repr(round(float(value), 9))).quantize(last, ROUND_HALF_UP)) + 0.0  # numpy reads otherwise


def number(value: float) -> str:
    """Three decimals, without the zero before the point, as tables in papers have it: `.810`, `1.203`."""
    if math.isnan(value):
        return "–"
    text = f"{abs(rounded(value)):.3f}"
    sign = "−" if value < 0 and float(text) != 0 else ""
    return sign + text.removeprefix("0")


def signed(value: float) -> str:
    """A difference: `+.045`, `−.012`, `.000`."""
    text = number(value)
    return f"+{text}" if value > 0 and text not in (".000", "–") else text


def interval(low: float, high: float, text: Callable[[float], str] = number) -> str:
    """`.705 to .905`; empty where there is none."""
    return "" if math.isnan(low) else f"{text(low)} to {text(high)}"


def p_value(p: float) -> str:
    """`.034`, `< .001`."""
    return f"< {number(0.001)}" if p < 0.001 else number(p)


def count(how_many: int, noun: str) -> str:
    """`1 query`, `2,000 queries`."""
    many = noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
    return f"{how_many:,} {noun if how_many == 1 else many}"


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `4 min 12 s`, `1 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ranks(task: Task, scored: Sequence[ScoredCell]) -> dict[tuple[str, str], int]:
    """1 for the best and 2 for the second best cell of every metric, by (cell name, metric); what reads alike ties."""
    found: dict[tuple[str, str], int] = {}
    for metric in metrics_of(task):
        best = best_two({each.cell.name: each.metrics[metric] for each in scored}, metric)
        found.update({(name, metric): rank for name, rank in best.items()})
    return found


def best_two(values: Mapping[Name, float], metric: str) -> dict[Name, int]:
    """1 for the best and 2 for the second best value of a metric, by name; what reads alike ties, others are not in."""
    shown = {name: rounded(value) for name, value in values.items()}
    order = sorted(set(shown.values()), reverse=HIGHER_IS_BETTER[metric])[:2]
    return {name: order.index(value) + 1 for name, value in shown.items() if value in order}


def summary_table(task: Task, cells: Sequence[Cell]) -> Table:
    """Method, k, metrics with half the width of their 95 % interval, users, queries, seconds; best bold."""
    scored = score_cells(task, cells)
    rank = ranks(task, scored)
    table = Table(title=task.title, caption="± half a 95 % interval, bootstrap over users", box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("k", justify="right")
    for metric in metrics_of(task):
        table.add_column(title(metric), justify="right")
    for name in ("users", "queries", "seconds"):
        table.add_column(name, justify="right")
    for each in scored:
        table.add_row(
            each.cell.method,
            str(each.cell.k),
            *(_value(each, metric, rank.get((each.cell.name, metric))) for metric in metrics_of(task)),
            str(each.users),
            str(each.queries),
            f"{each.cell.seconds:.1f}",
            style="dim" if is_baseline(each.cell.method) else "",
        )
    return table


def _value(each: ScoredCell, metric: str, rank: int | None) -> Text:
    low, high = each.intervals[metric]
    spread = "" if math.isnan(low) else f" ± {number((high - low) / 2)}"
    style = {1: "bold", 2: "underline"}.get(rank or 0, "")
    return Text.assemble((number(each.metrics[metric]), style), (spread, "dim"))
