"""Table 1 over tasks and seeds: recomputed from the predictions files, and what is flagged, left out and refused."""

import html
import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from made_runs import ALL_COLUMNS, NEWS, RATING, SOME, TITLES, answers, made_run, rows
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import norm, t
from shell import contents, done
from sklearn.metrics import f1_score
from test_report import Page
from test_studies import MADE, Settings

from oppu.evaluate.columns import groups
from oppu.evaluate.comparisons import is_personal
from oppu.evaluate.paper import table_1
from oppu.evaluate.reports.joint import count_wins, read_folders, write_joint_report
from oppu.evaluate.reports.latex import tex
from oppu.evaluate.reports.summary import number
from oppu.evaluate.reports.table import make_table
from oppu.evaluate.reports.table_files import TABLE_FIELDS, short_name
from oppu.evaluate.study import run_study
from oppu.tasks import BUILT_IN, Task


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
        shown = {name: float(f"{float(r['mean']) + 1e-10:.3f}") for name, r in row.items()}
        order = sorted(set(shown.values()), reverse=metric not in ("mae", "rmse"))
        expected = {name: str(order.index(value) + 1) if value in order[:2] else "" for name, value in shown.items()}
        assert {name: r["rank"] for name, r in row.items()} == expected


def test_an_asterisk_means_that_users_resampled_by_themselves_hold_the_gain(joint: Path) -> None:
    """Each user's scores averaged over the seeds first, then the same users drawn, and widened as few users need it."""
    compared = [row for row in rows(joint / "comparisons.csv") if row["of"] == "the same prompt"]
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
        drawn = gains.mean() + (weights @ gains / 8 - gains.mean()) * (8 / 7) ** 0.5 * t.ppf(0.975, 7) / norm.ppf(0.975)
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
    assert len(compared) == 2 * (6 + 2 + 2) + 3
    for row in compared:
        sides = (row["method"], row["k"]), (row["counterpart"], row["counterpart_k"])
        a, b = (float(means[row["task"], row["metric"], *side]) for side in sides)
        assert float(row["difference"]) == pytest.approx(a - b)
        is_a_mean = row["metric"] in ("accuracy", "mae", "rouge1", "rougeL")
        assert bool(row["users_needed"]) == bool(row["difference_to_find"]) == is_a_mean
        assert float(row["smallest_detectable"]) > 0


def test_the_best_columns_are_compared_in_the_first_metric(joint: Path) -> None:
    compared = rows(joint / "comparisons.csv")
    listed = rows(joint / "table1.csv")
    best = [row for row in compared if row["of"] == "the best"]
    assert [(row["task"], row["metric"]) for row in best] == [
        ("news_categorize", "accuracy"),
        ("product_rating", "mae"),
        ("scholarly_title", "rouge1"),
    ]
    for row in best:
        sign = -1 if row["metric"] == "mae" else 1
        own = [r for r in listed if (r["task"], r["metric"]) == (row["task"], row["metric"]) and r["mean"]]
        for personal, side in ((True, ("method", "k")), (False, ("counterpart", "counterpart_k"))):
            found = max((r for r in own if is_personal(r["method"]) is personal), key=lambda r: sign * float(r["mean"]))
            assert (row[side[0]], row[side[1]]) == (found["method"], found["k"])
        same = [r for r in compared if r["of"] == "the same prompt" and r["task"] == row["task"]]
        assert compared.index(row) > max(map(compared.index, same))
    text = (joint / "report.html").read_text(encoding="utf-8")
    better = [row["task"] for row in best if row["verdict"] == "better"]
    assert better
    assert (
        "The best personal column is significantly better than the best one without modules in "
        f"{len(better)} of 3 tasks ({', '.join(better)})"
    ) in " ".join("".join(Page(text).text).split())


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


