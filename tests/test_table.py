"""Table 1 over tasks and seeds: recomputed from the predictions files, and what is flagged, left out and refused."""

import csv
import html
import json
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from shell import contents, done, refused, write_task
from sklearn.metrics import f1_score
from test_report import Page
from test_studies import MADE, Settings

from oppu.errors import ConfigError, DataError
from oppu.evaluate.columns import TABLE_1, groups, table_metrics
from oppu.evaluate.comparisons import is_personal
from oppu.evaluate.paper import Reported, table_1
from oppu.evaluate.reports.joint import count_wins, read_folders, write_joint_report
from oppu.evaluate.reports.summary import best_two, number
from oppu.evaluate.reports.table import make_table
from oppu.evaluate.reports.table_files import TABLE_FIELDS, short_name, tex
from oppu.evaluate.results import Cell, Prediction, write_cell, write_results
from oppu.evaluate.study import run_study
from oppu.tasks import BUILT_IN, Task

NEWS, RATING, TITLES = (BUILT_IN[name] for name in ("news_categorize", "product_rating", "scholarly_title"))
ALL_COLUMNS = tuple((column.method, column.k) for column in TABLE_1)
SOME = (("base", 0), ("rag", 1), ("rag", 2), ("oppu", 0), ("oppu+rag", 1))
WORDS = ("deep", "open", "learning", "of", "models", "for", "a", "new", "task", "with", "data")


def answers(task: Task, method: str, k: int, seed: int, users: int, queries: int) -> list[Prediction]:
    """Made-up answers: better with a module, at other places for each method and seed."""
    golds, drawn = random.Random(f"{task.name} golds"), random.Random(f"{task.name} {method} {k} {seed}")
    share = 0.45 + 0.25 * is_personal(method) + 0.05 * k * (not is_personal(method))
    found = []
    for user in range(users):
        for query in range(queries):
            gold = golds.choice(task.labels) if task.labels else " ".join(golds.choices(WORDS, k=6))
            other = drawn.choice(task.labels) if task.labels else " ".join(drawn.choices(WORDS, k=6))
            found.append(Prediction(f"u{user}", f"u{user}q{query}", gold, gold if drawn.random() < share else other))
    return found


def made_run(
    folder: Path,
    task: Task = NEWS,
    seed: int = 0,
    columns: Sequence[tuple[str, int]] = SOME,
    users: int = 8,
    queries: int = 5,
    **config: Any,
) -> Path:
    """A finished experiment's folder with made-up answers."""
    cells = [Cell(method, k, tuple(answers(task, method, k, seed, users, queries)), 1.5 + k) for method, k in columns]
    made = {"command": f"oppu experiment --seed {seed}", "base": "tiny", "seed": seed, "versions": {"oppu": "1"}}
    write_results(folder, task, made | config, cells)
    for cell in cells:
        write_cell(folder, cell)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tasks of different kinds: all columns and three seeds, some columns and one seed, and two seeds."""
    place = tmp_path_factory.mktemp("runs")
    plan = [(NEWS, seed, ALL_COLUMNS) for seed in (0, 1, 2)]
    plan += [(RATING, 0, SOME), (TITLES, 0, SOME), (TITLES, 5, SOME)]
    return [made_run(place / task.name / f"seed-{seed}", task, seed, columns) for task, seed, columns in plan]


@pytest.fixture(scope="module")
def joint(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a joint report with a study, not to be changed."""
    place = tmp_path_factory.mktemp("joint")
    run_study(MADE, Settings(place), place / "study", command="oppu study made")
    write_joint_report([*folders, place / "study"], place / "report", command="oppu report ...")
    return place / "report"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def golds_of(task: Task) -> dict[str, str]:
    return {p.query_id: p.gold for p in answers(task, "base", 0, 0, 8, 5)}


def outputs_of(file: Path) -> dict[str, str]:
    return {each["id"]: each["output"] for each in json.loads(file.read_text(encoding="utf-8"))["golds"]}


