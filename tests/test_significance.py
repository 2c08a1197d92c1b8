"""The bootstrap over users against a slow loop, theory and cases whose answer is known."""

import math
import random
import time

import numpy as np
import pytest
from scipy.stats import norm, t

from oppu.errors import DataError
from oppu.evaluate.metrics import score
from oppu.evaluate.results import Prediction
from oppu.evaluate.significance import (
    confidence_interval,
    paired_difference,
    paired_difference_over_seeds,
    score_by_user,
    student_quantile,
)
from oppu.tasks import BUILT_IN

TASK = BUILT_IN["news_categorize"]
RATING = BUILT_IN["product_rating"]
RIGHT, WRONG = "politics", "travel"


def predictions(hits_by_user: list[list[int]]) -> list[Prediction]:
    return [
        Prediction(f"u{u}", f"u{u}q{q}", RIGHT, RIGHT if hit else WRONG)
        for u, hits in enumerate(hits_by_user)
        for q, hit in enumerate(hits)
    ]


def widening(users: int) -> float:
    return math.sqrt(users / (users - 1)) * t.ppf(0.975, users - 1) / norm.ppf(0.975)


def random_hits(rng: random.Random, users: int, queries: int = 4) -> list[list[int]]:
    rates = [rng.random() for _ in range(users)]
    return [[int(rng.random() < rate) for _ in range(queries)] for rate in rates]


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "f1_macro_present"])
def test_resampled_metrics_equal_scoring_each_resample_from_its_predictions(metric):
    rng = random.Random(3)
    labels = TASK.labels[:4]
    of_user = [
        [Prediction(f"u{u}", f"u{u}q{q}", rng.choice(labels), rng.choice(labels)) for q in range(rng.randint(1, 5))]
        for u in range(7)
    ]
    weights = np.random.default_rng(11).multinomial(7, np.full(7, 1 / 7), size=200)
    slow = []
    for drawn in weights:
        pool = [p for u, count in enumerate(drawn) for _ in range(count) for p in of_user[u]]
        slow.append(score(TASK, [p.gold for p in pool], [p.output for p in pool])[metric])
    everything = [p for each in of_user for p in each]
    found = confidence_interval(TASK, everything, metric, samples=200, seed=11)
    estimate = score(TASK, [p.gold for p in everything], [p.output for p in everything])[metric]
    low, high = (estimate + widening(7) * (end - estimate) for end in np.quantile(slow, [0.025, 0.975]))
    assert found == pytest.approx((max(0.0, low), min(1.0, high)))


def test_the_same_seed_gives_the_same_numbers_in_any_order_of_predictions():
    rng = random.Random(0)
    a, b = predictions(random_hits(rng, 12)), predictions(random_hits(rng, 12))
    first = paired_difference(TASK, a, b, "accuracy", seed=4)
    shuffled = random.Random(1).sample(a, len(a))
    assert paired_difference(TASK, shuffled, b, "accuracy", seed=4) == first
    assert paired_difference(TASK, a, b, "accuracy", seed=5) != first


def test_the_interval_has_the_width_that_theory_gives():
    hits = [[i % 2] for i in range(400)]  # one query per user: the variance is p (1 - p) / n
    low, high = confidence_interval(TASK, predictions(hits), "accuracy")
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.005)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.08)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = random.Random(9)
    for users in (8, 40):
        covered = 0
        for seed in range(400):
            sample = predictions(
                random_hits(rng, users, queries=3)
            )  # users' rates are uniform, so the truth is one half
            low, high = confidence_interval(TASK, sample, "accuracy", samples=400, seed=seed)
            covered += low <= 0.5 <= high
        assert 0.915 <= covered / 400 <= 0.985


def test_queries_of_one_user_go_along_with_the_user():
    alike = predictions([[u % 2] * 20 for u in range(20)])
    mixed = predictions([[q % 2 for q in range(20)] for _ in range(20)])
    low, high = confidence_interval(TASK, alike, "accuracy")
    assert high - low > 0.3
    assert confidence_interval(TASK, mixed, "accuracy") == (0.5, 0.5)


def test_the_same_answers_differ_by_nothing():
    a = predictions(random_hits(random.Random(2), 10))
    found = paired_difference(TASK, a, a, "f1_macro")
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert (found.users, found.queries) == (10, 40)


def test_a_clear_gain_is_found_with_the_least_p_value_there_is():
    better = predictions([[1, 1, 1, u % 2] for u in range(30)])
    worse = predictions([[0, 0, 1, u % 3 == 0] for u in range(30)])
    found = paired_difference(TASK, better, worse, "accuracy", samples=999)
    assert found.difference == pytest.approx(0.5 + (15 - 10) / 120)
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == pytest.approx(2 / 1000)


def test_swapping_the_methods_turns_the_signs():
    rng = random.Random(5)
    a, b = predictions(random_hits(rng, 15)), predictions(random_hits(rng, 15))
    one, other = paired_difference(TASK, a, b, "accuracy"), paired_difference(TASK, b, a, "accuracy")
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == other.p_value


