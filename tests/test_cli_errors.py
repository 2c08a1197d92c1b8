"""What the command line says where something is wrong: one clear line, exit code 2, and nothing is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import tiny_model, tiny_tokenizer
from shell import SMALL, World, done, nothing_lost, oppu, refused, rows
from toys import COLOUR, colour_user, write_release

from oppu.model.bank import Bank
from oppu.model.base import make_base, save_base
from oppu.model.kinds import LoraConfig
from oppu.model.module import WEIGHTS, write_module
from oppu.tasks import task_to_toml


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


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


def test_bases_of_a_mistyped_run_are_refused_before_anything_is_made(world: World, tmp_path: Path) -> None:
    options = ("--task", world.task, "--data", world.data, "--base", world.base, "--bases", tmp_path / "none")
    for command in (("experiment",), ("study", "items")):
        line = refused(*command, *options, "--out", tmp_path / "out")
        assert line == f"{tmp_path / 'none'}: is no folder; give the folder of a run, a study or a store"
    assert not (tmp_path / "out" / "store").exists()


def test_an_import_that_rounds_no_named_base_is_refused(world: World, tmp_path: Path) -> None:
    line = refused("modules", "import", tmp_path, "--store", tmp_path / "new", "--quantize", "8bit")
    assert line == "--quantize: no base is named that could be rounded; leave out --quantize, or add --base"
    assert not (tmp_path / "new").exists()


def test_a_trunk_below_modules_on_all_layers_is_refused(world: World, tmp_path: Path) -> None:
    options = ("--task", world.task, "--data", world.data, "--store", tmp_path / "new", "--trunk", tmp_path / "trunk")
    assert refused("personalize", *options).startswith(
        "--trunk: modules on all layers have no layers below them; leave"
    )
    assert not (tmp_path / "new").exists()


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
        patch.setattr("os.fsync", failing(errno.ENOSPC))
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

    monkeypatch.setattr("oppu.model.engine.answer_log_probs", interrupt)
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
