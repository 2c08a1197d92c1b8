"""Studies: what one leaves behind, what is not measured twice, and what is refused."""

import csv
import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from holding import be_killed, fail, hold
from shell import contents, done, refused
from typer.testing import CliRunner

from oppu.cli.study import _command
from oppu.errors import ConfigError, DataError, ModelError
from oppu.evaluate import studies
from oppu.evaluate.lab.own_process import in_own_process
from oppu.evaluate.lab.trial import TrialSettings
from oppu.evaluate.reports.fit import fit_line
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.results import Cell, Prediction, write_cell, write_results
from oppu.evaluate.study import Column, Outcome, Study, Table, Workplace, all_studies, option, run_study, study_tex
from oppu.tasks import BUILT_IN


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# the frame


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a study made up here."""

    place: Path = option("A folder.")
    sizes: tuple[int, ...] = option("Sizes.", (1, 2), least=1)
    shares: tuple[float, ...] | None = option("Shares.", None)
    rounds: int = option("Rounds.", 3, least=1)


def squares(settings: Settings, place: Workplace) -> Outcome:
    """Squares of the sizes, each computed once."""
    found = []
    for size in settings.sizes:
        place.on_stage("squares", len(found), len(settings.sizes))

        def square(size: int = size) -> dict[str, Any]:
            with (settings.place / "computed").open("a") as file:
                file.write(f"{size} ")
            return {"square": size**2}

        found.append(place.measured({"size": size, "rounds": settings.rounds}, square)["square"])
    line = Series("<squares>", tuple(map(float, settings.sizes)), tuple(map(float, found)))
    return Outcome(
        found=(f"{len(found)} squares & no more.",),
        panels=(Panel("Squares", lines_of([line], "size", "square")), Panel("Again", lines_of([line], "x", "y"))),
        table=Table(
            (Column("size", "Size"), Column("square", "Square", 1), Column("why", "Why")),
            tuple((size, square, "" if size > 1 else None) for size, square in zip(settings.sizes, found, strict=True)),
        ),
        facts=f"{len(found)} sizes",
        notes=("Sizes are <whole> numbers.",),
        numbers={"shares": settings.shares},
    )


MADE = Study("made", "Squares <of sizes>", "squares", "Square.", "Table 9", "They are 1 & 4.", Settings, squares)


def made_up(*arguments: object) -> Any:
    """The made-up study from the command line."""
    app = typer.Typer()
    app.command("made")(_command(MADE))
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def names_of_files() -> list[str]:
    """Of the studies: each file is called as its study."""
    files = sorted(path.stem for path in Path(str(studies.__file__)).parent.glob("*.py"))
    return [name for name in files if name != "__init__"]


def test_studies_are_listed_with_a_line_each() -> None:
    listed = " ".join(done("study").split())
    assert [each.name for each in all_studies()] == names_of_files()
    for each in all_studies():
        assert f"{each.name} {each.source or '–'}" in listed


def test_the_guide_names_the_options_that_studies_share() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    section = guide.partition("## Studies that train")[2].partition("\n## ")[0]
    first = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))
    named = {flag for flag in re.findall(r"--[a-z][a-z-]*", first) if not flag.startswith("--no-")}
    assert named == {f"--{each.name.replace('_', '-')}" for each in fields(TrialSettings)}


def test_a_new_study_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zzz_made.py").write_text("from test_studies import MADE as STUDY\n", encoding="utf-8")
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    assert [each.name for each in all_studies()] == [*names_of_files(), "made"]


def test_the_fields_of_the_settings_are_options(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = made_up("--place", tmp_path, "--sizes", "3, 2,3", "--shares", "0.5,1", "--out", out)
    assert ran.exit_code == 0, ran.output
    written = json.loads((out / "made.json").read_text(encoding="utf-8"))
    assert written["settings"] == {"place": str(tmp_path), "sizes": [3, 2], "shares": [0.5, 1.0], "rounds": 3}
    assert written["shares"] == [0.5, 1.0]
    assert made_up("--sizes", "3").exit_code == 2  # --place is missing


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--sizes", "1,two"), "--sizes: '1,two' is no list of whole numbers; use for example --sizes 1,2,4"),
        (("--sizes", "1,0"), "--sizes: 0 is less than 1; use 1 or more"),
        (("--shares", ""), "--shares: '' is no list of numbers; use for example --shares 1,2,4"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, given: tuple[str, str], message: str) -> None:
    ran = made_up("--place", tmp_path, "--out", tmp_path / "out", *given)
    assert isinstance(ran.exception, ConfigError)
    assert str(ran.exception) == message
    assert not (tmp_path / "out").exists()


def test_a_study_leaves_numbers_table_figure_and_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(MADE, Settings(tmp_path), out, command="oppu study made --place <here>")
    written = json.loads((out / "made.json").read_text(encoding="utf-8"))
    assert written["table"] == [{"size": 1, "square": 1, "why": None}, {"size": 2, "square": 4, "why": ""}]
    assert (written["study"], written["command"]) == ("made", "oppu study made --place <here>")
    assert {"oppu", "torch", "python"} <= written["versions"].keys()
    assert {"processor", "cores", "accelerator"} <= written["machine"].keys()
    assert (out / "made.csv").read_text() == "size,square,why\n1,1,\n2,4,\n"
    assert written["notes"] == ["Sizes are <whole> numbers."]
    sources = written["sources"]
    assert [each["what"] for each in sources] == ["size 1, rounds 3", "size 2, rounds 3"]
    assert [json.loads((out / each["file"]).read_text())["value"]["square"] for each in sources] == [1, 4]
    root = ElementTree.parse(out / "made.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"Squares", "Again", "<squares>"} <= {text.strip() for text in root.itertext()}


def test_the_page_is_well_formed_fetches_nothing_and_says_what_paper_and_run_found(tmp_path: Path) -> None:
    from test_report import Page

    run_study(MADE, Settings(tmp_path), tmp_path / "out", command="oppu study made")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert page.plots == 2
    assert len(page.ids) == len(set(page.ids))
    text = " ".join("".join(page.text).split())
    for part in ("Squares <of sizes>", "The paper (Table 9). They are 1 & 4.", "This run. 2 squares & no more.", "4.0"):
        assert part in text
    assert {"made.csv", "made.tex", "made.json", "made.svg"} <= set(page.targets)
    assert "<details>" in html  # closed
    listed = [target for target in page.targets if target.startswith("measurements/")]
    assert len(listed) == 2
    assert all((tmp_path / "out" / target).is_file() for target in listed)


def test_a_file_that_two_variants_share_is_listed_for_both_and_once_for_each(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    for what in ("first", "second", "first"):
        place.measured({"size": 1}, lambda: {"square": 1}, what)
    assert [each["what"] for each in place.sources] == ["first", "second"]
    assert len({each["file"] for each in place.sources}) == 1


def test_the_table_is_there_as_latex(tmp_path: Path) -> None:
    run_study(MADE, Settings(tmp_path), tmp_path / "out")
    lines = (tmp_path / "out" / "made.tex").read_text(encoding="utf-8").splitlines()
    assert lines[lines.index(r"\toprule") - 1] == r"\caption{Squares $<$of sizes$>$. 2 sizes}\\"
    assert r"\begin{longtable}{rrl}" in lines
    assert lines[lines.index(r"\endfoot") + 1 : lines.index(r"\end{longtable}")] == [
        r"1 & 1.0 & -- \\",
        r"2 & 4.0 &  \\",
    ]


def test_texts_of_a_table_stand_on_one_line_and_are_no_options_for_latex() -> None:
    columns = (Column("said", "What was said & when"), Column("long", "Long"))
    table = Table(columns, (("[1]\n\n50 %", "word " * 12), ("* b_c", "")))
    text = study_tex("Said.", "Two texts.", table)
    assert r"\caption{Said. Two texts.}" in text
    assert r"{lp{5cm}}" in text
    assert r"\shortstack[l]{What was\\said \&\\when}" in text
    assert r"{[1] 50 \%} & " + "word " * 11 + r"word \\" in text
    assert r"{* b\_c} &  \\" in text


def test_the_same_inputs_are_measured_once_and_new_ones_alone(tmp_path: Path) -> None:
    def run(*sizes: int, rounds: int = 3, fresh: bool = False) -> list[str]:
        (tmp_path / "computed").write_text("")
        run_study(MADE, Settings(tmp_path, sizes, None, rounds), tmp_path / "out", fresh=fresh)
        return (tmp_path / "computed").read_text().split()

    assert run(1, 2) == ["1", "2"]
    before = (tmp_path / "out" / "made.csv").read_bytes()
    assert run(1, 2) == []
    assert (tmp_path / "out" / "made.csv").read_bytes() == before
    assert run(1, 2, 5) == ["5"]
    assert run(1, 2, rounds=4) == ["1", "2"]
    assert run(1, fresh=True) == ["1"]
    assert len(list((tmp_path / "out" / "measurements").iterdir())) == 1


def test_the_same_numbers_give_the_same_page_and_figure(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_study(MADE, Settings(tmp_path), tmp_path / name)
    for file in ("report.html", "made.svg", "made.csv", "made.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_with_something_else_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "report.html").write_text("of an experiment")
    before = contents(out)
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="holds something else than the study 'made'; use another --out"):
            run_study(MADE, Settings(tmp_path), out, fresh=fresh)
    assert contents(out) == before


def test_a_damaged_measurement_is_named_and_not_taken(tmp_path: Path) -> None:
    run_study(MADE, Settings(tmp_path), tmp_path / "out")
    file = next((tmp_path / "out" / "measurements").iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"{file.name}: is damaged; delete the file to measure it again"):
        run_study(MADE, Settings(tmp_path), tmp_path / "out")


# a process of its own


def test_memory_of_a_process_of_its_own_is_its_own() -> None:
    held = bytearray(300 << 20)
    held[::4096] = b"x" * len(held[::4096])
    (small, little), (large, much) = (in_own_process(hold, mib) for mib in (1, 150))
    assert len({os.getpid(), small, large}) == 3
    assert little < 200 < 300
    assert 130 < much - little < 170


def test_an_error_in_a_process_of_its_own_comes_back_and_a_killed_process_is_said() -> None:
    with pytest.raises(ModelError, match="there: it broke; do it otherwise"):
        in_own_process(fail, "it broke")
    with pytest.raises(ModelError, match="ended from outside, perhaps for want of memory"):
        in_own_process(be_killed, 9)


# lines


def test_a_line_is_found_with_its_r_squared() -> None:
    line = fit_line([1, 2, 3], [5, 7, 9])
    assert line is not None
    assert (line.slope, line.intercept, line.r_squared, line.at(10)) == pytest.approx((2, 3, 1, 23))
    bent = fit_line([1, 2, 3, 4], [1, 4, 9, 16])
    assert bent is not None
    assert bent.r_squared == pytest.approx(0.9689, abs=1e-4)
    flat = fit_line([1, 2, 3], [4, 4, 4])
    assert flat is not None
    assert (flat.slope, flat.r_squared) == (pytest.approx(0, abs=1e-12), 1.0)
    assert fit_line([1, 2, 2], [1, 2, 3]) is None


# power


def answers(method: str, rights: list[list[int]]) -> Cell:
    right, wrong = BUILT_IN["news_categorize"].labels[:2]
    found = [
        Prediction(f"u{u}", f"u{u}q{q}", right, right if hit else wrong)
        for u, hits in enumerate(rights)
        for q, hit in enumerate(hits)
    ]
    return Cell(method, 0, tuple(found), 1.0)


def write_run(out: Path, *cells: Cell, task: str = "news_categorize") -> Path:
    """A finished experiment with made-up answers."""
    write_results(out, BUILT_IN["news_categorize"], {"base": "tiny"}, cells)
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps(results | {"task": task}))
    for cell in cells:
        write_cell(out, cell)
    return out


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Ten users with four questions each; half of the users gain on one of them."""
    base = answers("base", [[1, 0, 1, 0]] * 10)
    oppu = answers("oppu", [[1, u % 2, 1, 0] for u in range(10)])
    return write_run(tmp_path / "run", base, oppu)