# answers without a model


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint report of runs with baselines, one of them a task of one's own, and of one run without."""
    place = tmp_path_factory.mktemp("beside")
    own = TITLES.model_copy(update={"name": "our_titles"})
    runs = [made_run(place / f"news-{seed}", NEWS, seed, without_model={"majority": 0.2}) for seed in (0, 1)]
    runs.append(made_run(place / "rating", RATING, without_model={"constant": 0.5, "user-mean": 0.9, "majority": 0.5}))
    runs.append(made_run(place / "own", own, without_model={"copy": 1.0}))
    runs.append(made_run(place / "titles", TITLES))
    write_joint_report(runs, place / "joint")
    return place / "joint"


def test_the_best_answer_without_a_model_stands_beside_the_columns(beside: Path) -> None:
    listed = rows(beside / "table1.csv")
    found = {(row["task"], row["metric"]): (row["without_model"], row["without_model_mean"]) for row in listed}
    assert {key: name for key, (name, _) in found.items()} == {
        ("news_categorize", "accuracy"): "majority", ("news_categorize", "f1_macro"): "majority",
        ("product_rating", "mae"): "user-mean", ("product_rating", "rmse"): "user-mean",
        ("scholarly_title", "rouge1"): "", ("scholarly_title", "rougeL"): "",
        ("our_titles", "rouge1"): "copy", ("our_titles", "rougeL"): "copy",
    }  # fmt: skip
    outputs = outputs_of(beside.parent / "rating" / "predictions" / "user-mean-k0.json")
    assert float(found["product_rating", "mae"][1]) == plainly(RATING, "mae", golds_of(RATING), outputs)
    shown = [cell for place, cell in enumerate(cells_of(beside, 0)) if place % 14 == 0]
    for (name, mean), cell in zip(found.values(), shown, strict=True):
        assert re.sub(r"<.*?>", "", cell) == (f"{number(float(mean))}{name}" if name else "")
    assert 'href="../rating/predictions/user-mean-k0.json"' in shown[2]
    assert "No model: the best answer without one" in "".join(Page((beside / "report.html").read_text()).text)
    assert len(cells_of(beside, 1)) == 14 * 13  # the paper has none


def test_the_findings_count_the_papers_tasks_apart_and_say_what_beats_no_model(beside: Path) -> None:
    plain = " ".join("".join(Page((beside / "report.html").read_text(encoding="utf-8")).text).split())
    assert "is a personal one in 3 of 3 tasks (news_categorize, product_rating, scholarly_title) and in 1 of 1" in plain
    assert "and in 1 of 1 other task (our_titles), by the first metric of each" in plain
    assert (
        "The best column beats the best answer without a model in 1 of 2 tasks (news_categorize) and in 0 of 1 other"
    ) in plain
    assert re.search(r"; not in product_rating \(\S+ against \S+, each user's mean rating\), our_titles \(", plain)
    assert "Of 12 comparisons of a personal column with its counterpart, over tasks and metrics" in plain
    assert "Of 4 comparisons of a personal column with its counterpart in tasks that are not among the" in plain


