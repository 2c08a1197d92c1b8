"""Which methods belong beside each other, and by how much they differ.

A personal method's counterpart is the same prompt without the module: oppu - base, oppu+rag - rag at the same k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from oppu.evaluate.baselines import BASELINES
from oppu.evaluate.metrics import HIGHER_IS_BETTER, metrics_of, primary_metric, score
from oppu.evaluate.results import Cell, score_cell
from oppu.evaluate.significance import PairedDifference, confidence_interval, paired_difference, score_by_user
from oppu.tasks import Task

PERSONAL = "oppu"
"""The method of a personal module; `oppu+X` is the module together with prompt X."""
BASE = "base"

SAME_PROMPT = "same prompt"
BEST_PLAIN = "best personal, best without module"
BEST_BASELINE = "best personal, best baseline"


@dataclass(frozen=True, slots=True)
class ScoredCell:
    """A cell with its metrics and their intervals."""

    cell: Cell
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    users: int
    queries: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Method a against method b, in every metric of the task."""

    a: Cell
    b: Cell
    reasons: tuple[str, ...]
    """Why these two: SAME_PROMPT, BEST_PLAIN, BEST_BASELINE."""
    differences: dict[str, PairedDifference]

    @property
    def is_best_against_best(self) -> bool:
        """Whether this is the comparison that a run is about, besides module against no module."""
        return self.reasons != (SAME_PROMPT,)


def is_baseline(method: str) -> bool:
    """Whether the method uses no model."""
    return method in BASELINES


def is_personal(method: str) -> bool:
    """Whether the method uses personal modules."""
    return method == PERSONAL or method.startswith(f"{PERSONAL}+")


def counterpart_method(method: str) -> str | None:
    """The method with the same prompt and no module; None for a method without one."""
    return (method.removeprefix(PERSONAL).removeprefix("+") or BASE) if is_personal(method) else None


def counterpart(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The cell with the same prompt and no module; None when the run has none."""
    method = counterpart_method(cell.method)
    return next((other for other in cells if other.method == method and other.k == cell.k), None)


def score_cells(task: Task, cells: Sequence[Cell]) -> list[ScoredCell]:
    """Cells with metrics and intervals: baselines first, then in the order given."""
    ordered = sorted(cells, key=lambda cell: not is_baseline(cell.method))
    return [_score(task, cell) for cell in ordered]


def compare(task: Task, cells: Sequence[Cell]) -> list[Comparison]:
    """Every personal method against its counterpart; the best personal one against the best of the others."""
    personal = [cell for cell in cells if is_personal(cell.method)]
    plain = [cell for cell in cells if not is_personal(cell.method) and not is_baseline(cell.method)]
    simple = [cell for cell in cells if is_baseline(cell.method)]
    pairs = [(cell, other, SAME_PROMPT) for cell in personal if (other := counterpart(cell, cells)) is not None]
    for others, reason in ((plain, BEST_PLAIN), (simple, BEST_BASELINE)):
        if personal and others:
            pairs.append((best(task, personal), best(task, others), reason))
    reasons: dict[tuple[str, str], tuple[str, ...]] = {}
    for a, b, reason in pairs:
        reasons[a.name, b.name] = (*reasons.get((a.name, b.name), ()), reason)
    named = {cell.name: cell for cell in cells}
    return [
        Comparison(named[a], named[b], why, _differences(task, named[a], named[b])) for (a, b), why in reasons.items()
    ]


def best(task: Task, cells: Sequence[Cell]) -> Cell:
    """The first cell with the best primary metric."""
    metric = primary_metric(task)
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    return max(cells, key=lambda c: sign * score(task, *_golds_and_outputs(c))[metric])


def gain_by_user(task: Task, a: Cell, b: Cell) -> dict[str, float]:
    """a minus b in the primary metric for every user, positive where a is better."""
    metric = primary_metric(task)
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    of_a, of_b = (score_by_user(task, cell.predictions, metric) for cell in (a, b))
    return {user: sign * (of_a[user] - of_b[user]) for user in of_a if user in of_b}


def _score(task: Task, cell: Cell) -> ScoredCell:
    row = score_cell(task, cell)
    intervals = {metric: confidence_interval(task, cell.predictions, metric) for metric in metrics_of(task)}
    return ScoredCell(cell, dict(row.metrics), intervals, row.users, row.queries)


def _differences(task: Task, a: Cell, b: Cell) -> dict[str, PairedDifference]:
    return {metric: paired_difference(task, a.predictions, b.predictions, metric) for metric in metrics_of(task)}


def _golds_and_outputs(cell: Cell) -> tuple[list[str], list[str]]:
    return [p.gold for p in cell.predictions], [p.output for p in cell.predictions]