def plainly(task: Task, metric: str, golds: Mapping[str, str], outputs: Mapping[str, str]) -> float:
    """The metric by other people's code, or by hand."""
    pairs = [(golds[name], outputs[name]) for name in golds]
    if metric == "accuracy":
        return sum(gold == output for gold, output in pairs) / len(pairs)
    if metric == "f1_macro":
        found = f1_score(*zip(*pairs, strict=True), labels=list(task.labels), average="macro", zero_division=0)
        return float(found)
    if metric in ("mae", "rmse"):
        errors = [abs(float(gold) - float(output)) for gold, output in pairs]
        return statistics.fmean(errors) if metric == "mae" else statistics.fmean(e**2 for e in errors) ** 0.5
    scorer = RougeScorer([metric])
    return statistics.fmean(scorer.score(gold, output)[metric].fmeasure for gold, output in pairs)


# the numbers


def test_every_number_is_that_of_the_predictions_files_beside_it(joint: Path) -> None:
    listed = rows(joint / "table1.csv")
    assert len(listed) == 3 * 2 * 13
    checked = 0
    for row in listed:
        if not row["mean"]:
            assert not any(row[key] for key in TABLE_FIELDS[TABLE_FIELDS.index("mean") :])
            continue
        task = BUILT_IN[row["task"]]
        files = [joint / path for path in row["predictions"].split(";")]
        assert [file.stem for file in files] == [f"{row['method']}-k{row['k']}"] * len(files)
        assert [file.parents[1].name for file in files] == [f"seed-{seed}" for seed in row["seeds"].split()]
        scores = [plainly(task, row["metric"], golds_of(task), outputs_of(file)) for file in files]
        assert float(row["mean"]) == pytest.approx(statistics.fmean(scores))
        assert row["sd"] == "" if len(scores) == 1 else float(row["sd"]) == pytest.approx(statistics.stdev(scores))
        assert (row["users"], row["queries"]) == ("8", "40")
        assert float(row["seconds"]) == len(scores) * (1.5 + int(row["k"]))
        checked += len(scores)
    assert checked == 2 * (13 * 3 + 5 + 5 * 2)


def test_best_and_second_best_of_every_row_are_marked_and_what_reads_alike_ties(joint: Path) -> None:
    listed = rows(joint / "table1.csv")
    for task, metric in {(row["task"], row["metric"]) for row in listed}:
        row = {r["method"] + r["k"]: r for r in listed if (r["task"], r["metric"]) == (task, metric) and r["mean"]}
        shown = {name: round(float(r["mean"]), 3) for name, r in row.items()}
        order = sorted(set(shown.values()), reverse=metric not in ("mae", "rmse"))
        expected = {name: str(order.index(value) + 1) if value in order[:2] else "" for name, value in shown.items()}
        assert {name: r["rank"] for name, r in row.items()} == expected


def test_an_asterisk_means_that_users_resampled_by_themselves_hold_the_gain(joint: Path) -> None:
    """Each user's scores averaged over the seeds first, then the same users drawn with replacement."""
    compared = rows(joint / "comparisons.csv")
    numbers = {(r["task"], r["metric"], r["method"], r["k"]): r for r in rows(joint / "table1.csv")}
    weights = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=2000)
    for row in compared:
        if row["metric"] not in ("accuracy", "mae", "rouge1", "rougeL"):
            continue
        task, seeds = BUILT_IN[row["task"]], row["seeds"].split()
        golds = golds_of(task)
        gains = np.zeros(8)
        files = [
            numbers[row["task"], row["metric"], row[side], row["k"]]["predictions"].split(";")
            for side in ("method", "counterpart")
        ]
        assert len(files[0]) == len(files[1]) == len(seeds)
        for pair in zip(*files, strict=True):
            outputs = [outputs_of(joint / file) for file in pair]
            for user in range(8):
                own = {name: gold for name, gold in golds.items() if name.startswith(f"u{user}q")}
                scores = [plainly(task, row["metric"], own, each) for each in outputs]
                gains[user] += (scores[0] - scores[1]) / len(seeds)
        drawn = weights @ gains / 8
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert float(row["difference"]) == pytest.approx(gains.mean(), abs=1e-12)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high), abs=1e-9)
        better = high < -1e-12 if row["metric"] == "mae" else low > 1e-12
        assert row["verdict"] == ("better" if better else "open" if low <= 1e-12 and high >= -1e-12 else "worse")
        number_of = numbers[row["task"], row["metric"], row["method"], row["k"]]
        assert number_of["significant"] == ("*" if better else "")
    assert {row["verdict"] for row in compared} >= {"better", "open"}


