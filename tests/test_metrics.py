"""Metrics against hand-worked values, scikit-learn and rouge-score; baselines against small histories.

At the end the whole way is checked: from the predictions that a run has written, by scikit-learn, by rouge-score and by
a second implementation in plain Python, to the figures in its results.json.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, root_mean_squared_error
from toys import COLOUR, FAST, MOTTO, colour_user, motto_user, tiny_base_folder

from oppu.errors import DataError
from oppu.evaluate import experiment
from oppu.evaluate.baselines import baselines, constant_outputs, majority_outputs, user_mean_outputs
from oppu.evaluate.design import Experiment
from oppu.evaluate.metrics import HIGHER_IS_BETTER, METRICS, per_query, primary_metric, score
from oppu.evaluate.results import Cell, Prediction, write_results
from oppu.records import Dataset, HistoryItem, Query, User
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
    assert majority_outputs(TEXT, [user("a", "headline", field="title", golds="headline")]) is None


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


def test_a_text_has_its_questions_own_text_as_a_baseline():
    asked = User("u", (), (Query("q", "day: monday", {"text": "monday"}, "rest"), Query("r", "", {"text": "x"})))
    found = {name: [(p.query_id, p.output) for p in rows] for name, rows in baselines(MOTTO, [asked]).items()}
    assert found == {"copy": [("q", "monday")]}


# from written predictions to results.json, by others


def by_libraries(task: Task, golds: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """scikit-learn and rouge-score, on the texts as they are."""
    if task.kind == "label":
        macro = {"average": "macro", "zero_division": 0}
        return {
            "accuracy": accuracy_score(golds, outputs),
            "f1_macro": f1_score(golds, outputs, labels=list(task.labels), **macro),
            "f1_macro_present": f1_score(golds, outputs, labels=sorted(set(golds)), **macro),
        }
    if task.kind == "rating":
        given = [
            float(output) if output in task.labels else worst(task, g) for g, output in zip(golds, outputs, strict=True)
        ]
        wanted = [float(gold) for gold in golds]
        return {"mae": mean_absolute_error(wanted, given), "rmse": root_mean_squared_error(wanted, given)}
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    scores = [scorer.score(gold, output) for gold, output in zip(golds, outputs, strict=True)]
    return {name: sum(each[name].fmeasure for each in scores) / len(scores) for name in ("rouge1", "rougeL")}


def worst(task: Task, gold: str) -> float:
    """The end of the scale that is farther from the gold: what an output that is no number counts as."""
    return max((float(label) for label in (task.labels[0], task.labels[-1])), key=lambda end: abs(end - float(gold)))


def by_definition(task: Task, golds: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """The same in plain Python, by the definitions."""
    pairs = list(zip(golds, outputs, strict=True))
    if task.kind == "label":
        f1 = {label: f1_of(label, pairs) for label in task.labels}
        return {
            "accuracy": mean([gold == output for gold, output in pairs]),
            "f1_macro": mean(list(f1.values())),
            "f1_macro_present": mean([f1[label] for label in set(golds)]),
        }
    if task.kind == "rating":
        errors = [abs(float(g) - (float(o) if o in task.labels else worst(task, g))) for g, o in pairs]
        return {"mae": mean(errors), "rmse": math.sqrt(mean([error * error for error in errors]))}
    words = [(re.findall("[a-z0-9]+", gold.lower()), re.findall("[a-z0-9]+", output.lower())) for gold, output in pairs]
    return {
        "rouge1": mean([f_measure(sum((Counter(a) & Counter(b)).values()), a, b) for a, b in words]),
        "rougeL": mean([f_measure(longest_common_subsequence(a, b), a, b) for a, b in words]),
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def f1_of(label: str, pairs: Sequence[tuple[str, str]]) -> float:
    hits = sum(gold == output == label for gold, output in pairs)
    predicted, wanted = (sum(pair[place] == label for pair in pairs) for place in (1, 0))
    precision, recall = (hits / count if count else 0.0 for count in (predicted, wanted))
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def f_measure(shared: int, gold: Sequence[str], output: Sequence[str]) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / len(output), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    lengths = dict.fromkeys(product(range(-1, len(a)), range(-1, len(b))), 0)
    for i, j in product(range(len(a)), range(len(b))):
        lengths[i, j] = lengths[i - 1, j - 1] + 1 if a[i] == b[j] else max(lengths[i - 1, j], lengths[i, j - 1])
    return lengths[len(a) - 1, len(b) - 1]


def assert_rows_are_those_of_others(out: Path, task: Task, golds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every row of results.json, from the prediction files and the golds as the data have them."""
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        file = out / "predictions" / f"{row['method']}-k{row['k']}.json"
        written = {each["id"]: each["output"] for each in json.loads(file.read_text(encoding="utf-8"))["golds"]}
        assert written.keys() == golds.keys()
        pairs = [(golds[name], written[name]) for name in golds]
        for others in (by_libraries, by_definition):
            assert row["metrics"] == pytest.approx(others(task, *zip(*pairs, strict=True)), abs=1e-12), row["method"]
    return rows


