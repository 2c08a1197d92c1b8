"""Power by resampling against the power that theory gives, and the variance components behind it."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import nct, t

from oppu.errors import ConfigError, DataError
from oppu.evaluate.power import Spread, gains_by_user, power_of, spread_of, users_needed
from oppu.evaluate.results import Prediction
from oppu.evaluate.significance import paired_difference
from oppu.tasks import BUILT_IN

TASK = BUILT_IN["news_categorize"]
RATING = BUILT_IN["product_rating"]
RIGHT, WRONG = "politics", "travel"


def drawn_gains(users: int, queries: int, between: float, within: float, seed: int) -> list[np.ndarray]:
    """Normal gains: users' means of the standard deviation `between`, questions around them of `within`."""
    rng = np.random.default_rng(seed)
    return [rng.normal(mean, within, queries) for mean in rng.normal(0.03, between, users)]


def t_power(difference: float, deviation: float, users: int) -> float:
    """Power of the two-sided paired t test at .05 over `users` differences of this standard deviation."""
    edge, shift = t.ppf(0.975, users - 1), difference / (deviation / math.sqrt(users))
    return float(nct.sf(edge, users - 1, shift) + nct.cdf(-edge, users - 1, shift))


def hits(a: list[list[int]], b: list[list[int]]) -> tuple[list[Prediction], list[Prediction]]:
    """Answers of two methods, right where there is a 1."""
    return tuple(
        [
            Prediction(f"u{u}", f"u{u}q{q}", RIGHT, RIGHT if hit else WRONG)
            for u, row in enumerate(side)
            for q, hit in enumerate(row)
        ]
        for side in (a, b)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("users", [10, 25, 100, 400])
@pytest.mark.parametrize("queries", [1, 5, 20])
def test_power_is_that_of_the_paired_t_test_at_sizes_smaller_and_larger_than_the_runs(users: int, queries: int) -> None:
    # many users, so that the run's own variances are close to the true ones
    spread = spread_of(drawn_gains(3000, 5, between=0.1, within=0.3, seed=users + queries))
    deviation = spread.standard_error(1, queries)
    assert deviation == pytest.approx(math.sqrt(0.1**2 + 0.3**2 / queries), rel=0.06)
    differences = [0.0] + [share * deviation / math.sqrt(users) for share in (1.0, 2.0, 2.8, 4.0)]
    found = power_of(spread, differences, users, queries, samples=8000)
    assert found == pytest.approx([t_power(each, deviation, users) for each in differences], abs=0.025)
    assert found[0] == pytest.approx(0.05, abs=0.001)  # the level is exact by construction


def test_power_is_the_share_of_real_runs_whose_t_test_finds_the_difference() -> None:
    """No theory between: runs are drawn anew from discrete answers, and each is tested."""
    rng = np.random.default_rng(5)

    def answers(users: int, queries: int, gain: float) -> list[np.ndarray]:
        rates = rng.beta(6, 2, users)
        right_b = rng.random((users, queries)) < rates[:, None] * (1 - gain)
        right_a = rng.random((users, queries)) < rates[:, None]
        return list(right_a.astype(float) - right_b.astype(float))

    pilot = spread_of(answers(4000, 6, 0.0))
    true = 0.08 * 6 / 8
    found = 0
    for _ in range(1500):
        means = np.array([each.mean() for each in answers(40, 10, 0.08)])
        found += abs(means.mean()) / (means.std(ddof=1) / math.sqrt(40)) > t.ppf(0.975, 39)
    assert power_of(pilot, [true], 40, 10) == pytest.approx([found / 1500], abs=0.05)


def test_the_variance_between_users_and_that_between_questions_are_told_apart() -> None:
    for queries in (2, 4, 30):
        spread = spread_of(drawn_gains(4000, queries, between=0.1, within=0.3, seed=queries))
        assert spread.within == pytest.approx(0.09, rel=0.05)
        assert spread.between == pytest.approx(0.01, rel=0.25)
        assert spread.deviations.var() == pytest.approx(spread.between)
        assert spread.residuals.var() == pytest.approx(spread.within)


def test_resampling_whole_users_as_they_stand_would_count_noise_twice_and_this_does_not() -> None:
    gains = drawn_gains(2000, 2, between=0.0, within=0.5, seed=1)
    spread = spread_of(gains)
    naive = np.var([each.mean() for each in gains]) + 0.25 / 2
    assert naive == pytest.approx(0.25, rel=0.1)
    assert spread.standard_error(1, 2) ** 2 == pytest.approx(0.125, rel=0.1)


def test_users_with_few_and_with_many_questions_are_used_together() -> None:
    rng = np.random.default_rng(3)
    gains = [rng.normal(rng.normal(0, 0.1), 0.3, rng.choice([1, 2, 9])) for _ in range(6000)]
    spread = spread_of(gains)
    assert (spread.within, spread.between) == (pytest.approx(0.09, rel=0.05), pytest.approx(0.01, rel=0.4))
    assert spread.queries == 2


def test_the_smallest_detectable_difference_of_the_report_has_a_power_of_about_80_percent() -> None:
    rng = np.random.default_rng(8)
    rates = rng.beta(4, 2, 60)
    a, b = hits(*[(rng.random((60, 10)) < rates[:, None]).astype(int).tolist() for _ in range(2)])
    smallest = paired_difference(TASK, a, b, "accuracy").smallest_detectable
    spread = spread_of(gains_by_user(TASK, a, b, "accuracy"))
    assert power_of(spread, [smallest], 60, 10)[0] == pytest.approx(0.8, abs=0.06)


def test_the_users_needed_have_the_power_that_was_asked_for() -> None:
    spread = spread_of(drawn_gains(2000, 5, between=0.15, within=0.3, seed=9))
    for difference, queries in ((0.05, 5), (0.1, 1), (0.2, 20)):
        users = users_needed(spread, difference, queries, 0.8)
        assert users is not None
        assert power_of(spread, [difference], users, queries)[0] > 0.775
        assert power_of(spread, [difference], math.floor(0.8 * users), queries)[0] < 0.8
    assert users_needed(spread, 0.0, 5, 0.8) is None


def test_more_users_more_questions_and_a_larger_difference_each_find_more() -> None:
    spread = spread_of(drawn_gains(300, 5, between=0.1, within=0.4, seed=2))
    by_users = [power_of(spread, [0.08], users, 5)[0] for users in (10, 30, 90)]
    by_queries = [power_of(spread, [0.08], 30, queries)[0] for queries in (1, 5, 25)]
    by_difference = power_of(spread, [0.02, 0.08, 0.16], 30, 5)
    assert all(low < high for found in (by_users, by_queries, by_difference) for low, high in pairwise(found))


def test_a_gain_is_positive_where_the_first_method_is_better() -> None:
    a, b = hits([[1, 1], [1]], [[0, 1], [0]])
    assert [each.tolist() for each in gains_by_user(TASK, a, b, "accuracy")] == [[1, 0], [1]]
    near, far = ([Prediction(f"u{u}", "q", "5", output) for u in range(2)] for output in ("4", "2"))
    assert [each.tolist() for each in gains_by_user(RATING, near, far, "mae")] == [[2], [2]]


def test_one_user_who_is_far_off_does_not_make_a_larger_run_worse() -> None:
    gains = [np.zeros(10) for _ in range(19)] + [np.ones(10)]
    spread = spread_of(gains)
    powers = [power_of(spread, [0.1], users, 10)[0] for users in (10, 20, 50, 100, 200)]
    assert powers == sorted(powers)
    assert powers[-1] > 0.8


def test_methods_that_never_differ_say_nothing_about_power() -> None:
    a, _ = hits([[1, 0]] * 5, [[1, 0]] * 5)
    spread = spread_of(gains_by_user(TASK, a, a, "accuracy"))
    assert users_needed(spread, 0.1, 2, 0.8) is None
    with pytest.raises(DataError, match="differ equally for everybody"):
        power_of(spread, [0.1], 10, 2)


def test_what_cannot_be_known_is_refused() -> None:
    a, b = hits([[1, 0]] * 3, [[0, 0]] * 3)
    with pytest.raises(ConfigError, match="f1_macro is no mean over questions"):
        gains_by_user(TASK, a, b, "f1_macro")
    with pytest.raises(ConfigError, match=r"mae is no metric of task .*; use one of: accuracy$"):
        gains_by_user(TASK, a, b, "mae")
    with pytest.raises(DataError, match="did not answer the same queries"):
        gains_by_user(TASK, a, b[:-1], "accuracy")
    with pytest.raises(DataError, match="says nothing about other users"):
        spread_of([np.array([1.0, 0.0])])
    single: Spread = spread_of([np.array([each]) for each in (1.0, 0.0, 0.0, 1.0)])
    assert single.within is None
    assert power_of(single, [0.5], 20, 1)[0] > 0.5
    with pytest.raises(ConfigError, match="every user of the run has one question"):
        power_of(single, [0.5], 20, 5)
    with pytest.raises(ConfigError, match="tests nothing"):
        power_of(single, [0.5], 1, 1)