def test_the_difference_is_that_of_the_tables_own_numbers_in_every_metric(joint: Path) -> None:
    means = {(r["task"], r["metric"], r["method"], r["k"]): r["mean"] for r in rows(joint / "table1.csv")}
    compared = rows(joint / "comparisons.csv")
    assert len(compared) == 2 * (6 + 2 + 2)
    for row in compared:
        a, b = (float(means[row["task"], row["metric"], row[side], row["k"]]) for side in ("method", "counterpart"))
        assert float(row["difference"]) == pytest.approx(a - b)
        is_a_mean = row["metric"] in ("accuracy", "mae", "rouge1", "rougeL")
        assert bool(row["users_needed"]) == bool(row["difference_to_find"]) == is_a_mean
        assert float(row["smallest_detectable"]) > 0


def test_users_needed_fall_with_more_questions_of_each(joint: Path) -> None:
    for row in rows(joint / "comparisons.csv"):
        if row["users_needed"]:
            assert row["queries_per_user"] == "5"
            assert 2 <= int(row["users_needed_with_50_queries"]) <= int(row["users_needed"])


def test_wins_are_counted_over_tasks_and_metrics(folders: list[Path]) -> None:
    gains = make_table(read_folders(folders)[0]).gains
    wins = {(win.column.method, win.column.k): win for win in count_wins(gains)}
    assert set(wins) == {column for column in ALL_COLUMNS if is_personal(column[0])}
    assert wins["oppu", 0].comparisons == wins["oppu+rag", 1].comparisons == 6
    assert wins["oppu+pag", 0].comparisons == 2
    own = [gain for gain in gains if gain.column.name == "oppu-k0"]
    lower_is_better = {"mae", "rmse"}
    better = sum((gain.found.difference < 0) == (gain.metric in lower_is_better) for gain in own)
    assert wins["oppu", 0].better == better
    assert wins["oppu", 0].significantly_better == sum(gain.verdict == "better" for gain in own)


# the page


def test_the_page_is_well_formed_fetches_nothing_and_its_links_lead_somewhere(joint: Path) -> None:
    text = (joint / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"@import|url\((?!#)|<script", text)
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets if target.startswith("#")} <= set(page.ids)
    files = {html.unescape(target).replace("%2B", "+") for target in page.targets if not target.startswith("#")}
    assert {"table1.csv", "table1.tex", "comparisons.csv", "comparisons.tex"} <= files
    reports = {file for file in files if file.endswith("report.html") and "seed-" in file}
    assert all((joint / file).is_file() for file in files - reports)
    assert sum("/predictions/" in file for file in files) == 13 * 3 + 5 + 5 * 2


def test_the_page_has_every_number_dash_and_mark_of_the_csv(joint: Path) -> None:
    first = cells_of(joint, 0)
    listed = rows(joint / "table1.csv")
    assert len(first) == len(listed)
    for cell, row in zip(first, listed, strict=True):
        assert re.sub(r"<[^>]*>", "", cell.split('<span class="interval">')[0]) == (
            number(float(row["mean"])) + row["significant"] if row["mean"] else "–"
        )
        assert ('class="first"' in cell, 'class="second"' in cell) == (row["rank"] == "1", row["rank"] == "2")
        spread = re.search(r'<span class="interval">± (.*?)</span>', cell)
        assert (spread[1] if spread else "") == (number(float(row["sd"])) if row["sd"] else "")
        assert ("<a href" in cell) == bool(row["mean"])