def test_tasks_of_ones_own_alone_are_said_to_be_that(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", TITLES.model_copy(update={"name": "own"}))
    first, second = write_joint_report([run], tmp_path / "out").found
    assert "in 1 of 1 task not among the paper's seven (own), by the first metric" in first
    assert "without a model" not in first
    assert "in tasks that are not among the paper's seven (own)" in second


def test_reading_alike_is_not_beating(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", columns=[("base", 0), ("oppu", 0)], without_model={"majority": 0.0})
    best = json.loads((run / "predictions" / "oppu-k0.json").read_text(encoding="utf-8"))
    (run / "predictions" / "majority-k0.json").write_text(json.dumps(best), encoding="utf-8")
    first, _ = write_joint_report([run], tmp_path / "out").found
    assert "without a model in 0 of 1 task; not in news_categorize" in first


@pytest.mark.parametrize("content", [None, "{", '{"golds": []}'], ids=["missing", "damaged", "of other questions"])
def test_a_run_whose_baseline_cannot_be_read_has_none(tmp_path: Path, content: str | None) -> None:
    run = made_run(tmp_path / "run", without_model={"majority": 0.3})
    file = run / "predictions" / "majority-k0.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content, encoding="utf-8")
    first, _ = write_joint_report([run], tmp_path / "out").found
    assert "without a model" not in first
    assert "No model" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No model" not in (tmp_path / "out" / "table1.tex").read_text(encoding="utf-8")


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


def test_the_page_has_the_studies_notes_and_leads_to_the_files_of_their_numbers(joint: Path) -> None:
    text = (joint / "report.html").read_text(encoding="utf-8")
    assert '<p class="note">Sizes are &lt;whole&gt; numbers.</p>' in text
    details = re.search(r"<details>(.*?)</details>", text, re.DOTALL)
    assert details is not None
    assert "size 2, rounds 3" in details[1]
    links = Page(details[1]).targets
    assert len(links) == 2
    assert all(link.startswith("../study/measurements/") and (joint / link).is_file() for link in links)
    assert {"../study/made.tex", "studies.tex"} <= set(Page(text).targets)


def test_an_older_study_without_notes_files_and_latex_is_read(tmp_path: Path) -> None:
    study = tmp_path / "study"
    run_study(MADE, Settings(tmp_path), study)
    record = json.loads((study / "made.json").read_text(encoding="utf-8"))
    older = {key: value for key, value in record.items() if key not in ("notes", "sources", "columns")}
    (study / "made.json").write_text(json.dumps(older), encoding="utf-8")
    (study / "made.tex").unlink()
    write_joint_report([study], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<details>" not in text
    assert "made.tex" not in text
    assert r"2 & 4 &  \\" in (tmp_path / "out" / "studies.tex").read_text(encoding="utf-8").splitlines()


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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "studies.tex"}
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


def test_the_latex_table_has_the_best_answers_without_a_model(beside: Path) -> None:
    text = (beside / "table1.tex").read_text(encoding="utf-8")
    environments(text)
    lines = text.splitlines()
    assert r"\begin{tabular}{llrrrrrrrrrrrrrr}" in lines
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    rules = [tuple(map(int, pair)) for pair in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body[1])]
    assert (rules[0], rules[-1]) == ((4, 5), (15, 16))
    table = [cells(line) for line in body[2:] if line != r"\midrule"]
    assert {len(row) for row in table} == {16}
    listed = rows(beside / "table1.csv")[::13]
    letters = {"majority": "m", "user-mean": "u", "copy": "q"}
    assert [row[2] for row in table if row[1]][1:] == [
        f"{number(float(row['without_model_mean']))}$^{{{letters[row['without_model']]}}}$"
        if row["without_model"]
        else ""
        for row in listed
    ]
    assert "not ranked (m: each user's most frequent label; u: each user's mean rating; q: the question as it" in text


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


def test_the_studies_tables_are_there_as_latex(joint: Path) -> None:
    text = (joint / "studies.tex").read_text(encoding="utf-8")
    environments(text)
    assert text == (joint.parent / "study" / "made.tex").read_text(encoding="utf-8")
    lines = text.splitlines()
    body = lines[lines.index(r"\endfoot") + 1 : lines.index(r"\end{longtable}")]
    assert [cells(line) for line in body] == [["1", "1.0", "--"], ["2", "4.0", ""]]


def test_special_characters_are_escaped() -> None:
    assert tex(r"50% of {a_b} & #1 \ ~ ^ $x$ <y>") == (
        r"50\% of \{a\_b\} \& \#1 \textbackslash{} \textasciitilde{} \textasciicircum{} \$x\$ $<$y$>$"
    )
    assert tex("−.012 – ±") == r"$-$.012 -- $\pm$"
    assert tex("R² ↑\N{NO-BREAK SPACE}“more” …").isascii()


def test_the_command_says_what_was_found_and_what_to_mind(folders: list[Path], tmp_path: Path) -> None:
    odd = made_run(tmp_path / "odd", seed=9, users=7)
    said = " ".join(done("report", *folders, odd, "--out", tmp_path / "out").split())
    assert "The best column is a personal one in" in said
    assert "Of 20 comparisons of a personal column with its counterpart" in said
    assert "Mind: " in said
    assert "other users or questions than seed 0: 7 users with 35 questions" in said
    assert (tmp_path / "out" / "report.html").is_file()
