"""Result files, cells to resume and the report of a run with made-up answers."""

import io
import json
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console

from oppu.errors import ConfigError, DataError, StoreError
from oppu.evaluate.comparisons import compare, counterpart, gain_by_user
from oppu.evaluate.metrics import score
from oppu.evaluate.reports.panels import Series, lines_of
from oppu.evaluate.reports.plots import INCH, STYLE, plot_curves
from oppu.evaluate.reports.report import render, write_report
from oppu.evaluate.reports.summary import best_two, duration, number, signed, summary_table
from oppu.evaluate.results import Cell, Prediction, read_cells, write_cell, write_results
from oppu.evaluate.studies.similarity import _distribution
from oppu.evaluate.study import Column, shown
from oppu.tasks import BUILT_IN

TASK = BUILT_IN["movie_tagging"]
RATING = BUILT_IN["product_rating"]
CONFIG = {
    "base": "tiny <base>",
    "seed": 7,
    "train": {"rank": 8, "epochs": None},
    "command": "oppu experiment --task movie_tagging --k 1",
    "versions": {"torch": "2.13.0"},
}
VOID = {"meta", "link", "br", "img", "hr", "input"}


def cell(method: str, k: int, share: float, users: int = 6, task=TASK) -> Cell:
    golds, answers = random.Random(1), random.Random(f"{method}{k}")
    predictions = []
    for u in range(users):
        for q in range(4):
            gold = golds.choice(task.labels)
            output = gold if answers.random() < share else answers.choice(task.labels)
            predictions.append(Prediction(f"u{u}", f"q{u}-{q}", gold, output))
    trained = {f"u{u}": tuple(2.0 / (s + 1) for s in range(5 + 3 * u)) for u in range(users)}
    return Cell(method, k, tuple(predictions), 12.5, trained if method.startswith("oppu") else {})


def grid(users: int = 6, task=TASK) -> list[Cell]:
    plan = [("base", 0, 0.2), ("rag", 1, 0.4), ("oppu", 0, 0.5), ("oppu+rag", 1, 0.8), ("majority", 0, 0.3)]
    return [cell(method, k, share, users, task) for method, k, share in plan]


def sizes(users: int = 6) -> dict[str, int]:
    return {f"u{u}": 10 + u for u in range(users)}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a test asks about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.text: list[str] = []
        self.plots = 0
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.plots += tag == "svg"
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                self.targets.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_results_hold_task_config_and_a_row_for_every_cell(tmp_path):
    rows = write_results(tmp_path, TASK, CONFIG, grid())
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written) == ["task", "config", "rows"]
    assert (written["task"], written["config"]) == ("movie_tagging", CONFIG)
    assert [list(row) for row in written["rows"]] == [["method", "k", "metrics", "users", "queries", "seconds"]] * 5
    first = grid()[0].predictions
    assert written["rows"][0] == {
        "method": "base",
        "k": 0,
        "metrics": score(TASK, [p.gold for p in first], [p.output for p in first]),
        "users": 6,
        "queries": 24,
        "seconds": 12.5,
    }
    assert [row.method for row in rows] == ["base", "rag", "oppu", "oppu+rag", "majority"]


def test_predictions_are_in_the_benchmarks_format(tmp_path):
    write_results(tmp_path, TASK, CONFIG, grid())
    written = json.loads((tmp_path / "predictions" / "oppu+rag-k1.json").read_text())
    expected = [{"id": p.query_id, "output": p.output} for p in grid()[3].predictions]
    assert written == {"task": "LaMP_2M", "golds": expected}


def test_cells_come_back_as_they_were_written(tmp_path):
    odd = Cell("rag", 2, (Prediction("ü", "q", "comedy", 'line\n"quote" 雪'),), 0.25, {"ü": (1.0, float("inf"), 0.1)})
    for each in (*grid(), odd):
        write_cell(tmp_path, each)
    assert {c.name: c for c in read_cells(tmp_path)} == {c.name: c for c in (*grid(), odd)}


def test_a_folder_without_cells_has_none(tmp_path):
    assert read_cells(tmp_path) == ()


def test_all_damaged_cells_are_named_at_once(tmp_path):
    good = write_cell(tmp_path, cell("base", 0, 0.5))
    truncated = good.with_name("rag-k1.json")
    truncated.write_bytes(good.read_bytes()[:-40])
    extra = json.loads(good.read_text()) | {"method": "oppu", "surprise": 1}
    good.with_name("oppu-k0.json").write_text(json.dumps(extra))
    good.with_name("random-k1.json").write_bytes(good.read_bytes())
    twice = json.loads(good.read_text()) | {"method": "twice"}
    twice["predictions"].append(twice["predictions"][0])
    good.with_name("twice-k0.json").write_text(json.dumps(twice))
    with pytest.raises(DataError) as caught:
        read_cells(tmp_path)
    problems = caught.value.problems
    assert [problem.split(":")[0] for problem in problems] == [
        "oppu-k0.json", "rag-k1.json", "random-k1.json", "twice-k0.json",
    ]  # fmt: skip
    assert "surprise" in problems[0]
    assert "holds the cell base-k0" in problems[2]
    assert "answers a query twice" in problems[3]
    assert "delete the file" in str(caught.value)


