"""How sure a number is: bootstrap over users, because the queries of one user are not independent of each other.

A resample draws as many users as there are, with replacement, each with all queries. With one user nothing can be
said about other users: intervals, p-values and powers are then nan.

Resamples of U users spread too little, by sqrt((U - 1) / U), and take their own spread for the true one. So deviations
from the estimate are widened by sqrt(U / (U - 1)) t / z, the quantiles of Student's distribution with U - 1 degrees of
freedom and of the normal one: by 1.29 with 8 users, 1.12 with 16, 1.03 with 60 (Hesterberg, What Teachers Should Know
About the Bootstrap, The American Statistician 69(4), 2015, section 3.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from oppu.errors import DataError
from oppu.evaluate.metrics import HIGHER_IS_BETTER, FloatArray, from_sums, statistics
from oppu.evaluate.results import Prediction
from oppu.tasks import Task

SAMPLES = 2000
SEED = 0
LEVEL = 0.95
POWER = 0.80

_WEIGHTS_AT_ONCE = 4_000_000
_ROUNDING = 1e-12
_PRECISION = 1e-12
_UNBOUNDED = ("mae", "rmse")


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Method a minus method b on the same queries, in the metric's own units."""

    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided, from the resamples: twice the smaller share on one side of zero."""
    users: int
    queries: int
    smallest_detectable: float
    """The true difference that a test on this many users would find four times out of five."""


def confidence_interval(
    task: Task,
    predictions: Sequence[Prediction],
    metric: str,
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of a metric, by resampling users; within the values that the metric can have."""
    _, sums = _sums_by_user(task, predictions, metric)
    if len(sums) < 2:
        return math.nan, math.nan
    estimate = float(from_sums(metric, sums.sum(axis=0)))
    found = _widened(from_sums(metric, _resample(sums, samples, seed)), estimate, len(sums), level)
    low, high = _percentiles(found, level)
    return max(low, 0.0), min(high, math.inf if metric in _UNBOUNDED else 1.0)


