"""The benchmark's metrics: golds and outputs in, numbers out.

Every metric is a function of sums over queries (`statistics`, then `from_sums`), so that a bootstrap over users is a
matrix product and macro-F1 of thousands of resamples costs no more than an accuracy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from oppu.errors import DataError
from oppu.tasks import Task

FloatArray = NDArray[np.float64]

METRICS: Mapping[str, tuple[str, ...]] = {
    "label": ("accuracy", "f1_macro", "f1_macro_present"),
    "rating": ("mae", "rmse"),
    "text": ("rouge1", "rougeL"),
}
"""Names of the metrics by kind of task; the first is the primary one, as in the benchmark's own training code."""

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True,
    "f1_macro": True,
    "f1_macro_present": True,
    "mae": False,
    "rmse": False,
    "rouge1": True,
    "rougeL": True,
}


def metrics_of(task: Task) -> tuple[str, ...]:
    """The names of the metrics by which a task is scored."""
    return METRICS[task.kind]


def primary_metric(task: Task) -> str:
    """The one metric by which methods of a task are put in order."""
    return METRICS[task.kind][0]


def score(task: Task, golds: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """All metrics of a task over all its queries; a DataError when there is nothing to score or a gold is no answer.

    accuracy: share of outputs equal to the gold, both stripped.
    f1_macro: mean F1 over the task's fixed labels; a label that never occurs counts 0.
    f1_macro_present: mean F1 over the labels that occur in the golds; not the benchmark's, but fair to rare labels.
    mae, rmse: an output that is no number counts as the lowest or highest rating, whichever is worse.
    rouge1, rougeL: mean F-measure without stemming.
    """
    if not golds:
        raise DataError(["there is no query with a known answer to score"], where=f"task {task.name}")
    return {m: float(from_sums(m, statistics(task, m, golds, outputs).sum(axis=0))) for m in metrics_of(task)}


def per_query(task: Task, gold: str, output: str) -> dict[str, float]:
    """What one query says by itself: correct (0 or 1), absolute_error and squared_error, or rouge1 and rougeL."""
    if task.kind == "label":
        wanted, given = _label_index(task, gold, output)
        return {"correct": float(wanted == given)}
    if task.kind == "rating":
        error = _rating_error(task, gold, output)
        return {"absolute_error": error, "squared_error": error**2}
    rouge1, rouge_l = _rouge(gold.strip(), output.strip())
    return {"rouge1": rouge1, "rougeL": rouge_l}


def statistics(task: Task, metric: str, golds: Sequence[str], outputs: Sequence[str]) -> FloatArray:
    """Per query the numbers whose sums decide the metric, `[queries, M]`.

    Means: (value, 1). Macro-F1: for every label whether it is (hit, predicted, gold), `M = 3 * labels`.
    """
    pairs = list(zip(golds, outputs, strict=True))
    if metric in ("f1_macro", "f1_macro_present"):
        return _label_counts(task, pairs)
    key = {"accuracy": "correct", "mae": "absolute_error", "rmse": "squared_error"}.get(metric, metric)
    return np.array([(per_query(task, gold, output)[key], 1.0) for gold, output in pairs]).reshape(-1, 2)


def from_sums(metric: str, sums: FloatArray) -> FloatArray:
    """The metric from summed statistics; `[..., M]` in, `[...]` out."""
    return _FROM_SUMS[metric](sums)


def _mean(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _root_mean(sums: FloatArray) -> FloatArray:
    return np.sqrt(_mean(sums))


def _f1(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """F1 = 2 tp / (predicted + gold) of every label, 0 where it never occurs; and how often each is the gold."""
    hits, predicted, gold = np.split(sums, 3, axis=-1)
    total = predicted + gold
    return 2.0 * hits / np.where(total > 0, total, 1.0), gold


def _macro_f1(sums: FloatArray) -> FloatArray:
    return np.asarray(_f1(sums)[0].mean(axis=-1))


def _macro_f1_present(sums: FloatArray) -> FloatArray:
    f1, gold = _f1(sums)
    present = gold > 0
    return np.asarray((f1 * present).sum(axis=-1) / present.sum(axis=-1))


_FROM_SUMS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "accuracy": _mean,
    "f1_macro": _macro_f1,
    "f1_macro_present": _macro_f1_present,
    "mae": _mean,
    "rmse": _root_mean,
    "rouge1": _mean,
    "rougeL": _mean,
}


def _label_counts(task: Task, pairs: Sequence[tuple[str, str]]) -> FloatArray:
    counts = np.zeros((len(pairs), 3, len(task.labels)))
    for row, (gold, output) in enumerate(pairs):
        wanted, given = _label_index(task, gold, output)
        counts[row, 2, wanted] = 1.0
        if given >= 0:
            counts[row, 1, given] = 1.0
        if given == wanted:
            counts[row, 0, wanted] = 1.0
    return counts.reshape(len(pairs), -1)


def _label_index(task: Task, gold: str, output: str) -> tuple[int, int]:
    """Positions of gold and output among the labels; an unknown output is -1, an unknown gold an error."""
    gold, output = gold.strip(), output.strip()
    if gold not in task.labels:
        # differs from the benchmark: there an unknown gold equals every unknown output
        raise DataError(
            [f"the known answer '{gold}' is not one of the labels"],
            where=f"task {task.name}",
            fix="add it to the task's labels or leave the query out",
        )
    return task.labels.index(gold), task.labels.index(output) if output in task.labels else -1


def _rating_error(task: Task, gold: str, output: str) -> float:
    wanted = rating(gold)
    if wanted is None:
        raise DataError(
            [f"the known answer '{gold}' is not a number"], where=f"task {task.name}", fix="leave the query out"
        )
    given = rating(output)
    if given is None:
        scale = [float(label) for label in task.labels]
        return max(abs(min(scale) - wanted), abs(max(scale) - wanted))
    return abs(given - wanted)


def rating(text: str) -> float | None:
    """The number that a text is; None when it is none (`nan` and `inf` are none)."""
    try:
        number = float(text.strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@lru_cache(maxsize=65536)
def _rouge(gold: str, output: str) -> tuple[float, float]:
    """F-measures of ROUGE-1 and ROUGE-L. Kept, for every metric and comparison asks again for the same pairs."""
    scores = _rouge_scorer()(gold, output)
    return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)


@cache
def _rouge_scorer() -> Callable[[str, str], Any]:
    from rouge_score.rouge_scorer import RougeScorer  # slow to import and only needed for text

    return cast(Callable[[str, str], Any], RougeScorer(["rouge1", "rougeL"], use_stemmer=False).score)
