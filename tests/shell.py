"""The command line within the tests' own process: commands, what they leave, and a world for them to work in."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toys import COLOUR, colour_user, tiny_base_folder, write_release

from oppu.cli import main
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


def make_world(place: Path) -> World:
    """Of two users, ann and bob, and one held-out user."""
    users = [colour_user("ann", 4, queries=2), colour_user("bob", 2)]
    data = write_release(place / "data", users, [colour_user("x", 3)])
    world = World(tiny_base_folder(place / "tiny"), write_task(place / "colour.toml", COLOUR), data, place / "store")
    done("personalize", "--task", world.task, "--data", data, "--store", world.store, "--base", world.base, *SMALL)
    return world


@contextmanager
def nothing_lost(store: Path) -> Iterator[None]:
    """The store's files and its list of modules are afterwards what they were before."""
    before, listed = contents(store), done("modules", "list", "--store", store, "--all")
    yield
    assert contents(store) == before
    assert done("modules", "list", "--store", store, "--all") == listed
