"""The scripts of `runs/`: each command that they start is one that the program has, with options that it takes."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from oppu.cli import app
from oppu.errors import ConfigError
from oppu.examples import training_examples
from oppu.prompts import options
from oppu.records import HistoryItem, User
from oppu.tasks import BUILT_IN, find_task

RUNS = Path(__file__).parent.parent / "runs"
SCRIPTS = sorted(path.name for path in RUNS.glob("*.sh") if path.name != "scale.sh")

TABLES = {
    "small": ("table1/movie_tagging/results.json",),
    "full": tuple(f"table1/{task}/seed-{n}/results.json" for task in ("citation", "movie_tagging") for n in range(3)),
}
"""Where finished runs of Table 1 lie, by scale."""


def started(script: str, scale: str, folder: Path, *arguments: str) -> list[list[str]]:
    """The commands that a script starts, in order; a stand-in for the program writes them down."""
    for task in BUILT_IN:
        (folder / "data" / task).mkdir(parents=True, exist_ok=True)
    for finished in (*TABLES[scale], "shift-citation/shift.json"):
        (folder / "out" / finished).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / finished).touch()
    for place in ("shift-citation", "shift-tweet_paraphrase"):  # of the second there is this file alone
        (folder / "out" / place).mkdir(exist_ok=True)
        (folder / "out" / place / "study.json").write_text('{\n "study": "shift"\n}\n')
    stand_in = folder / "oppu"
    stand_in.write_text(f'#!/usr/bin/env bash\nprintf "%q " "$@" >> {folder}/started; echo >> {folder}/started\n')
    stand_in.chmod(0o755)
    given = {"SCALE": scale, "DATA": str(folder / "data"), "OUT": str(folder / "out"), "OPPU": str(stand_in)}
    subprocess.run([RUNS / script, *arguments], env=os.environ | given, check=True)
    return [shlex.split(line) for line in (folder / "started").read_text().splitlines()]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options, read by the command that the arguments name, which is not run."""
    command: Any = typer.main.get_command(app)
    path = "oppu"
    while getattr(command, "commands", None):
        command, path, arguments = command.commands[arguments[0]], f"{path} {arguments[0]}", arguments[1:]
    return dict(command.make_context(path, list(arguments)).params)


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_commands_that_the_program_takes(script: str, scale: str, tmp_path: Path) -> None:
    if (script, scale) == ("table1_users.sh", "full"):  # a full run has all columns
        with pytest.raises(subprocess.CalledProcessError):
            started(script, scale, tmp_path)
        return
    commands = started(script, scale, tmp_path)
    assert commands
    for arguments in commands:
        parsed(arguments)


def test_the_first_table_covers_all_tasks_or_those_that_are_named(tmp_path: Path) -> None:
    assert {parsed(one)["task"] for one in started("table1.sh", "small", tmp_path / "all")} == set(BUILT_IN)
    (one,) = started("table1.sh", "full", tmp_path / "one", "citation")
    found = parsed(one)
    assert (found["task"], Path(found["data"]).name, found["methods"]) == ("citation", "citation", "all")


def test_our_own_ways_of_asking_are_named_as_tasks_are(tmp_path: Path) -> None:
    for scale in ("small", "full"):
        (one,) = started("table1.sh", scale, tmp_path / scale, "tweets_reworded")
        found = parsed(one)
        assert find_task(found["task"]).name == "tweets_reworded"
        assert Path(found["data"]).name == "tweet_paraphrase"


def test_our_own_ways_of_asking_beside_the_papers_tasks_have_commands_of_their_own(tmp_path: Path) -> None:
    asked = ("citation_by_text", "citation", "movie_tagging", "tweets_reworded")
    *own, papers = map(parsed, started("table1.sh", "full", tmp_path, *asked))
    assert [find_task(each["task"]).name for each in own] == ["citation_by_text", "tweets_reworded"]
    assert [Path(each["data"]).name for each in own] == ["citation", "tweet_paraphrase"]
    assert (papers["task"], Path(papers["data"]).name) == ("citation,movie_tagging", "data")


@pytest.mark.parametrize("scale", ["small", "full"])
def test_the_power_of_every_run_of_the_first_table_is_asked_for(scale: str, tmp_path: Path) -> None:
    found = [parsed(each) for each in started("beyond.sh", scale, tmp_path) if each[:2] == ["study", "power"]]
    runs = [str(each["run"].relative_to(tmp_path / "out")) for each in found]
    assert runs == [str(Path(file).parent) for file in TABLES[scale]]
    names = [each["out"].name for each in found]
    assert names == [run.replace("table1/", "power-").replace("/", "-") for run in runs]


@pytest.mark.parametrize("scale", ["small", "full"])
def test_the_report_takes_what_is_finished_alone(scale: str, tmp_path: Path) -> None:
    (report,) = started("report.sh", scale, tmp_path)
    found = [str(folder.relative_to(tmp_path / "out")) for folder in parsed(report)["folders"]]
    assert found == [*(str(Path(file).parent) for file in TABLES[scale]), "shift-citation"]


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    given = os.environ | {"DATA": str(tmp_path)}
    ran = subprocess.run([RUNS / "table1.sh", "films"], env=given, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "unknown task films\n")


def test_studies_take_over_the_bases_of_the_first_table(tmp_path: Path) -> None:
    (table,) = started("table1_users.sh", "small", tmp_path, "movie_tagging")
    (tmp_path / "out" / "table1" / "movie_tagging" / "store").mkdir(parents=True)
    (tmp_path / "started").unlink()
    (case,) = started("figure5.sh", "small", tmp_path)
    assert parsed(case)["bases"] == parsed(table)["out"]
    assert parsed(case)["adapt_pairs"] == parsed(table)["adapt_pairs"] == 120


def test_citations_by_text_read_the_benchmarks_questions() -> None:
    task = find_task(str(RUNS / "citation_by_text.toml"))
    asked = 'For an author with the title "A", which reference is related? Choose. [1]: "B" [2]: "C"'
    fields = task.parse_query(asked)
    assert fields == {"title": "A", "option1": "B", "option2": "C"}
    assert options(task, fields) == (("[1]", "B"), ("[2]", "C"))
    assert task.profile_prompt == BUILT_IN["citation"].profile_prompt
    with pytest.raises(ConfigError, match="has the parts option1, option2, title"):
        task.fields_of("A?")


def test_reworded_tweets_ask_the_benchmarks_question() -> None:
    task = find_task(str(RUNS / "tweets_reworded.toml"))
    (form,) = task.history
    papers = BUILT_IN["tweet_paraphrase"]
    assert (task.prompt, task.query_pattern, form.prompt) == (papers.prompt, papers.query_pattern, papers.prompt)
    assert task.profile_prompt == papers.profile_prompt
    user = User("ann", (HistoryItem("t1", {"text": "@bob SOOO late again!! lol"}, 1.0),))
    (example,) = training_examples(task, user)
    assert example.prompt.endswith("text: So late again. tweet:")
    assert example.answer == "@bob SOOO late again!! lol"


def test_a_script_without_data_says_what_to_set(tmp_path: Path) -> None:
    given = os.environ | {"DATA": str(tmp_path / "nowhere")}
    ran = subprocess.run([RUNS / "table1.sh"], env=given, capture_output=True, text=True, check=False)
    assert (ran.returncode, "set DATA" in ran.stderr) == (2, True)