def paired_difference(
    task: Task,
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    metric: str,
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> PairedDifference:
    """Method a minus method b, both on the same resampled users; a DataError when their queries differ.

    smallest detectable = (t_{(1+level)/2} + t_{power}) * standard error: 2.8 standard errors of many users, 3.3 of 8.
    """
    return paired_difference_over_seeds(task, [(a, b)], metric, samples, seed, level)


def paired_difference_over_seeds(
    task: Task,
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
    metric: str,
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> PairedDifference:
    """The mean over (a, b) of several training seeds of a minus b, all on the same resampled users.

    Of a mean over queries this is each user's score averaged over the seeds first, so that a user counts once however
    many seeds there are; of macro-F1 and RMSE the mean of the seeds' differences. DataError when any queries differ.
    """
    first = pairs[0][0]
    for a, b in pairs:
        _check_same_queries(first, a)
        _check_same_queries(first, b)
    sums = [_sums_by_user(task, side, metric)[1] for pair in pairs for side in pair]
    users, width = sums[0].shape
    joined = np.hstack(sums)  # [users, seeds * 2 * width]

    def difference_of(totals: FloatArray) -> FloatArray:
        sides = np.split(totals, totals.shape[-1] // width, axis=-1)
        of_seeds = [_subtract(metric, a, b) for a, b in zip(sides[::2], sides[1::2], strict=True)]
        return np.asarray(np.mean(of_seeds, axis=0))

    difference = difference_of(joined.sum(axis=0))
    if users < 2:
        return PairedDifference(float(difference), math.nan, math.nan, math.nan, users, len(first), math.nan)
    resampled = difference_of(_resample(joined, samples, seed))
    differences = _widened(resampled, float(difference), users, level)
    low, high = _percentiles(differences, level)
    errors = student_quantile((1 + level) / 2, users - 1) + student_quantile(POWER, users - 1)
    return PairedDifference(
        difference=float(difference),
        low=low,
        high=high,
        p_value=_two_sided(differences),
        users=users,
        queries=len(first),
        smallest_detectable=errors * math.sqrt(users / (users - 1)) * float(resampled.std(ddof=1)),
    )


def verdict(metric: str, found: PairedDifference) -> str:
    """better or worse where the interval leaves out zero, else open."""
    if found.low > 0 or found.high < 0:
        return "better" if (found.difference > 0) == HIGHER_IS_BETTER[metric] else "worse"
    return "open"


def score_by_user(task: Task, predictions: Sequence[Prediction], metric: str) -> dict[str, float]:
    """The metric of every user's own queries."""
    users, sums = _sums_by_user(task, predictions, metric)
    return dict(zip(users, from_sums(metric, sums).tolist(), strict=True))


def mean_interval(
    users: Sequence[str],
    values: Sequence[float],
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of the mean over questions, by resampling users; `users`: whose question each value is of."""
    index = {user: row for row, user in enumerate(sorted(set(users)))}
    sums = np.zeros((len(index), 2))
    np.add.at(sums, [index[user] for user in users], [(value, 1.0) for value in values])
    if len(sums) < 2:
        return math.nan, math.nan
    resampled = _resample(sums, samples, seed)
    estimate = float(np.mean(values))
    return _percentiles(_widened(resampled[:, 0] / resampled[:, 1], estimate, len(sums), level), level)


@cache
def student_quantile(p: float, freedom: int) -> float:
    """Of Student's t distribution, for .5 <= p < 1: its share below t is known in closed form (Abramowitz and Stegun,
    Handbook of Mathematical Functions, 26.7.3 and 26.7.4), and t is found by halving."""
    low, high = 0.0, 2.0
    while _student_share(high, freedom) < p:
        low, high = high, 2 * high
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, freedom) < p else (low, middle)
    return high


def _student_share(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t distribution."""
    angle = math.atan(t / math.sqrt(freedom))
    term = math.cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for k in range(2 + freedom % 2, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if freedom % 2 else math.sin(angle) * total
    return (1 + inside) / 2


def _widened(values: FloatArray, estimate: float, users: int, level: float) -> FloatArray:
    """Resampled values as far from the estimate as so few users say; see above."""
    p = (1 + level) / 2
    factor = math.sqrt(users / (users - 1)) * student_quantile(p, users - 1) / NormalDist().inv_cdf(p)
    return estimate + (values - estimate) * factor


def _sums_by_user(task: Task, predictions: Sequence[Prediction], metric: str) -> tuple[list[str], FloatArray]:
    """Users in order of their ids, and the metric's statistics summed over each one's queries, `[users, M]`."""
    users = sorted({p.user_id for p in predictions})
    index = {user: row for row, user in enumerate(users)}
    each = statistics(task, metric, [p.gold for p in predictions], [p.output for p in predictions])
    sums = np.zeros((len(users), each.shape[1]))
    np.add.at(sums, [index[p.user_id] for p in predictions], each)
    return users, sums


def _resample(sums: FloatArray, samples: int, seed: int) -> FloatArray:
    """Sums over the users of every resample: weights `[samples, users]` times `[users, M]`, in slices of rows."""
    users = len(sums)
    rng = np.random.default_rng(seed)
    step = max(1, _WEIGHTS_AT_ONCE // users)
    counts = [min(step, samples - start) for start in range(0, samples, step)]
    even = np.full(users, 1.0 / users)
    return np.vstack([rng.multinomial(users, even, size=count).astype(np.float64) @ sums for count in counts])


def _subtract(metric: str, a: FloatArray, b: FloatArray) -> FloatArray:
    difference = from_sums(metric, a) - from_sums(metric, b)
    return np.where(np.abs(difference) < _ROUNDING, 0.0, difference)


def _percentiles(values: FloatArray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _two_sided(differences: FloatArray) -> float:
    """Counting the observed sample as one more resample, so that p is never 0."""
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (len(differences) + 1))


def _check_same_queries(a: Sequence[Prediction], b: Sequence[Prediction]) -> None:
    left, right = ({(p.user_id, p.query_id, p.gold) for p in side} for side in (a, b))
    if left != right or len(a) != len(b):
        odd = sorted(left ^ right)
        example = f", such as query {odd[0][1]} of user {odd[0][0]}" if odd else ""
        raise DataError(
            [f"the two methods did not answer the same queries: {len(odd)} differ{example}"],
            fix="compare methods of one run, or start it anew",
        )
