"""The command line from end to end: histories become modules, and modules answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import tiny_model
from peft import PeftModel
from shell import SMALL, World, done, nothing_lost, oppu, refused, rows, write_task
from store_samples import tiny_module, whose
from toys import COLOUR, MOTTO, colour_user, motto_user, write_release

from oppu import __version__
from oppu.cli import app
from oppu.store import Store

# help


def commands() -> Iterator[tuple[str, ...]]:
    """Every command, as it is called."""

    def walk(one: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if getattr(one, "commands", None):
            for name, child in one.commands.items():
                yield from walk(child, (*path, name))
        else:
            yield path

    return walk(typer.main.get_command(app), ())


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(path: tuple[str, ...]) -> None:
    text = " ".join(done(*path, "--help").split())
    assert f"Example: oppu {' '.join(path)}" in text


def test_the_commands_are_those_of_the_product() -> None:
    names = {" ".join(path) for path in commands()}
    assert names >= {
        "data check", "data download", "adapt", "personalize", "ask", "predict", "experiment", "tasks show",
        "modules list", "modules show", "modules export", "modules import", "modules delete",
    }  # fmt: skip


def test_the_version_is_printed() -> None:
    assert done("--version") == f"{__version__}\n"


def test_tasks_are_listed_and_shown_as_files_that_are_read_again(tmp_path: Path) -> None:
    listed = done("tasks")
    assert all(name in listed for name in ("movie_tagging", "LaMP_2M", "rating"))
    file = tmp_path / "mine.toml"
    file.write_text(done("tasks", "show", "lamp_3"), encoding="utf-8")
    assert done("tasks", "show", file) == file.read_text(encoding="utf-8")


def test_ids_stand_in_tables_as_they_are(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        store.put_module(tiny_module(), **whose("[b]:smile:[/i]"))
    assert "[b]:smile:[/i]" in done("modules", "list", "--store", tmp_path / "store")


# from end to end


def test_histories_become_modules_and_modules_answers(world: World, tmp_path: Path) -> None:
    listed = done("modules", "list", "--store", world.store)
    assert listed.endswith("2 modules of 2 users\n")
    assert "ann" in listed
    shown = json.loads(done("modules", "show", "--store", world.store, "--user", "ann"))
    assert (shown["user_id"], shown["task"], shown["setting"], shown["version"]) == ("ann", "colour", "plain", 1)
    assert shown["training"]["config"]["module"]["rank"] == 2
    answer = done("ask", "--store", world.store, "--user", "ann", "my car").strip()
    assert answer in COLOUR.labels
    out = tmp_path / "answers.json"
    options = ("--task", world.task, "--data", world.data, "--store", world.store, "--base", world.base)
    assert done("predict", *options, "--out", out) == f"3 answers in {out}\n"
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["task"] == "colour"
    assert [gold["id"] for gold in found["golds"]] == ["ann-q0", "ann-q1", "bob-q0"]
    assert {gold["output"] for gold in found["golds"]} <= set(COLOUR.labels)


def test_the_same_command_again_keeps_everybodys_module(world: World) -> None:
    options = ("--task", world.task, "--data", world.data, "--store", world.store, "--base", world.base, *SMALL)
    with nothing_lost(world.store):
        assert done("personalize", *options) == f"2 kept; modules in {world.store}\n"
    assert done("personalize", *options, "--k", "1", "--users", "1") == f"1 trained; modules in {world.store}\n"
    assert json.loads(done("modules", "show", "--store", world.store, "--user", "ann"))["setting"] == "bm25-k1"


def test_an_export_is_loaded_by_peft_and_imported_elsewhere_with_the_same_answer(world: World, tmp_path: Path) -> None:
    folder, other = tmp_path / "ann", tmp_path / "other"
    assert done("modules", "export", "--store", world.store, "--user", "ann", "--out", folder) == f"{folder}\n"
    assert PeftModel.from_pretrained(tiny_model(), str(folder)).peft_config["default"].r == 2
    assert done("modules", "import", folder, "--store", other) == "user ann, task colour, setting plain, version 1\n"
    assert done("modules", "import", folder, "--store", other, "--user", "eve", "--base", world.base).startswith(
        "user eve, "
    )
    answers = {done("ask", "--store", store, "--user", "ann", "my car") for store in (world.store, other)}
    assert len(answers) == 1


@pytest.mark.parametrize(("kind", "options"), [("ia3", ()), ("prompt", ("--virtual-tokens", "3"))])
def test_other_kinds_are_trained_asked_and_loaded_by_peft(
    world: World, tmp_path: Path, kind: str, options: tuple[str, ...]
) -> None:
    small = ("--epochs", "1", "--batch-size", "4")
    place = ("--task", world.task, "--data", world.data, "--store", world.store, "--base", world.base)
    assert done("personalize", *place, *small, "--kind", kind, *options) == f"2 trained; modules in {world.store}\n"
    assert done("ask", "--store", world.store, "--user", "ann", "my car").strip() in COLOUR.labels
    done("modules", "export", "--store", world.store, "--user", "ann", "--out", tmp_path / "ann")
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "ann")).peft_config["default"]
    assert loaded.peft_type == {"ia3": "IA3", "prompt": "PROMPT_TUNING"}[kind]
    if kind == "prompt":
        assert loaded.num_virtual_tokens == 3


def test_some_users_get_another_rank_and_everybody_answers(world: World, tmp_path: Path) -> None:
    file = tmp_path / "ranks.csv"
    file.write_text("user,rank\nann,4\nzoe,8\n", encoding="utf-8")
    place = ("--task", world.task, "--data", world.data, "--store", world.store, "--base", world.base)
    ran = oppu("personalize", *place, *SMALL, "--ranks", file)
    assert (ran.code, ran.out) == (0, f"1 kept, 1 trained; modules in {world.store}\n")
    assert "with a rank, but not among the users: 1 (zoe)" in ran.err
    shown = json.loads(done("modules", "show", "--store", world.store, "--user", "ann"))
    assert (shown["version"], shown["training"]["config"]["module"]["rank"]) == (2, 4)
    alone = done("personalize", *place, *SMALL[:-1], "4", "--users", "1")
    assert alone == f"1 kept; modules in {world.store}\n"
    done("predict", *place, "--out", tmp_path / "answers.json")
    assert "has no rank" in refused("personalize", *place, "--kind", "ia3", "--ranks", file)


def test_an_option_of_another_kind_is_refused(world: World) -> None:
    place = ("--task", world.task, "--data", world.data, "--store", world.store, "--base", world.base)
    said = refused("personalize", *place, "--virtual-tokens", "3")
    assert said.startswith("--virtual-tokens: a module of kind 'lora' has no virtual_tokens")
    assert "use one of: ia3, lora, lora-xs, prompt" in refused("personalize", *place, "--kind", "dora")


def test_deleting_a_user_says_what_went_and_leaves_the_others(world: World) -> None:
    said = done("modules", "delete", "--store", world.store, "--user", "ann", "--yes")
    assert said.startswith("deleted user ann: 1 modules (")
    assert "4 history items, and the retrieval index" in said
    assert "ann" not in done("modules", "list", "--store", world.store)
    assert refused("ask", "--store", world.store, "--user", "ann", "car").startswith(
        f"{world.store}: unknown user 'ann'"
    )
    assert done("ask", "--store", world.store, "--user", "bob", "car").strip() in COLOUR.labels


def test_an_adapted_base_is_used_by_its_name(world: World, tmp_path: Path) -> None:
    options = ("--task", world.task, "--data", world.data, "--store", tmp_path / "new")
    said = done("adapt", *options, "--base", world.base, "--name", "colours", *SMALL)
    assert said.startswith("base colours, fingerprint ")
    done("personalize", *options, "--base", "colours", *SMALL)
    listed = done("modules", "list", "--store", tmp_path / "new")
    assert listed.count(" colours ") == 2
    assert done("ask", "--store", tmp_path / "new", "--user", "bob", "car").strip() in COLOUR.labels


def test_a_user_without_a_module_is_answered_by_the_base_and_it_is_said(world: World, tmp_path: Path) -> None:
    users = [colour_user("ann", 4, queries=2), colour_user("eve", 2)]
    data = write_release(tmp_path / "more", users)
    options = ("--task", world.task, "--data", data, "--store", world.store, "--base", world.base)
    ran = oppu("predict", *options, "--out", tmp_path / "a.json")
    assert ran.code == 0
    assert "answered by the base, for want of a module: 1 users (eve)" in ran.err
    done("predict", *options, "--out", tmp_path / "b.json", "--plain")
    by_modules, by_base = (json.loads((tmp_path / f"{name}.json").read_text())["golds"] for name in "ab")
    assert by_modules[-1] == by_base[-1]


def test_ones_own_rows_and_profiles_go_the_same_way(world: World, tmp_path: Path) -> None:
    data = rows(
        tmp_path / "mine.jsonl",
        *({"user": "u", "time": f"2024-01-0{n}", "input": f"thing {n}", "output": "red"} for n in (1, 2, 3)),
        {"user": "u", "split": "query", "input": "car", "id": "q"},
    )
    profiles = tmp_path / "profiles.json"
    profiles.write_text('{"u": "likes red"}')
    options = ("--task", world.task, "--data", data, "--store", tmp_path / "new", "--base", world.base)
    done("personalize", *options, *SMALL, "--k", "1", "--profiles", profiles)
    assert json.loads(done("modules", "show", "--store", tmp_path / "new", "--user", "u"))["setting"] == (
        "bm25-k1-profile"
    )
    done("predict", *options, "--k", "1", "--profiles", profiles, "--out", tmp_path / "a.json")
    asked = done("ask", "--store", tmp_path / "new", "--user", "u", "car", "--profile", "likes red").strip()
    assert json.loads((tmp_path / "a.json").read_text())["golds"] == [{"id": "q", "output": asked}]


def test_texts_are_asked_and_predicted_like_labels(world: World, tmp_path: Path) -> None:
    task = write_task(tmp_path / "motto.toml", MOTTO)
    user = motto_user("u", 3)
    data = rows(
        tmp_path / "m.jsonl",
        *({"user": "u", **item.fields} for item in user.history),
        {"user": "u", "split": "query", "text": "last"},
    )
    options = ("--task", task, "--data", data, "--store", tmp_path / "new", "--base", world.base)
    done("personalize", *options, *SMALL)
    done("predict", *options, "--out", tmp_path / "a.json")
    asked = done("ask", "--store", tmp_path / "new", "--user", "u", "last").removesuffix("\n")
    assert [gold["output"] for gold in json.loads((tmp_path / "a.json").read_text())["golds"]] == [asked]


def test_an_experiment_prints_one_table_and_says_where_the_report_is(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oppu.evaluate.experiment.write_report", lambda out, *_: out)
    options = ("--task", world.task, "--data", world.data, "--base", world.base, "--out", tmp_path / "out", *SMALL)
    small = ("--adapt-epochs", "1", "--methods", "base,oppu")
    said = done("experiment", *options, *small)
    assert said.endswith(f"report: {tmp_path / 'out' / 'report.html'}\n")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["config"]["command"].startswith("oppu experiment --task ")
    assert [row["method"] for row in found["rows"]] == ["majority", "base", "oppu"]
    assert done("experiment", *options, *small) == said
    line = refused("experiment", *options, *small, "--seed", "1")
    assert line.endswith("use --fresh to start anew, or another --out")
    assert refused("experiment", *options, "--k", "one").startswith("--k: 'one' is no number of items; use for example")


def test_statistics_of_data_are_printed(world: World) -> None:
    said = done("data", "check", world.data, "--task", world.task)
    assert "personal" in said
    assert "L_in" in said
