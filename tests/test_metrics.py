"""Metrics against hand-worked values, scikit-learn and rouge-score; baselines against small histories."""

import math
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, root_mean_squared_error

from oppu.errors import DataError
from oppu.evaluate.baselines import baselines, constant_outputs, majority_outputs, user_mean_outputs
from oppu.evaluate.metrics import HIGHER_IS_BETTER, METRICS, per_query, primary_metric, score
from oppu.records import HistoryItem, Query, User
from oppu.tasks import BUILT_IN, HistoryForm, Task

RATING = BUILT_IN["product_rating"]
TEXT = BUILT_IN["news_headline"]
COLOURS = Task(
    name="colours",
    title="Colours",
    kind="label",
    labels=("red", "green", "blue"),
    prompt="{text}",
    history=(HistoryForm(prompt="{text}", answer="{colour}", shown="{text} {colour}"),),
    search_fields=("text",),
)


def user(name: str, answers: str, field: str = "colour", golds: str = "red") -> User:
    history = tuple(
        HistoryItem(id=f"{name}{i}", fields={"text": "x", field: answer}, time=float(i))
        for i, answer in enumerate(answers.split())
    )
    queries = tuple(
        Query(id=f"{name}-q{i}", input="x", fields={"text": "x"}, gold=g) for i, g in enumerate(golds.split())
    )
    return User(name, history, queries)


def test_label_metrics_equal_values_worked_by_hand():
    # red: 1 hit, predicted 1, gold 2 -> 2/3; green: 1 hit, predicted 2, gold 1 -> 2/3; blue never occurs -> 0
    found = score(COLOURS, ["red", "red", "green"], ["red", "green", "green"])
    assert found == pytest.approx({"accuracy": 2 / 3, "f1_macro": 4 / 9, "f1_macro_present": 2 / 3})


def test_an_unknown_output_is_wrong_and_costs_no_label_precision():
    # red: 1 hit, predicted 1, gold 2 -> 2/3
    found = score(COLOURS, ["red", "red"], ["red", "reddish"])
    assert found == pytest.approx({"accuracy": 1 / 2, "f1_macro": 2 / 9, "f1_macro_present": 2 / 3})


def test_outputs_are_stripped_but_case_counts():
    assert per_query(COLOURS, "red", " red\n") == {"correct": 1.0}
    assert per_query(COLOURS, "red", "Red") == {"correct": 0.0}


def test_a_gold_that_is_no_label_is_refused_even_when_the_output_is_the_same():
    with pytest.raises(DataError, match="'pink' is not one of the labels"):
        score(COLOURS, ["pink"], ["pink"])


def test_nothing_to_score_is_refused():
    with pytest.raises(DataError, match="no query with a known answer"):
        score(COLOURS, [], [])


@pytest.mark.parametrize("seed", range(5))
def test_label_metrics_equal_scikit_learn(seed):
    rng = random.Random(seed)
    task = BUILT_IN["news_categorize"]
    golds = [rng.choice(task.labels[: rng.randint(2, 15)]) for _ in range(40)]
    outputs = [g if rng.random() < 0.5 else rng.choice([*task.labels, "nonsense"]) for g in golds]
    wanted = [task.labels.index(g) for g in golds]
    given = [task.labels.index(o) if o in task.labels else -1 for o in outputs]
    present = sorted(set(wanted))
    found = score(task, golds, outputs)
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, given))
    everything = {"average": "macro", "zero_division": 0}
    assert found["f1_macro"] == pytest.approx(f1_score(wanted, given, labels=range(15), **everything))
    assert found["f1_macro_present"] == pytest.approx(f1_score(wanted, given, labels=present, **everything))


@pytest.mark.parametrize("seed", range(3))
def test_rating_metrics_equal_scikit_learn(seed):
    rng = random.Random(seed)
    golds, outputs = ([str(rng.randint(1, 5)) for _ in range(30)] for _ in range(2))
    left, right = [float(g) for g in golds], [float(o) for o in outputs]
    assert score(RATING, golds, outputs) == pytest.approx(
        {"mae": mean_absolute_error(left, right), "rmse": root_mean_squared_error(left, right)}
    )