def cells_of(joint: Path, place: int) -> list[str]:
    """The cells with numbers of the first (the runs') or second (the paper's) Table 1 of the page, row by row."""
    text = (joint / "report.html").read_text(encoding="utf-8")
    table = re.findall(r'<table class="wide results table1">(.*?)</table>', text, re.DOTALL)[place]
    return re.findall(r'<td class="n(?: starts)?">(.*?)</td>', table)


def test_the_papers_figures_stand_apart_and_say_that_they_are_not_comparable(joint: Path) -> None:
    text = (joint / "report.html").read_text(encoding="utf-8")
    assert "Table 1 of the paper: other model, other data, not comparable" in text
    shown = [re.sub(r"<[^>]*>", "", cell) for cell in cells_of(joint, 1)]
    assert shown == [
        ("–" if found.value is None else number(found.value)) + "*" * found.is_significant
        for found in table_1().values()
    ]


def test_the_page_has_the_studies_with_figure_table_and_both_findings(joint: Path) -> None:
    text = (joint / "report.html").read_text(encoding="utf-8")
    plain = " ".join("".join(Page(text).text).split())
    assert "Squares <of sizes>" in plain
    assert "The paper (Table 9). They are 1 & 4." in plain
    assert "This run. 2 squares & no more." in plain
    assert "oppu study made" in plain
    figure = re.search(r'<div class="box whole">\s*(<svg.*?</svg>)', text, re.DOTALL)
    assert figure is not None
    assert "&lt;squares&gt;" in figure[1]
    assert "<style>\nsvg {" not in figure[1]
    table = text[figure.end() :]
    assert '<th class="n">Square</th>' in table
    assert '<td class="n">4.0</td>' in table


def test_commands_versions_seeds_and_times_are_on_the_page(joint: Path) -> None:
    plain = " ".join("".join(Page((joint / "report.html").read_text(encoding="utf-8")).text).split())
    assert all(f"oppu experiment --seed {seed}" in plain for seed in (0, 1, 2, 5))
    assert "versions.oppu1" in plain
    assert "3 tasks, seeds 0, 1, 2, 5, base tiny, 1 study." in plain
    assert "LaMP-2N1840" in plain  # task, seed, users, queries


def test_the_same_folders_give_the_same_bytes(joint: Path, folders: list[Path], tmp_path: Path) -> None:
    study = joint.parent / "study"
    again = joint.parent / "again"
    write_joint_report([study, *reversed(folders)], again, command="oppu report ...")
    assert contents(again) == contents(joint)


