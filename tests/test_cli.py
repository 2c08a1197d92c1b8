"""The command line from end to end, and what it says where something is wrong: one clear line, exit code 2."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from conftest import tiny_model, tiny_tokenizer
from peft import PeftModel
from toys import COLOUR, MOTTO, colour_user, motto_user, tiny_base_folder, write_release

from oppu import __version__
from oppu.cli import app, main
from oppu.model.bank import Bank, LoraConfig
from oppu.model.base import make_base, save_base
from oppu.model.module import WEIGHTS, write_module
from oppu.tasks import Task, task_to_toml

SMALL = ("--epochs", "1", "--batch-size", "4", "--rank", "2")


@dataclass(frozen=True)
class Ran:
    """What a command left in the terminal."""

    code: int
    out: str
    err: str


def oppu(*arguments: object) -> Ran:
    """The console script, within this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["oppu", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = before
    return Ran(int(left.value.code or 0), out.getvalue(), err.getvalue())


def done(*arguments: object) -> str:
    """What a command prints that succeeds."""
    ran = oppu(*arguments)
    assert (ran.code, "oppu:" in ran.err) == (0, False), ran.err
    return ran.out


def refused(*arguments: object) -> str:
    """The one line of a command that fails as it should, without `oppu: `."""
    ran = oppu(*arguments)
    assert ran.code == 2, ran
    assert "Traceback" not in ran.err
    assert ran.err.count("oppu: ") == 1
    lines = ran.err[ran.err.index("oppu: ") :].rstrip("\n").split("\n")
    assert all(line.startswith("  ") for line in lines[1:])  # a list of problems
    return "\n".join(lines).removeprefix("oppu: ")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, the database's log aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".db-wal", ".db-shm")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith("oppu.db")}


def rows(file: Path, *listed: dict[str, Any]) -> Path:
    """A JSONL file of one's own."""
    file.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
    return file


@dataclass(frozen=True)
class World:
    """A base, a task file, data and a store in which everybody has a module."""

    base: Path
    task: Path
    data: Path
    store: Path


def write_task(file: Path, task: Task) -> Path:
    file.write_text(task_to_toml(task), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Made once, and not to be changed."""
    place = tmp_path_factory.mktemp("world")
    users = [colour_user("ann", 4, queries=2), colour_user("bob", 2)]
    data = write_release(place / "data", users, [colour_user("x", 3)])
    world = World(tiny_base_folder(place / "tiny"), write_task(place / "colour.toml", COLOUR), data, place / "store")
    done("personalize", "--task", world.task, "--data", data, "--store", world.store, "--base", world.base, *SMALL)
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """With a store of one's own."""
    return World(made.base, made.task, made.data, Path(shutil.copytree(made.store, tmp_path / "store")))


@contextmanager
def nothing_lost(store: Path) -> Iterator[None]:
    """The store's files and its list of modules are afterwards what they were before."""
    before, listed = contents(store), done("modules", "list", "--store", store, "--all")
    yield
    assert contents(store) == before
    assert done("modules", "list", "--store", store, "--all") == listed


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


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


# from end to end


def test_histories_become_modules_and_modules_answers(world: World, tmp_path: Path) -> None:
    listed = done("modules", "list", "--store", world.store)
    assert listed.endswith("2 modules of 2 users\n")
    assert "ann" in listed
    shown = json.loads(done("modules", "show", "--store", world.store, "--user", "ann"))
    assert (shown["user_id"], shown["task"], shown["setting"], shown["version"]) == ("ann", "colour", "plain", 1)
    assert shown["training"]["config"]["lora"]["rank"] == 2
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


# bad input


THING = {"user": "u", "id": "i1", "time": "2024-01-01", "text": "car", "colour": "red"}
BAD_ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "missing field": (
        [{key: value for key, value in THING.items() if key != "text"}],
        "bad.jsonl, line 1, user 'u', item 'i1': missing field 'text'",
    ),
    "date": (
        [{**THING, "time": "yesterday"}],
        "bad.jsonl, line 1, user 'u', item 'i1': 'yesterday' is not a date; write it as",
    ),
    "duplicate item": (
        [THING, {**THING, "text": "other"}],
        "bad.jsonl, line 2, user 'u', item 'i1': duplicate item id with another content; leave one out",
    ),
    "empty history": (
        [{"user": "u", "split": "query", "id": "q", "text": "car", "colour": "red"}],
        "bad.jsonl, user 'u': empty history; give the user at least one history item",
    ),
    "query without a label": (
        [
            THING,
            {"user": "u", "split": "query", "id": "q1", "text": "car", "colour": "red"},
            {"user": "u", "split": "query", "id": "q2", "text": "car"},
        ],
        "bad.jsonl, line 3, user 'u', query 'q2': query without a label",
    ),
    "unknown label": (
        [{**THING, "colour": "mauve"}],
        "item 'i1': 'mauve' is not a label of task colour; use one of: red",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("command", ["data check", "personalize", "adapt", "predict", "experiment"])
def test_bad_histories_are_one_clear_line_with_file_user_and_item(
    world: World, tmp_path: Path, name: str, command: str
) -> None:
    listed, words = BAD_ROWS[name]
    file = rows(tmp_path / "bad.jsonl", *listed)
    new = tmp_path / "new"
    arguments = {
        "data check": ("data", "check", file, "--task", world.task),
        "personalize": ("personalize", "--task", world.task, "--data", file, "--store", new),
        "adapt": ("adapt", "--task", world.task, "--data", file, "--store", new),
        "predict": ("predict", "--task", world.task, "--data", file, "--store", world.store, "--out", new),
        "experiment": ("experiment", "--task", world.task, "--data", file, "--out", new),
    }[command]
    with nothing_lost(world.store):
        line = refused(*arguments)
    assert words in line
    assert "\n" not in line
    assert not new.exists()


def test_all_problems_of_the_data_are_listed_at_once(world: World, tmp_path: Path) -> None:
    file = rows(tmp_path / "bad.jsonl", {**THING, "time": "soon"}, {**THING, "id": "i2", "colour": "mauve"})
    first, *problems = refused("data", "check", file, "--task", world.task).split("\n")
    assert first == f"{file}: 2 problems:"
    assert len(problems) == 2
    assert all(any(words in line for line in problems) for words in ("'soon' is not a date", "'mauve' is not a label"))


def test_data_that_are_not_there_are_said_to_be_missing(world: World, tmp_path: Path) -> None:
    line = refused("personalize", "--task", world.task, "--data", tmp_path / "none", "--store", tmp_path / "new")
    assert line == f"{tmp_path / 'none'}: no such file or folder"


def test_a_task_file_with_an_unknown_key_is_refused_before_anything_else(world: World, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('labelz = ["a"]\n' + task_to_toml(COLOUR), encoding="utf-8")
    for command in (
        ("personalize", "--data", world.data, "--store", tmp_path / "new"),
        ("experiment", "--data", world.data, "--out", tmp_path / "new"),
        ("data", "check", world.data),
    ):
        assert refused(*command, "--task", file).startswith(f"{file}: unknown key 'labelz'; see `oppu tasks show NAME`")
    assert refused("tasks", "show", file).startswith(f"{file}: unknown key 'labelz'")
    assert refused("data", "check", world.data, "--task", "colours").startswith("unknown task 'colours'; use a path to")
    assert not (tmp_path / "new").exists()


def module_file(store: Path) -> Path:
    """The file of ann's module."""
    shown = json.loads(done("modules", "show", "--store", store, "--user", "ann"))
    return Path(shown["path"]) / WEIGHTS


def test_a_truncated_module_is_refused_by_every_command_that_reads_it(world: World, tmp_path: Path) -> None:
    file = module_file(world.store)
    file.write_bytes(file.read_bytes()[:500])
    options = ("--task", world.task, "--data", world.data, "--base", world.base)
    with nothing_lost(world.store):
        for command in (
            ("ask", "--user", "ann", "car"),
            ("modules", "export", "--user", "ann", "--out", tmp_path / "out"),
            ("predict", *options, "--out", tmp_path / "out"),
        ):
            line = refused(*command, "--store", world.store)
            assert line.startswith(f"{file.parent}: its files have ")
            assert line.endswith("; restore it from an export, or train the module again")
    assert not (tmp_path / "out").exists()
    assert done("ask", "--store", world.store, "--user", "bob", "car").strip() in COLOUR.labels
    assert done("personalize", *options, *SMALL, "--store", world.store).startswith("1 kept, 1 trained; ")
    assert done("ask", "--store", world.store, "--user", "ann", "car").strip() in COLOUR.labels


def test_a_truncated_export_is_not_taken_in(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "ann"
    done("modules", "export", "--store", world.store, "--user", "ann", "--out", folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:500])
    with nothing_lost(world.store):
        line = refused("modules", "import", folder, "--store", world.store)
        assert line.startswith(f"{folder / WEIGHTS}: is cut short")
        assert refused("modules", "import", tmp_path / "none", "--store", world.store).startswith(
            f"{tmp_path / 'none'}: is no folder; give a folder with"
        )


@pytest.mark.parametrize("other", ["base", "rank"])
def test_a_module_of_another_base_or_rank_is_not_taken_in(world: World, tmp_path: Path, other: str) -> None:
    model = tiny_model(layers=3) if other == "base" else tiny_model()
    bank = Bank(model, LoraConfig(rank=2, alpha=2), 1)
    bank.reset(0, 0)
    folder = tmp_path / "module"
    write_module(bank.module(0), folder)
    if other == "rank":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    words = {
        "base": "the module does not fit: base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight is not known",
        "rank": "bad tensors: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight (rank 2 instead of 4)",
    }
    whose = ("--user", "ann", "--task", "colour", "--setting", "plain", "--base", world.base)
    with nothing_lost(world.store):
        assert words[other] in refused("modules", "import", folder, "--store", world.store, *whose)


def test_a_module_is_not_asked_on_a_base_that_has_changed(world: World, tmp_path: Path) -> None:
    base = Path(shutil.copytree(world.base, tmp_path / "mine"))
    options = ("--task", world.task, "--data", world.data, "--store", tmp_path / "new", "--base", base)
    done("personalize", *options, *SMALL)
    save_base(make_base("tiny", tiny_model(seed=1), tiny_tokenizer()), base)
    with nothing_lost(tmp_path / "new"):
        line = refused("ask", "--store", tmp_path / "new", "--user", "ann", "car")
    assert line.startswith(f"{base}: the module of user ann was trained on another base (")
    assert line.endswith("; personalize again on this base")


def test_unknown_users_are_said_to_be_unknown(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with nothing_lost(world.store):
        for command in (("ask", "car"), ("modules", "show"), ("modules", "export", "--out", out)):
            line = refused(*command, "--store", world.store, "--user", "eve")
            assert line == f"{world.store}: unknown user 'eve'; see `oppu modules list`"
        line = refused("modules", "delete", "--store", world.store, "--user", "eve", "--yes")
        assert line.startswith("user 'eve' is unknown")
    assert not out.exists()


def test_a_mistyped_store_is_refused_and_not_made(world: World, tmp_path: Path) -> None:
    none = tmp_path / "none"
    for command in (
        ("ask", "--user", "ann", "car"),
        ("modules", "list"),
        ("modules", "show", "--user", "ann"),
        ("predict", "--task", world.task, "--data", world.data, "--out", tmp_path / "out"),
    ):
        assert refused(*command, "--store", none) == f"{none}: there is no store; `oppu personalize` makes one"
    assert not none.exists()


def test_a_base_that_cannot_be_loaded_is_one_clear_line(world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = ("--task", world.task, "--data", world.data, "--store", world.store)
    with nothing_lost(world.store):
        line = refused("personalize", *options, "--base", tmp_path / "empty")
    assert line.startswith(f"{tmp_path / 'empty'}: cannot load the base model: ")
    assert line.endswith("a folder in transformers' format, or a model's name")


def test_a_disk_that_becomes_full_keeps_what_was_finished(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [colour_user(name, 3) for name in ("ann", "bob", "eve")]
    data = write_release(tmp_path / "more", users)
    options = ("--task", world.task, "--data", data, "--store", world.store, "--base", world.base, *SMALL)
    with nothing_lost(world.store), monkeypatch.context() as patch:
        patch.setattr("oppu.store.modules.os.rename", failing(errno.ENOSPC))
        line = refused("personalize", *options)
        assert line.endswith("the disk is full; free some space and run it again; nothing that was stored is lost")
    assert done("personalize", *options).startswith("3 trained; ")


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EROFS, "the file system is read-only; use a folder"), (errno.EACCES, "permission denied; use a folder")],
)
def test_a_folder_that_cannot_be_written_is_one_clear_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    monkeypatch.setattr("pathlib.Path.mkdir", failing(code))
    options = ("--task", world.task, "--data", world.data, "--base", world.base)
    assert words in refused("personalize", *options, "--store", tmp_path / "new")
    assert words in refused("adapt", *options, "--store", tmp_path / "new")
    assert words in refused("experiment", *options, "--out", tmp_path / "new")
    monkeypatch.undo()
    assert not (tmp_path / "new").exists()


def test_answers_that_cannot_be_written_are_one_clear_line_and_leave_the_older_ones(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.json"
    out.write_text("older")
    options = ("--task", world.task, "--data", world.data, "--store", world.store, "--base", world.base)
    with monkeypatch.context() as patch:
        patch.setattr("oppu.store.files.os.replace", failing(errno.ENOSPC))
        assert refused("predict", *options, "--out", out).startswith(f"{out}: the disk is full; free some space")
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_ctrl_c_says_that_nothing_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("oppu.train._backward", interrupt)
    options = ("--task", world.task, "--data", world.data, "--store", world.store, "--base", world.base)
    with nothing_lost(world.store):
        ran = oppu("personalize", *options, *SMALL, "--seed", "1")
    assert ran.code == 130
    assert "oppu: interrupted; what was finished is kept, and the same command goes on from there" in ran.err


def test_an_unknown_option_is_exit_code_2() -> None:
    ran = oppu("ask", "--nope")
    assert ran.code == 2
    assert "No such option" in ran.err


def test_the_module_runs_as_a_program_and_fails_with_one_line_on_standard_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "oppu.cli", "modules", "list", "--store", str(tmp_path / "none")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    expected = f"oppu: {tmp_path / 'none'}: there is no store; `oppu personalize` makes one\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", expected)
