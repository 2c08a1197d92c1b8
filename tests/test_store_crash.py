"""Processes that are killed with -9, and processes that work at once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from store_samples import HISTORY, files_with, module_folders, same, tiny_module, whose

from oppu.errors import UnknownUserError
from oppu.store import Store

_TESTS = Path(__file__).parent
_OLD = tiny_module(1)
_NEW = tiny_module(2)

# Each point: what is replaced, and whether the kill comes before or after the real call.
_PUT_POINTS = {
    "half the weights are written": ("pathlib.Path.write_bytes", "half"),
    "the files are written": ("oppu.store.modules.write_module", "after"),
    "the files are synced": ("oppu.store.modules.sync_tree", "after"),
    "the place is named": ("oppu.store.modules.make_folders", "after"),
    "the rename is next": ("os.rename", "before"),
    "the rename is done": ("os.rename", "after"),
    "the commit is next": ("oppu.store.modules.sync_folder", "after"),
    "the commit is done": ("shutil.rmtree", "before"),
}
_DELETE_POINTS = {
    "the mark is set": ("oppu.store.deletion.remove_tree", "before"),
    "the first file is gone": ("os.unlink", "after"),
    "the files are gone": ("oppu.store.deletion.remove_tree", "after"),
    "the rows are gone": ("oppu.store.database.Database.checkpoint", "before"),
}

# One interpreter forks a child per point, so that torch is imported once.
_SCRIPT = """
import os, signal, sys
from pathlib import Path
from unittest.mock import patch
from pkgutil import resolve_name
from store_samples import HISTORY, tiny_module, whose
from oppu.store import Store

act, folders, places, whens = sys.argv[1], *(argument.split(";") for argument in sys.argv[2:])

def run(folder, place, when):
    owner, name = place.rsplit(".", 1)
    owner = resolve_name(owner)
    real = getattr(owner, name)
    def killed(*arguments, **named):
        if when == "half":
            real(arguments[0], arguments[1][:50])
        if when == "after":
            real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    store = Store(Path(folder))
    with patch.object(owner, name, killed):
        if act == "put":
            store.put_module(tiny_module(2), **whose("ann"))
        else:
            store.delete_user("ann")

for folder, place, when in zip(folders, places, whens, strict=True):
    child = os.fork()
    if child == 0:
        run(folder, place, when)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def kill_at(points: dict[str, tuple[str, str]], act: str, root: Path) -> dict[str, Path]:
    """A store per point, with one module and a history of two users, in which `act` was killed at that point."""
    stores = {point: root / f"store-{number}" for number, point in enumerate(points)}
    for folder in stores.values():
        with Store(folder) as store:
            for user in ("ann", "bob"):
                store.put_history(user, "movie_tagging", HISTORY)
                store.put_module(_OLD, **whose(user))
    lists = (map(str, stores.values()), (p for p, _ in points.values()), (w for _, w in points.values()))
    script = [sys.executable, "-c", _SCRIPT, act, *(";".join(values) for values in lists)]
    codes = subprocess.run(script, cwd=_TESTS, env=environment(), capture_output=True, text=True, check=True).stdout
    assert codes.split() == [str(-signal.SIGKILL)] * len(points)
    return stores


def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{_TESTS.parent}:{_TESTS}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def killed_puts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return kill_at(_PUT_POINTS, "put", tmp_path_factory.mktemp("puts"))


@pytest.fixture(scope="module")
def killed_deletions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return kill_at(_DELETE_POINTS, "delete", tmp_path_factory.mktemp("deletions"))


@pytest.mark.parametrize("point", _PUT_POINTS)
def test_a_put_killed_when(killed_puts: dict[str, Path], point: str) -> None:
    """The old version is whole, the new one is there wholly or not at all, and no garbage is left."""
    folder = killed_puts[point]
    assert list((folder / "tmp").iterdir())
    with Store(folder) as store:
        records = store.modules(user_id="ann")
        assert [record.version for record in records] == ([1, 2] if point == "the commit is done" else [1])
        for record, module in zip(records, (_OLD, _NEW), strict=False):
            assert same(store.load_module(record), module)
        assert list((folder / "tmp").iterdir()) == []
        assert module_folders(folder) == sorted(record.path for record in store.modules())
        again = store.put_module(_NEW, **whose("ann"))
        assert again.version == len(records) + 1
        assert same(store.load_module(again), _NEW)


def test_a_store_that_stayed_open_puts_over_what_a_killed_put_left(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        orphan = store.put_module(_OLD, **whose("ann"))
        with store._database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM modules")
        again = store.put_module(_NEW, **whose("ann"))
        assert again.path == orphan.path
        assert same(store.load_module(again), _NEW)


@pytest.mark.parametrize("point", _DELETE_POINTS)
def test_a_deletion_killed_when(killed_deletions: dict[str, Path], point: str) -> None:
    """Nobody sees the user any more, the next opening removes the last trace, and others keep all."""
    folder = killed_deletions[point]
    if point != "the rows are gone":
        with Store(folder, read_only=True) as store:
            assert store.users() == ("bob",)
            assert store.modules(user_id="ann") == ()
            assert store.find_module("ann", "movie_tagging") is None
            with pytest.raises(UnknownUserError):
                store.history("ann", "movie_tagging")
    with Store(folder) as store:
        assert files_with(folder, "ann") == []
        assert store.history("bob", "movie_tagging") == HISTORY
        (kept,) = store.modules()
        assert module_folders(folder) == [kept.path]
        assert same(store.load_module(kept), _OLD)


_PUT_MANY = """
import sys, time
from pathlib import Path
from store_samples import HISTORY, tiny_module, whose
from oppu.store import Store
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
Path(f"{folder}.ready-{seed}").touch()
while not Path(f"{folder}.go").exists():
    time.sleep(0.001)
with Store(folder) as store:
    for number in range(10):
        store.put_history(f"user-{seed}", "movie_tagging", HISTORY)
        store.put_module(tiny_module(seed), **whose("ann", training={"by": seed, "number": number}))
"""


def test_two_processes_put_at_once_from_the_first_moment(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    commands = [[sys.executable, "-c", _PUT_MANY, str(folder), str(seed)] for seed in (1, 2)]
    processes = [
        subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for command in commands
    ]
    while not all(Path(f"{folder}.ready-{seed}").exists() for seed in (1, 2)):
        assert all(process.poll() is None for process in processes)
    Path(f"{folder}.go").touch()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    with Store(folder) as store:
        records = store.modules(user_id="ann")
        assert [record.version for record in records] == list(range(1, 21))
        for seed in (1, 2):
            mine = [record for record in records if record.training["by"] == seed]
            assert [record.training["number"] for record in mine] == list(range(10))
            assert all(same(store.load_module(record), tiny_module(seed)) for record in mine)
        assert store.users() == ("ann", "user-1", "user-2")