def test_a_method_whose_name_is_no_file_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be a method's name"):
        write_cell(tmp_path, replace(cell("base", 0, 0.5), method="../base"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_gives_one_clear_error(tmp_path):
    (tmp_path / "out").write_text("a file stands here")
    with pytest.raises(StoreError) as caught:
        write_results(tmp_path / "out", TASK, CONFIG, grid())
    assert str(tmp_path / "out") in str(caught.value)


def test_a_personal_method_belongs_beside_the_same_prompt_without_module():
    cells = [*grid(), cell("oppu+rag", 4, 0.5), cell("oppu+random", 1, 0.5)]
    names = {c.name: other.name if (other := counterpart(c, cells)) else None for c in cells}
    assert names == {
        "base-k0": None, "rag-k1": None, "majority-k0": None, "oppu-k0": "base-k0", "oppu+rag-k1": "rag-k1",
        "oppu+rag-k4": None, "oppu+random-k1": None,
    }  # fmt: skip


def test_comparisons_are_counterparts_and_bests_and_none_stands_twice():
    found = [(c.a.name, c.b.name, c.is_best_against_best) for c in compare(TASK, grid())]
    assert found == [
        ("oppu-k0", "base-k0", False), ("oppu+rag-k1", "rag-k1", True), ("oppu+rag-k1", "majority-k0", True),
    ]  # fmt: skip


def test_a_users_gain_is_positive_where_the_error_falls():
    a = Cell("oppu", 0, (Prediction("u", "q", "5", "4"),), 0.0)
    b = Cell("base", 0, (Prediction("u", "q", "5", "2"),), 0.0)
    assert gain_by_user(RATING, a, b) == {"u": 2.0}


def test_the_report_is_one_well_formed_page_that_fetches_nothing(tmp_path):
    cells = grid()
    write_results(tmp_path, TASK, CONFIG, cells)
    html = write_report(tmp_path, TASK, CONFIG, cells, sizes()).read_text(encoding="utf-8")
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids)) > 20
    inside = {target[1:] for target in page.targets if target.startswith("#")}
    assert inside <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(page.ids)
    files = {target for target in page.targets if not target.startswith("#")}
    assert files >= {"results.json", "predictions/base-k0.json", "predictions/oppu%2Brag-k1.json"}
    assert all((tmp_path / file.replace("%2B", "+")).is_file() for file in files)


def test_the_report_names_task_base_methods_numbers_and_command():
    page = Page(render(TASK, CONFIG, grid(), sizes()))
    text = " ".join(page.text)
    for expected in (TASK.title, "tiny <base>", CONFIG["command"], "train.rank", "versions.torch", "2.13.0", "seed"):
        assert expected in text
    for each in grid():
        assert each.method in page.text
        metrics = score(TASK, [p.gold for p in each.predictions], [p.output for p in each.predictions])
        assert all(number(value) in page.text for value in metrics.values())
    assert page.plots == 3 + 2 + 2  # metrics, gains, curves
    assert "u3 (13)" in text


def test_the_best_number_is_bold_and_the_second_underlined():
    html = render(TASK, CONFIG, grid(), sizes())
    accuracy = sorted(
        (sum(p.gold == p.output for p in c.predictions) / len(c.predictions) for c in grid()), reverse=True
    )
    assert f'<span class="first">{number(accuracy[0])}</span>' in html
    assert f'<span class="second">{number(accuracy[1])}</span>' in html


def test_the_same_cells_give_the_same_bytes():
    assert render(TASK, CONFIG, grid(), sizes()) == render(TASK, CONFIG, grid(), sizes())


def test_users_with_markup_and_formulas_in_their_names_are_shown_as_they_are():
    strange = r"<b>$\frac{ & 雪"
    cells = [
        replace(c, predictions=tuple(replace(p, user_id=p.user_id.replace("u1", strange)) for p in c.predictions))
        for c in grid()
    ]
    page = Page(render(TASK, CONFIG, cells, {}))
    assert page.text.count(strange) == 2


@pytest.mark.parametrize("users", [1, 2, 31, 200])
def test_the_report_stands_for_few_and_many_users(users):
    page = Page(render(RATING, {}, grid(users, RATING), sizes(users)))
    named = [text for text in page.text if re.fullmatch(r"u\d+ \(\d+\)", text)]
    assert len(named) == (2 * users if users <= 30 else 0)