def test_one_seed_has_no_spread_and_its_numbers_lead_straight_to_the_predictions(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    write_joint_report([run], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "±" not in text
    assert "Every seed" not in text
    assert '<a href="../run/predictions/oppu%2Brag-k1.json">' in text


def test_a_report_of_studies_alone_has_no_table(tmp_path: Path) -> None:
    run_study(MADE, Settings(tmp_path), tmp_path / "study")
    joint = write_joint_report([tmp_path / "study"], tmp_path / "out")
    assert joint.found == ()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html"}
    assert "Table 1" not in "".join(Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text)


# LaTeX


def environments(text: str) -> None:
    """Every environment that begins ends, in order."""
    opened: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{(.*?)\}", text):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []


def cells(line: str) -> list[str]:
    """A row's cells; it must end as a row does and hold nothing that LaTeX would stumble over."""
    assert line.endswith(r" \\")
    bare = re.sub(r"\\[&%$#_{}]", "x", line.removesuffix(r" \\"))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[%#~]|[^\x20-\x7e]", bare)
    assert not re.search(r"[\^_]", re.sub(r"\$[^$]*\$", "", bare))
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\"))]


def test_the_latex_table_is_booktabs_and_has_the_page_s_numbers(joint: Path) -> None:
    text = (joint / "table1.tex").read_text(encoding="utf-8")
    environments(text)
    lines = text.splitlines()
    assert r"\begin{tabular}{llrrrrrrrrrrrrr}" in lines
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", body[0])]
    assert spans == [span for _, span in groups()]
    assert sum(spans) == 13
    rules = [tuple(map(int, pair)) for pair in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body[1])]
    assert rules == [(3, 4), (5, 7), (8, 9), (10, 13), (14, 15)]
    assert len(cells(body[0])) == 2 + len(spans)
    table = [cells(line) for line in body[2:] if line != r"\midrule"]
    assert {len(row) for row in table} == {15}
    assert body.count(r"\midrule") == 3
    listed = rows(joint / "table1.csv")
    shown = [cell for row in table[1:] if row[1] for cell in row[2:]]
    spreads = [cell for row in table[1:] if not row[1] for cell in row[2:]]
    assert spreads == [
        rf"{{\tiny $\pm$ {number(float(row['sd']))}}}" if row["sd"] else ""
        for row in listed
        if row["task"] != "product_rating"  # one seed
    ]
    for cell, row in zip(shown, listed, strict=True):
        value = "--" if not row["mean"] else number(float(row["mean"]))
        value = {"1": rf"\textbf{{{value}}}", "2": rf"\underline{{{value}}}"}.get(row["rank"], value)
        value += "$^{*}$" if row["significant"] else ""
        assert cell == value


def test_the_latex_comparisons_have_a_row_for_each(joint: Path) -> None:
    text = (joint / "comparisons.tex").read_text(encoding="utf-8")
    environments(text)
    lines = text.splitlines()
    body = lines[lines.index(r"\endfoot") + 1 : lines.index(r"\end{longtable}")]
    table = [cells(line) for line in body if line != r"\midrule"]
    assert {len(row) for row in table} == {8}
    compared = rows(joint / "comparisons.csv")
    assert len(table) == len(compared)
    for row, found in zip(table, compared, strict=True):
        assert row[0] == short_name(BUILT_IN[found["task"]])
        assert row[7].split(" ")[0].replace(",", "") == (found["users_needed"] or "--")


def test_special_characters_are_escaped() -> None:
    assert tex(r"50% of {a_b} & #1 \ ~ ^ $x$ <y>") == (
        r"50\% of \{a\_b\} \& \#1 \textbackslash{} \textasciitilde{} \textasciicircum{} \$x\$ $<$y$>$"
    )
    assert tex("−.012 – ±") == r"$-$.012 -- $\pm$"


# what does not belong together


def test_two_runs_of_the_same_task_and_seed_are_refused_with_all_of_them(tmp_path: Path) -> None:
    twice = [made_run(tmp_path / name) for name in ("a", "b")]
    other = [made_run(tmp_path / name, RATING, 3) for name in ("c", "d")]
    with pytest.raises(DataError) as caught:
        write_joint_report([*twice, *other], tmp_path / "out")
    assert "two runs of the same task and seed" in str(caught.value)
    assert caught.value.problems == (
        f"task news_categorize, seed 0: {tmp_path / 'a'} and {tmp_path / 'b'}",
        f"task product_rating, seed 3: {tmp_path / 'c'} and {tmp_path / 'd'}",
    )
    assert not (tmp_path / "out").exists()


def test_the_same_folder_twice_is_one_run(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a")
    write_joint_report([run, Path(f"{tmp_path}/../{tmp_path.name}/a")], tmp_path / "out")
    assert {row["seeds"] for row in rows(tmp_path / "out" / "table1.csv")} == {"0", ""}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"users": 7}, "it has other users or questions than seed 0: 7 users with 35 questions, not 8 with 40"),
        ({"queries": 4}, "it has other users or questions than seed 0: 8 users with 32 questions, not 8 with 40"),
        ({"base": "large"}, "its base is large, not tiny as of seed 0"),
        ({"newest": 40}, "its settings differ from those of seed 0: newest 40, not 50"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_a_run_with_other_users_base_or_settings_is_flagged_and_left_out(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    usual: dict[str, Any] = {"newest": 50, "personal": {"seed": 0, "rank": 8}}
    good = [made_run(tmp_path / "0", **usual)]
    good.append(made_run(tmp_path / "1", seed=1, **usual | {"personal": {"seed": 1, "rank": 8}}))
    odd = made_run(tmp_path / "2", seed=2, **usual | change)
    found = write_joint_report([*good, odd], tmp_path / "out")
    assert found.warnings == (f"{odd} is left out: {reason}.",)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert reason in html.unescape(text)
    assert {row["seeds"] for row in rows(tmp_path / "out" / "table1.csv") if row["mean"]} == {"0 1"}


def test_a_task_that_was_another_then_is_left_out(tmp_path: Path) -> None:
    changed = NEWS.model_copy(update={"labels": (*NEWS.labels, "weather")})
    runs = [made_run(tmp_path / "0"), made_run(tmp_path / "1", changed, seed=1)]
    (warning,) = write_joint_report(runs, tmp_path / "out").warnings
    assert warning.endswith("is left out: its task is another: fields, labels or templates differ.")


def test_tasks_with_different_bases_other_versions_and_missing_seeds_are_flagged_and_kept(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path / "0"),
        made_run(tmp_path / "1", seed=1, columns=SOME[:3], versions={"oppu": "2"}),
        made_run(tmp_path / "2", RATING, base="large"),
    ]
    assert write_joint_report(runs, tmp_path / "out").warnings == (
        "The tasks have different bases: tiny for news_categorize; large for product_rating.",
        "The runs were made with different versions of oppu.",
        "news_categorize: fewer seeds than the other columns in oppu+rag-k1, oppu-k0.",
    )
    counted = {(r["task"], r["method"]): r["seeds"] for r in rows(tmp_path / "out" / "table1.csv")}
    assert (counted["news_categorize", "base"], counted["news_categorize", "oppu"]) == ("0 1", "0")
    assert counted["product_rating", "base"] == "0"


def test_methods_that_are_no_columns_of_table_1_are_named(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", columns=[*SOME, ("rag", 8), ("random", 2)])
    write_joint_report([run], tmp_path / "out")
    plain = "".join(Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text)
    assert "Also run for news_categorize, and no column here: rag-k8, random-k2." in plain


def test_a_personal_column_without_its_counterpart_is_compared_with_nothing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", columns=[("base", 0), ("oppu+rag", 4)])
    write_joint_report([run], tmp_path / "out")
    assert rows(tmp_path / "out" / "comparisons.csv") == []
    assert {r["significant"] for r in rows(tmp_path / "out" / "table1.csv")} == {""}


def test_one_user_says_nothing_about_others(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", users=1)
    write_joint_report([run], tmp_path / "out")
    for row in rows(tmp_path / "out" / "comparisons.csv"):
        assert (row["low"], row["p_value"], row["smallest_detectable"], row["users_needed"]) == ("", "", "", "")
        assert row["verdict"] == "open"


# folders that are nothing


def test_folders_that_are_neither_run_nor_study_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "run.json").write_text("{}")
    study = tmp_path / "study"
    run_study(MADE, Settings(tmp_path), study)
    (study / "made.svg").unlink()
    out = tmp_path / "out"
    good = made_run(tmp_path / "good")
    said = refused("report", tmp_path / "empty", good, begun, study, "--out", out)
    assert said.startswith("3 folders cannot be read:\n")
    assert f"{tmp_path / 'empty'}: is no finished experiment; name the --out of `oppu experiment`" in said
    assert f"{begun}: is an unfinished experiment; run its command again, which goes on" in said
    assert f"{study}: is an unfinished study: made.svg is not there" in said
    assert not out.exists()
    assert "is no finished experiment" in refused("report", tmp_path / "empty", "--out", out)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", "{", "is damaged; run the same experiment again"),
        ("cells/rag-k1.json", "{}", "rag-k1.json: damaged"),
        ("task.toml", "name = ", "not valid TOML"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    run = made_run(tmp_path / "run")
    (run / file).write_text(content)
    assert message in refused("report", run, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "made",
    [
        lambda svg: svg.replace("</svg>", "<script>alert(1)</script></svg>"),
        lambda svg: svg.replace("</svg>", '<image href="file:///etc/passwd"/></svg>'),
        lambda svg: svg.replace("</svg>", '<g onload="alert(1)"/></svg>'),
        lambda svg: "<svg></svg>",
    ],
    ids=["a script", "a file", "an event", "another figure"],
)
def test_a_figure_that_no_study_wrote_is_refused(tmp_path: Path, made: Any) -> None:
    study = tmp_path / "study"
    run_study(MADE, Settings(tmp_path), study)
    file = study / "made.svg"
    file.write_text(made(file.read_text(encoding="utf-8")), encoding="utf-8")
    assert "its figure is not one that a study wrote" in refused("report", study, "--out", tmp_path / "out")


def test_a_figure_may_hold_a_picture(tmp_path: Path) -> None:
    study = tmp_path / "study"
    run_study(MADE, Settings(tmp_path), study)
    file = study / "made.svg"
    picture = '<image href="data:image/png;base64,iVBORw0KGgo="/>'
    file.write_text(file.read_text(encoding="utf-8").replace("</svg>", f"{picture}</svg>"), encoding="utf-8")
    done("report", study, "--out", tmp_path / "out")
    assert picture in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_folder_whose_own_report_would_be_lost_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / "run.json").write_text("{}")
    before = contents(run)
    with pytest.raises(ConfigError, match="holds an experiment, whose report would be lost; use another --out"):
        write_joint_report([run], run)
    assert contents(run) == before


def test_methods_that_a_run_was_not_asked_for_when_it_was_last_made_are_left_out(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    results["rows"] = [row for row in results["rows"] if (row["method"], row["k"]) != ("rag", 2)]
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    write_joint_report([run], tmp_path / "out")
    listed = rows(tmp_path / "out" / "table1.csv")
    assert [row["mean"] for row in listed if (row["method"], row["k"]) == ("rag", "2")] == ["", ""]


def test_the_command_says_what_was_found_and_what_to_mind(folders: list[Path], tmp_path: Path) -> None:
    odd = made_run(tmp_path / "odd", seed=9, users=7)
    said = " ".join(done("report", *folders, odd, "--out", tmp_path / "out").split())
    assert "The best column is a personal one in" in said
    assert "Of 20 comparisons of a personal column with its counterpart" in said
    assert "Mind: " in said
    assert "other users or questions than seed 0: 7 users with 35 questions" in said
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_task_of_ones_own_comes_with_its_run_or_is_named(tmp_path: Path) -> None:
    own = NEWS.model_copy(update={"name": "mine", "lamp_id": "", "title": "Mine & <yours>"})
    run = made_run(tmp_path / "run", own)
    done("report", run, "--out", tmp_path / "out")
    assert "Mine &amp; &lt;yours&gt;" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (run / "task.toml").unlink()
    assert "name its file with --task" in refused("report", run, "--out", tmp_path / "b")
    file = write_task(tmp_path / "mine.toml", own)
    done("report", run, "--out", tmp_path / "c", "--task", file)
    assert (tmp_path / "c" / "table1.csv").read_bytes() == (tmp_path / "out" / "table1.csv").read_bytes()


# the paper's own numbers


def test_the_papers_table_has_thirteen_columns_of_fourteen_rows() -> None:
    found = table_1()
    rows_of_it = [(task.name, metric) for task in BUILT_IN.values() for metric in table_metrics(task)]
    assert list(found) == [(*row, *column) for row in rows_of_it for column in ALL_COLUMNS]
    missing = [key for key, each in found.items() if each.value is None]
    assert missing == [("news_categorize", "accuracy", "pag", 0), ("news_categorize", "accuracy", "pag+rag", 1)]
    assert found["citation", "accuracy", "oppu+pag+rag", 1] == Reported(0.797, "best", True)
    assert sum(each.is_significant for each in found.values()) == 69


def test_the_papers_marks_are_those_of_its_numbers_but_for_one() -> None:
    found = table_1()
    odd = []
    for task, metric in dict.fromkeys((task, metric) for task, metric, *_ in found):
        row = {key[2:]: each for key, each in found.items() if key[:2] == (task, metric) and each.value is not None}
        ranks = best_two({key: each.value for key, each in row.items()}, metric)
        marks = {key: {"best": 1, "second": 2}[each.mark] for key, each in row.items() if each.mark}
        if ranks != marks:
            odd.append((task, metric))
    assert odd == [("movie_tagging", "f1_macro")]