WORDS = [
    "the",
    "senate",
    "votes",
    "on",
    "a",
    "budget",
    "as",
    "markets",
    "fall",
    "again",
    "and",
    "Again,",
    "THE",
    "end",
    "-",
    "2016's",
]
ALL_METRICS = [
    BUILT_IN[name] for name in ("news_categorize", "movie_tagging", "citation", "product_rating", "news_headline")
]


@pytest.mark.parametrize("task", [*ALL_METRICS, COLOURS], ids=lambda task: task.name)
def test_written_predictions_scored_by_others_give_the_figures_of_results_json(task: Task, tmp_path: Path) -> None:
    """Outputs that are right, wrong, of no label, no number and empty; labels that never occur among them."""
    rng = random.Random(task.name)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(0, 9)))

    cells, golds = [], {}
    for place in range(60):
        golds[f"q{place}"] = rng.choice(task.labels[:-1]) if task.labels else text()
    for share in (0.0, 0.4, 1.0):  # of outputs that are right
        predictions = []
        for name, gold in golds.items():
            other = rng.choice([*task.labels, "none of them", ""]) if task.labels else text()
            predictions.append(Prediction(f"u{name[-1]}", name, gold, gold if rng.random() < share else other))
        cells.append(Cell(f"right-{share}", 0, tuple(predictions), 1.0))
    write_results(tmp_path, task, {}, cells)
    rows = assert_rows_are_those_of_others(tmp_path, task, golds)
    primary = [row["metrics"][primary_metric(task)] for row in rows]
    assert primary == sorted(primary, reverse=not HIGHER_IS_BETTER[primary_metric(task)])
    assert len(set(primary)) == 3


RATED = COLOUR.model_copy(update={"name": "rated", "kind": "rating", "labels": ("1", "2", "3", "4", "5")})


@pytest.mark.parametrize("task", [COLOUR, RATED, MOTTO], ids=lambda task: task.name)
def test_the_figures_of_an_experiment_are_those_of_its_predictions_scored_by_others(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "write_report", lambda *_: None)
    if task.kind == "text":
        users = [motto_user(name, 6) for name in ("x", "yy")]
        users = [replace(u, queries=tuple(replace(q, gold=f"{u.id} 6") for q in u.queries)) for u in users]
    else:
        users = [colour_user(name, 6, queries=5) for name in ("a", "b")]
    if task is RATED:
        users = [rated(user) for user in users]
    strong = replace(FAST, epochs=4, learning_rate=3e-2)
    wanted = Experiment(task, ("base", "rag", "oppu"), (1,), str(tiny_base_folder(tmp_path / "tiny")), None, strong)
    experiment.run(wanted, Dataset(tuple(users)), tmp_path / "out")
    golds = {query.id: str(query.gold) for user in users for query in user.queries}
    rows = assert_rows_are_those_of_others(tmp_path / "out", task, golds)
    assert {row["method"] for row in rows} >= {"base", "rag", "oppu"}


def rated(user: User) -> User:
    """The same things with stars for colours."""
    stars = {"red": "1", "blue": "3", "green": "5"}
    history = (replace(i, fields={**i.fields, "colour": stars[i.fields["colour"]]}) for i in user.history)
    return replace(
        user, history=tuple(history), queries=tuple(replace(q, gold=stars[str(q.gold)]) for q in user.queries)
    )