def test_training_that_diverged_is_still_drawn():
    lost = float("nan")
    curves = {"u0": (2.0, lost, lost), "u1": (2.0, float("inf"), lost), "u2": (), "u3": (1.5, 1.0)}
    cells = [cell("base", 0, 0.5), replace(cell("oppu", 0, 0.5), curves=curves)]
    assert Page(render(TASK, {}, cells, {})).plots == 3 + 1 + 1


def test_a_run_without_personal_methods_has_no_comparisons_and_no_cells_no_plots():
    plain = "".join(Page(render(TASK, {}, grid()[:2], {})).text)
    assert "Comparisons" not in plain
    assert "Gain per user" not in plain
    assert Page(render(TASK, {}, [], {})).plots == 0


def test_the_terminals_table_has_every_method_with_its_interval():
    console = Console(width=160, file=io.StringIO())
    console.print(summary_table(TASK, grid()))
    lines = {line.split()[0]: line for line in console.file.getvalue().splitlines() if line.count("±") > 1}
    assert next(iter(lines)) == "majority"
    assert lines["oppu+rag"].count("±") == 3
    assert lines["oppu+rag"].split()[-3:] == ["6", "24", "12.5"]


def test_numbers_read_as_in_a_paper():
    assert [number(v) for v in (0.8104, 1.2, -0.01, -0.0001, 0, float("nan"))] == [
        ".810", "1.200", "−.010", ".000", ".000", "–",
    ]  # fmt: skip
    assert [signed(v) for v in (0.045, -0.012, 0.0001, 0)] == ["+.045", "−.012", ".000", ".000"]
    assert [signed(v) for v in (3 / 48, -3 / 48, 20 / 48 - 17 / 48, 17 / 48 - 20 / 48, 0.1 + 0.2 - 0.3005)] == [
        "+.063", "−.063", "+.063", "−.063", "−.001",
    ]  # fmt: skip
    assert number(math.inf) == "inf"
    assert best_two({"a": 20 / 48 - 17 / 48, "b": 3 / 48, "c": 0.0}, "accuracy") == {"a": 1, "b": 1, "c": 2}
    assert [duration(s) for s in (0.04, 9.94, 9.96, 59.7, 252, 3900)] == [
        "0.0 s", "9.9 s", "10 s", "1 min 00 s", "4 min 12 s", "1 h 05 min",
    ]  # fmt: skip


# figures


def drawn(draw):
    """Figure and axes of a panel as the page draws it."""
    with rc_context(STYLE):
        figure = Figure(figsize=(400 / INCH, 270 / INCH), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        figure.draw_without_rendering()
    return figure, axes


@pytest.mark.parametrize(
    "labels",
    [
        ("retrieval", "module", "module and retrieval", "base"),
        ("a module of one's own", "a module of everybody's", "both of them together", "base"),
        ("base", "rag", "oppu", "both"),
        ("news_categorize", "scholarly_title", "movie_tagging", "both", "none", "base"),
    ],
)
def test_long_names_in_the_legend_leave_the_axes_their_width(labels):
    series = [Series(label, (0.0, 0.3), (place, place + 1.0)) for place, label in enumerate(labels)]
    figure, axes = drawn(lines_of(series, "share of items", "NLL"))
    legend = axes.get_legend()
    assert axes.get_position().width > 0.8
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert [text.get_text() for text in legend.get_texts()] == list(labels)


def test_ticks_of_close_similarities_do_not_touch_and_a_patch_stands_apart_from_its_name():
    pairs = {name: np.linspace(-0.0163, 0.0041, 28) for name in ("news_categorize", "scholarly_title")}
    _, axes = drawn(_distribution(pairs))
    places = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(places) >= 3
    assert all(right.x0 - left.x1 > 4 for left, right in pairwise(places))
    legend = axes.get_legend()
    for patch, text in zip(legend.get_patches(), legend.get_texts(), strict=True):
        assert text.get_window_extent().x0 - patch.get_window_extent().x1 > 3


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_steps_of_a_short_training_are_whole_numbers(steps):
    svg = plot_curves("c", {user: [2.0 / (step + 1) for step in range(steps)] for user in "ab"})
    axis = re.search(r'<g id="c-matplotlib.axis_1">(.*?)<g id="c-matplotlib.axis_2">', svg, re.DOTALL)[1]
    ticks = [text for text in re.findall(r">([^<>]+)</text>", axis) if text != "step"]
    assert ticks
    assert set(ticks) <= {str(step) for step in range(1, steps + 1)}


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.0625, 3, "0.063"), (-0.0625, 3, "−0.063"), (2.5, 0, "3"), (-0.0004, 3, "0.000"), (12345.678, 1, "12,345.7")],
)
def test_values_are_rounded_as_everywhere(value: float, digits: int, text: str) -> None:
    assert shown(value, Column("gain", "gain", digits)) == text
