"""How many users and questions a difference needs: power of a paired test over users, by resampling a run's users.

The difference of a question is d = x_i - x_j, the metric of method i minus that of method j. A run shows how d varies
between users (tau²) and between the questions of a user (sigma²); a run to come, of U users with Q questions each, is
drawn from that: users with replacement, and Q residuals for each. Drawing users and their questions as they stand would
count the noise of the questions twice, so the users' means are drawn towards each other first (two-stage bootstrap with
shrinkage, Davison and Hinkley, Bootstrap Methods and their Application, section 3.8). A true difference is put in by
shifting. A run finds it where |t| = |mean| / standard error exceeds what runs without a difference exceed in alpha of
all cases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from oppu.errors import ConfigError, DataError
from oppu.evaluate.metrics import HIGHER_IS_BETTER, FloatArray, metrics_of, per_query
from oppu.evaluate.results import Prediction
from oppu.tasks import Task

ALPHA = 0.05
SAMPLES = 4000
DIFFERENCES: Mapping[str, tuple[float, float, float]] = {
    "accuracy": (0.02, 0.05, 0.1),
    "mae": (0.05, 0.1, 0.2),
    "rouge1": (0.01, 0.02, 0.05),
    "rougeL": (0.01, 0.02, 0.05),
}
"""Usual differences of the metrics that are means over questions, in the metric's own unit."""

_MEANS = {"accuracy": "correct", "mae": "absolute_error", "rouge1": "rouge1", "rougeL": "rougeL"}
_RESIDUAL_MEANS = 20_000
_DRAWN_AT_ONCE = 4_000_000
_ROUNDING = 1e-24


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How the gain of one method over another varies in a run."""

    gain: float
    """The run's own, mean over its users' means; positive where the first method is better."""
    users: int
    queries: float
    """Median number of questions of a user."""
    between: float
    """tau², variance of the users' true gains; where nobody has two questions, of their one question's gain."""
    within: float | None
    """sigma², variance of the questions of a user around that user's gain; None where nobody has two."""
    deviations: FloatArray
    """The users' gains around their mean, drawn together to the variance tau², [users]."""
    residuals: FloatArray
    """Of all questions, around their user's gain, of the variance sigma²; [0.0] where nobody has two."""

    @property
    def varies(self) -> bool:
        """Whether anything is known about how the methods differ from user to user and from question to question."""
        return self.between + (self.within or 0.0) > _ROUNDING

    def standard_error(self, users: int, queries: int) -> float:
        """sqrt((tau² + sigma² / Q) / U)."""
        return math.sqrt((self.between + (self.within or 0.0) / queries) / users)


def gains_by_user(task: Task, a: Sequence[Prediction], b: Sequence[Prediction], metric: str) -> list[FloatArray]:
    """Of each user, in order of ids, every question's gain of method a over method b; positive where a is better.

    ConfigError for a metric that is no mean over questions; DataError where the methods answered different ones.
    """
    of_task = [each for each in metrics_of(task) if each in _MEANS]
    if metric not in of_task:
        what = "is no mean over questions, so what one more question tells is not known"
        if metric not in metrics_of(task):
            what = f"is no metric of task {task.name}"
        raise ConfigError(f"{metric} {what}", where="--metric", fix=f"use one of: {', '.join(of_task)}")
    golds_a, golds_b = ({(p.user_id, p.query_id): p.gold for p in side} for side in (a, b))
    if golds_a != golds_b:
        raise DataError(["the two methods did not answer the same queries"], fix="compare methods of one run")
    key, sign = _MEANS[metric], 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    values = [{(p.user_id, p.query_id): per_query(task, p.gold, p.output)[key] for p in side} for side in (a, b)]
    gains: dict[str, list[float]] = {}
    for user, query in sorted(golds_a):
        gains.setdefault(user, []).append(sign * (values[0][user, query] - values[1][user, query]))
    return [np.array(gains[user]) for user in sorted(gains)]


def mean_gains(of_seeds: Sequence[Sequence[FloatArray]]) -> list[FloatArray]:
    """The gains of the same users' questions, averaged over training seeds."""
    return [np.mean(of_user, axis=0) for of_user in zip(*of_seeds, strict=True)]