def test_p_values_are_even_where_there_is_no_difference():
    rng = random.Random(21)
    for users in (8, 40):
        found = 0
        for seed in range(400):
            a, b = (predictions([[int(rng.random() < 0.6) for _ in range(5)] for _ in range(users)]) for _ in range(2))
            found += paired_difference(TASK, a, b, "accuracy", samples=400, seed=seed).p_value < 0.05
        assert 0.02 <= found / 400 <= 0.08


def test_the_quantiles_are_student_s():
    for freedom in (1, 2, 3, 7, 8, 59, 400):
        assert [student_quantile(p, freedom) for p in (0.5, 0.8, 0.975)] == pytest.approx(
            [t.ppf(p, freedom) for p in (0.5, 0.8, 0.975)], abs=1e-9
        )


def test_the_smallest_detectable_difference_is_2_8_standard_errors():
    # one query per user; a user's difference is 1 for half of them and 0 for the others: variance 1/4
    a = predictions([[1] for _ in range(100)])
    b = predictions([[u % 2] for u in range(100)])
    found = paired_difference(TASK, a, b, "accuracy", samples=4000)
    assert found.smallest_detectable == pytest.approx(2.8016 * math.sqrt(0.25 / 100), rel=0.05)
    few = paired_difference(TASK, a[:8], b[:8], "accuracy", samples=4000)
    assert few.smallest_detectable == pytest.approx((2.365 + 0.896) * math.sqrt(2 / 7 / 8), rel=0.05)


def test_rmse_is_compared_as_a_root_of_a_mean():
    a = [Prediction(f"u{u}", "q", "3", "3") for u in range(5)]
    b = [Prediction(f"u{u}", "q", "3", "5") for u in range(5)]
    assert paired_difference(RATING, a, b, "rmse").difference == pytest.approx(-2.0)


def test_one_user_says_nothing_about_others():
    a, b = predictions([[1, 1, 0]]), predictions([[1, 0, 0]])
    found = paired_difference(TASK, a, b, "accuracy")
    assert found.difference == pytest.approx(1 / 3)
    uncertain = (found.low, found.high, found.p_value, found.smallest_detectable)
    assert all(math.isnan(value) for value in (*uncertain, *confidence_interval(TASK, a, "accuracy")))


def test_methods_that_answered_different_queries_are_not_compared():
    a = predictions([[1, 0], [1, 1]])
    with pytest.raises(DataError, match="such as query u1q1 of user u1"):
        paired_difference(TASK, a, a[:-1], "accuracy")


def test_every_user_is_scored_on_that_users_queries():
    assert score_by_user(TASK, predictions([[1, 1], [1, 0], [0]]), "accuracy") == {"u0": 1.0, "u1": 0.5, "u2": 0.0}


def test_macro_f1_of_thousands_of_resamples_takes_moments():
    sample = predictions(random_hits(random.Random(0), 200, queries=5))
    start = time.perf_counter()
    confidence_interval(TASK, sample, "f1_macro", samples=5000)
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_over_seeds_the_mean_difference_is_resampled_with_the_same_users_in_every_seed(metric):
    rng = random.Random(5)
    labels = TASK.labels[:4]
    golds = [[rng.choice(labels) for _ in range(rng.randint(1, 5))] for _ in range(6)]

    def answers() -> list[list[Prediction]]:
        return [
            [Prediction(f"u{u}", f"u{u}q{q}", gold, rng.choice(labels)) for q, gold in enumerate(of_user)]
            for u, of_user in enumerate(golds)
        ]

    seeds = [(answers(), answers()) for _ in range(3)]
    weights = np.random.default_rng(2).multinomial(6, np.full(6, 1 / 6), size=150)

    def value(side, drawn):
        pool = [p for u, count in enumerate(drawn) for _ in range(count) for p in side[u]]
        return score(TASK, [p.gold for p in pool], [p.output for p in pool])[metric]

    slow = [np.mean([value(a, drawn) - value(b, drawn) for a, b in seeds]) for drawn in weights]
    flat = [tuple([p for of_user in side for p in of_user] for side in pair) for pair in seeds]
    found = paired_difference_over_seeds(TASK, flat, metric, samples=150, seed=2)
    assert found.difference == pytest.approx(np.mean([value(a, [1] * 6) - value(b, [1] * 6) for a, b in seeds]))
    ends = [found.difference + widening(6) * (end - found.difference) for end in np.quantile(slow, [0.025, 0.975])]
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-12)
    assert (found.users, found.queries) == (6, sum(map(len, golds)))


def test_over_one_seed_it_is_the_difference_of_two_methods():
    rng = random.Random(1)
    a, b = predictions(random_hits(rng, 9)), predictions(random_hits(rng, 9))
    assert paired_difference_over_seeds(TASK, [(a, b)], "accuracy") == paired_difference(TASK, a, b, "accuracy")


def test_seeds_that_answered_other_queries_are_refused():
    rng = random.Random(1)
    a, b, fewer = (predictions(random_hits(rng, users)) for users in (5, 5, 4))
    with pytest.raises(DataError, match="did not answer the same queries"):
        paired_difference_over_seeds(TASK, [(a, b), (fewer, fewer)], "accuracy")
