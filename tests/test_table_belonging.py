"""Which runs one report may join: what is flagged, left out and refused."""

import html
import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import ALL_COLUMNS, NEWS, RATING, SOME, made_run, rows
from shell import contents, done, refused, write_task
from test_report import Page
from test_studies import MADE, Settings

from oppu.errors import ConfigError, DataError
from oppu.evaluate.reports.joint import write_joint_report
from oppu.evaluate.study import run_study

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
        ({"adapt": None}, "the base of seed 0 was adapted, that of seed 2 was not"),
        ({"profiles": "given"}, "its settings differ from those of seed 0: profiles given, not count"),
        ({"newest": 40}, "its settings differ from those of seed 0: newest 40, not 50"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_a_run_with_other_users_base_or_settings_is_flagged_and_left_out(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    usual: dict[str, Any] = {
        "newest": 50,
        "personal": {"seed": 0, "rank": 8},
        "adapt": {"epochs": 2},
        "profiles": "count",
    }
    good = [made_run(tmp_path / "0", **usual)]
    good.append(made_run(tmp_path / "1", seed=1, **usual | {"personal": {"seed": 1, "rank": 8}}))
    odd = made_run(tmp_path / "2", seed=2, **usual | change)
    found = write_joint_report([*good, odd], tmp_path / "out")
    assert found.warnings == (f"{odd} is left out: {reason}.",)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert reason in html.unescape(text)
    assert {row["seeds"] for row in rows(tmp_path / "out" / "table1.csv") if row["mean"]} == {"0 1"}


@pytest.mark.parametrize(
    ("columns", "adapt_k", "reason"),
    [
        ((("base", 0), ("oppu", 0)), None, ""),
        ((("base", 0), ("rag", 1)), None, ""),  # adapted with the one item that it shows
        ((("base", 0), ("rag", 2)), None, "adapt_k none, not 1"),
        ((("base", 0), ("rag", 1)), 2, "adapt_k 2, not 1"),
        ((("base", 0), ("pag", 0)), None, "adapt_k none, not 1"),
        ((("base", 0), ("rag", 8)), 2, ""),  # no column of Table 1
    ],
)
def test_the_items_that_bases_were_adapted_with_count_where_a_column_of_both_runs_stands_on_another_base(
    tmp_path: Path, columns: tuple[tuple[str, int], ...], adapt_k: int | None, reason: str
) -> None:
    runs = [made_run(tmp_path / "0", columns=[*ALL_COLUMNS, ("rag", 8)], adapt_k=1)]
    runs.append(made_run(tmp_path / "1", seed=1, columns=columns, adapt_k=adapt_k))
    warnings = write_joint_report(runs, tmp_path / "out").warnings
    left_out = [each for each in warnings if "is left out" in each]
    assert left_out == (
        [f"{runs[1]} is left out: its settings differ from those of seed 0: {reason}."] if reason else []
    )


def test_a_run_is_compared_with_all_that_are_kept(tmp_path: Path) -> None:
    first = made_run(tmp_path / "0", columns=SOME[:1], adapt_k=1)
    others = [made_run(tmp_path / str(k), seed=k, columns=SOME[:3], adapt_k=k) for k in (1, 2)]
    left_out, *_ = write_joint_report([first, *others], tmp_path / "out").warnings
    assert left_out == f"{others[1]} is left out: its settings differ from those of seed 1: adapt_k 2, not 1."


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


def test_a_personal_column_without_its_counterpart_is_compared_with_the_best_alone(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", columns=[("base", 0), ("oppu+rag", 4)])
    write_joint_report([run], tmp_path / "out")
    assert [row["of"] for row in rows(tmp_path / "out" / "comparisons.csv")] == ["the best"]
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