def spread_of(gains: Sequence[FloatArray]) -> Spread:
    """Variance components by the method of moments, from each user's gains; DataError with fewer than two users.

    sigma² = sum of squares within users / (questions - users); tau² = variance of users' means - sigma² mean(1/q).
    """
    if len(gains) < 2:
        raise DataError([f"{len(gains)} user says nothing about other users"], fix="use a run with more users")
    means = np.array([each.mean() for each in gains])
    counts = np.array([len(each) for each in gains])
    deviations = means - means.mean()
    total = float(means.var(ddof=1))
    within: float | None = None
    residuals = np.zeros(1)
    if counts.max() > 1:
        several = [each for each in gains if len(each) > 1]
        squares = float(sum(((each - each.mean()) ** 2).sum() for each in several))
        within = squares / (counts.sum() - len(gains))
        residuals = _scaled(np.concatenate([each - each.mean() for each in several]), within)
    between = max(0.0, total - (within or 0.0) * float((1 / counts).mean()))
    return Spread(
        gain=float(means.mean()),
        users=len(gains),
        queries=float(np.median(counts)),
        between=between,
        within=within,
        deviations=_scaled(deviations, between),
        residuals=residuals,
    )


def power_of(
    spread: Spread,
    differences: Sequence[float],
    users: int,
    queries: int,
    *,
    alpha: float = ALPHA,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[float]:
    """Share of drawn runs of `users` with `queries` questions each that find each true difference.

    The estimated standard error varies as that of normal users does: chi² with U - 1 degrees. That of the drawn users
    would mostly say whether the one user who is far off was drawn.

    ConfigError for fewer than two users, and where nobody has two questions and `queries` is not 1; DataError where the
    methods never differ.
    """
    if users < 2 or queries < 1:
        raise ConfigError(f"a run of {users} users with {queries} questions tests nothing", fix="use 2 users or more")
    if spread.within is None and queries != 1:
        raise ConfigError(
            f"every user of the run has one question, so what {queries} would tell is not known",
            where="--queries",
            fix="use --queries 1, or a run with several questions for a user",
        )
    if not spread.varies:
        raise DataError(["the two methods differ equally for everybody"], fix="compare others, or use a larger run")
    rng = np.random.default_rng([seed, users, queries])
    means = _drawn_means(spread, users, queries, samples, rng)
    errors = spread.standard_error(users, queries) * np.sqrt(rng.chisquare(users - 1, samples) / (users - 1))
    critical = np.quantile(np.abs(means) / errors, 1 - alpha)
    return [float((np.abs(means + difference) / errors > critical).mean()) for difference in differences]


def users_needed(spread: Spread, difference: float, queries: int, power: float, alpha: float = ALPHA) -> int | None:
    """(z_{1-alpha/2} + z_power)² (tau² + sigma²/Q) / difference² + z_{1-alpha/2}² / 2, rounded up, at least 2.

    The last term makes up for the estimated variance (Guenther 1981). None for a difference of 0, or where
    the methods never differ.
    """
    if difference == 0 or not spread.varies:
        return None
    outer, inner = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    variance = spread.standard_error(1, queries) ** 2
    return max(2, math.ceil((outer + inner) ** 2 * variance / difference**2 + outer**2 / 2))


def _drawn_means(spread: Spread, users: int, queries: int, samples: int, rng: np.random.Generator) -> FloatArray:
    """Mean gain over the users of each drawn run, [samples]; the true difference is 0."""
    noise = rng.choice(spread.residuals, (_RESIDUAL_MEANS, queries)).mean(axis=1)
    noise -= noise.mean()
    step = max(1, _DRAWN_AT_ONCE // users)
    shapes = [(min(step, samples - start), users) for start in range(0, samples, step)]
    return np.concatenate(
        [(rng.choice(spread.deviations, shape) + rng.choice(noise, shape)).mean(axis=1) for shape in shapes]
    )


def _scaled(values: FloatArray, variance: float) -> FloatArray:
    """Values around 0, of this variance when they are drawn with replacement."""
    own = float(values.var())
    return np.zeros_like(values) if own == 0 else (values - values.mean()) * math.sqrt(variance / own)