@pytest.mark.parametrize("output", ["good", "", "nan", "inf", "4 stars"])
@pytest.mark.parametrize(("gold", "error"), [("1", 4.0), ("2", 3.0), ("3", 2.0), ("4", 3.0), ("5", 4.0)])
def test_an_output_that_is_no_number_counts_as_the_worse_end_of_the_scale(gold, output, error):
    assert per_query(RATING, gold, output) == {"absolute_error": error, "squared_error": error**2}


def test_a_rating_is_read_as_a_number():
    assert score(RATING, ["4", "2"], [" 4.0", "5"]) == pytest.approx({"mae": 1.5, "rmse": math.sqrt(4.5)})


def test_rouge_equals_values_worked_by_hand():
    # unigrams: 3 of 4 and of 3 -> F = 6/7; longest common subsequence "the sat" = 2 -> F = 4/7
    assert score(TEXT, ["the cat sat down"], ["the sat cat"]) == pytest.approx({"rouge1": 6 / 7, "rougeL": 4 / 7})


def test_rouge_does_not_stem():
    assert score(TEXT, ["cats"], ["cat"]) == {"rouge1": 0.0, "rougeL": 0.0}


def test_rouge_equals_the_mean_of_rouge_score():
    rng = random.Random(0)
    words = ["the", "senate", "votes", "on", "budget", "as", "markets", "fall", "again"]
    golds, outputs = ([" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(25)] for _ in range(2))
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    each = [scorer.score(gold, output) for gold, output in zip(golds, outputs, strict=True)]
    wanted = {name: sum(scores[name].fmeasure for scores in each) / 25 for name in ("rouge1", "rougeL")}
    assert score(TEXT, golds, outputs) == pytest.approx(wanted)


def test_every_metric_has_a_direction_and_every_kind_a_primary_metric():
    assert {name for names in METRICS.values() for name in names} == set(HIGHER_IS_BETTER)
    assert [primary_metric(task) for task in (COLOURS, RATING, TEXT)] == ["accuracy", "mae", "rouge1"]


def test_the_majority_is_the_most_frequent_answer_and_the_newest_of_equals():
    users = [user("a", "red red blue"), user("b", "green blue red red green"), user("c", "blue green")]
    found = majority_outputs(COLOURS, users)
    assert [(p.user_id, p.query_id, p.gold, p.output) for p in found] == [
        ("a", "a-q0", "red", "red"),
        ("b", "b-q0", "red", "green"),
        ("c", "c-q0", "red", "green"),
    ]


def test_a_user_without_answers_gets_everybodys_majority():
    found = majority_outputs(COLOURS, [user("a", "red red blue"), user("new", "")])
    assert found[-1].output == "red"


def test_queries_without_a_known_answer_are_not_predicted():
    unknown = User("a", user("a", "red").history, (Query("q", "x", {"text": "x"}),))
    assert majority_outputs(COLOURS, [unknown]) == []


def test_histories_without_the_tasks_answers_have_no_baseline():
    author = User(
        "a",
        (HistoryItem("1", {"title": "t", "abstract": "", "citation": "c"}, 0.0),),
        (Query("q", "x", {"title": "t"}, gold="[1]"),),
    )
    assert baselines(BUILT_IN["citation"], [author]) == {}
    assert baselines(TEXT, [user("a", "headline", field="title", golds="headline")]) == {}


def test_a_users_mean_rating_is_rounded_to_the_scale_halves_up():
    users = [user("a", "5 4", field="score", golds="5"), user("b", "1 1 2", field="score", golds="5")]
    assert [p.output for p in user_mean_outputs(RATING, users)] == ["5", "1"]
    assert user_mean_outputs(COLOURS, [user("a", "red")]) is None


def test_the_constant_rating_has_the_least_error_over_base_users_histories_and_queries():
    base = [user("x", "5 5 1 5.0", field="score", golds="4 3")]
    asked = [user("a", "1", field="score", golds="2 5")]
    assert [p.output for p in constant_outputs(RATING, asked, base)] == ["4", "4"]
    assert constant_outputs(RATING, asked, []) is None


def test_all_baselines_of_ratings_are_named():
    one = [user("a", "5 5 1", field="score", golds="4")]
    outputs = {name: [p.output for p in found] for name, found in baselines(RATING, one, one).items()}
    assert outputs == {"majority": ["5"], "user-mean": ["4"], "constant": ["4"]}