def test_a_study_of_power_has_a_row_for_every_difference_and_number_of_questions(
    experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "power"
    printed = done("study", "power", "--run", experiment, "--differences", "0.05,0.2", "--out", out, "--users", "5,40")
    found = table(out, "power")
    assert [(row["difference"], row["queries_per_user"]) for row in found] == [
        (difference, queries) for difference in ("0.05", "0.125", "0.2") for queries in ("1", "4", "10", "50")
    ]
    assert {row["methods"] for row in found} == {"oppu-k0 against base-k0"}
    for row in found:
        powers = [float(row[f"power_{users}_users"]) for users in (5, 10, 40)]
        assert all(0 <= power <= 1 for power in powers)
        assert powers[2] >= powers[0]
    own = next(row for row in found if (row["difference"], row["queries_per_user"]) == ("0.125", "4"))
    assert f"a power of {float(own['power_10_users']):.2f}" in " ".join(printed.split())
    assert f"80% needs {own['users_needed']} users with 4 questions each" in " ".join(printed.split())
    written = json.loads((out / "power.json").read_text())
    named = {each["what"]: (out / each["file"]).resolve() for each in written["sources"]}
    assert named == {f"{name}-k0": experiment / "predictions" / f"{name}-k0.json" for name in ("oppu", "base")}
    pair = written["pairs"][0]
    assert (pair["users"], pair["queries_per_user"], pair["gain"]) == (10, 4, pytest.approx(0.125))
    asked = ["--queries", "1,10", "--users", "5", "--out", tmp_path / "asked"]  # a run of this size is looked at, too
    again = done("study", "power", "--run", experiment, "--differences", "0.05,0.2", *asked)
    assert f"a power of {float(own['power_10_users']):.2f}" in " ".join(again.split())


def test_a_study_of_power_leaves_the_run_as_it_is_and_gives_the_same_numbers_again(
    experiment: Path, tmp_path: Path
) -> None:
    before = contents(experiment)
    for name in ("a", "b"):
        done("study", "power", "--run", experiment, "--users", "10,30", "--out", tmp_path / name)
    assert (tmp_path / "a" / "power.csv").read_bytes() == (tmp_path / "b" / "power.csv").read_bytes()
    assert "holds something else" in refused("study", "power", "--run", experiment, "--out", experiment)
    assert contents(experiment) == before


def test_a_run_with_one_question_for_each_user_says_nothing_about_more(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", answers("base", [[u % 2] for u in range(12)]), answers("oppu", [[1] for _ in range(12)])
    )
    done("study", "power", "--run", run, "--users", "20", "--out", tmp_path / "power")
    assert {row["queries_per_user"] for row in table(tmp_path / "power", "power")} == {"1"}
    assert "every user of the run has one question" in refused(
        "study", "power", "--run", run, "--queries", "1,5", "--out", tmp_path / "other"
    )


def test_methods_that_answer_alike_are_left_out_and_named(tmp_path: Path) -> None:
    hits = [[1, 0, 1, 0]] * 6
    run = write_run(
        tmp_path / "run",
        *(answers(name, hits) for name in ("base", "oppu")),
        answers("rag", hits),
        answers("oppu+rag", [[1, u % 2, 1, 0] for u in range(6)]),
    )
    done("study", "power", "--run", run, "--users", "20", "--out", tmp_path / "power")
    assert {row["methods"] for row in table(tmp_path / "power", "power")} >= {"oppu+rag-k0 against rag-k0"}
    page = (tmp_path / "power" / "report.html").read_text(encoding="utf-8")
    assert "oppu-k0 against base-k0, alike everywhere" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--metric", "f1_macro"), "f1_macro is no mean over questions"),
        (("--pairs", "oppu-k0:rag-k1"), "is no pair of the run's methods; use two of base-k0, oppu-k0"),
        (("--task", "movie_tagging"), "--task: the run's task is news_categorize, not movie_tagging"),
        (("--users", "1"), "--users: 1 is less than 2"),
        (("--differences", "0"), "no difference above 0 is left"),
    ],
)
def test_what_a_run_cannot_tell_is_refused(
    experiment: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    if message.startswith("no difference"):
        alike = [[1, 0, 1, 0], [0, 1, 1, 0]]
        experiment = write_run(tmp_path / "other", answers("base", alike), answers("oppu", alike[::-1]))
        message = "no difference above 0 is given"
    assert message in refused("study", "power", "--run", experiment, "--out", tmp_path / "out", *given)


def test_a_folder_that_is_no_run_and_a_task_of_ones_own_are_said(experiment: Path, tmp_path: Path) -> None:
    assert "is no finished experiment" in refused("study", "power", "--run", tmp_path, "--out", tmp_path / "a")
    own = write_run(tmp_path / "own", answers("base", [[1]]), task="mine")
    assert "name its file with --task" in refused("study", "power", "--run", own, "--out", tmp_path / "b")
    (experiment / "results.json").write_text("{")
    assert "results.json: is damaged" in refused("study", "power", "--run", experiment, "--out", tmp_path / "c")
