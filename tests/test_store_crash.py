"""Processes that are killed with -9, and processes that work at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Servers
from store_samples import (
    HISTORY,
    files_with,
    held,
    module_folders,
    notes,
    rows_with,
    same,
    tiny_module,
    under_way,
    whose,
)

from oppu.errors import UnknownUserError
from oppu.store import Store
from oppu.store.files import temporary_name

Address = tuple[str, str | None]

_TESTS = Path(__file__).parent
_OLD = tiny_module(1)
_NEW = tiny_module(2)

# Each point: what is replaced, and whether the kill comes before or after the real call.
_PUT_POINTS = {
    "folder: the note is made": ("oppu.store.folder.Folder.write", "before"),
    "folder: half the weights are written": ("pathlib.Path.write_bytes", "half"),
    "folder: the files are written": ("oppu.store.folder.sync_tree", "before"),
    "folder: the files are synced": ("oppu.store.folder.Folder.write", "after"),
    "folder: the note is ended": ("oppu.store.notes.end", "after"),
    "folder: the commit is next": ("oppu.store.modules.utc_now", "after"),
    "folder: the commit is done, the checkpoint's file is there": ("oppu.store.notes.settle", "before"),
    "folder: the commit is done": ("oppu.store.modules._put_record", "before"),
    "cluster: the note is made": ("oppu.store.objects.Objects.write", "before"),
    "cluster: one object is there": ("s3fs.core.S3FileSystem._pipe_file", "after"),
    "cluster: the objects are there": ("oppu.store.objects.Objects.write", "after"),
    "cluster: the note is ended": ("oppu.store.notes.end", "after"),
    "cluster: the commit is next": ("oppu.store.modules.utc_now", "after"),
    "cluster: the commit is done, the checkpoint's file is there": ("oppu.store.notes.settle", "before"),
    "cluster: the commit is done": ("oppu.store.modules._put_record", "before"),
}
_KEEP_POINTS = {
    "folder: the note is made": ("oppu.store.folder.Folder.write", "before"),
    "folder: half the file is written": ("pathlib.Path.write_bytes", "half"),
    "folder: the file is there": ("oppu.store.folder.Folder.write", "after"),
    "folder: the note is ended": ("oppu.store.notes.end", "after"),
    "folder: the commit is done": ("oppu.store.notes.settle", "before"),
    "folder: the old file is gone, the commit is done": ("oppu.store.folder.Folder.remove", "after"),
    "cluster: the file is there": ("oppu.store.objects.Objects.write", "after"),
    "cluster: the note is ended": ("oppu.store.notes.end", "after"),
    "cluster: the commit is done": ("oppu.store.notes.settle", "before"),
    "cluster: the old file is gone, the commit is done": ("oppu.store.objects.Objects.remove", "after"),
}
_DELETE_POINTS = {
    "folder: the mark is set": ("oppu.store.folder.Folder.remove", "before"),
    "folder: the first file is gone": ("os.unlink", "after"),
    "folder: the files are gone": ("oppu.store.folder.Folder.remove", "after"),
    "folder: the rows are gone": ("oppu.store.database.Database.wipe", "before"),
    "cluster: the mark is set": ("oppu.store.objects.Objects.remove", "before"),
    "cluster: the first object is gone": ("s3fs.core.S3FileSystem._call_s3", "after"),
    "cluster: the objects are gone": ("oppu.store.objects.Objects.remove", "after"),
    "cluster: the rows are gone": ("oppu.store.database.Database.wipe", "before"),
}

# One interpreter forks a child per point, so that torch is imported once.
_SCRIPT = """
import os, signal, sys
from pathlib import Path
from unittest.mock import patch
from pkgutil import resolve_name
from store_samples import HISTORY, tiny_module, under_way, whose
from oppu.store import Store

act, addresses, places, whens = sys.argv[1], *(argument.split(";") for argument in sys.argv[2:])

def run(address, place, when):
    owner, name = place.rsplit(".", 1)
    owner = resolve_name(owner)
    real = getattr(owner, name)
    def killed(*arguments, **named):
        if when == "half":
            real(arguments[0], arguments[1][:50])
        if when == "after":
            real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    async def killed_within(*arguments, **named):
        await real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    store = Store(*address.split(" "))
    if "S3FileSystem" in place:
        killed = killed_within
    with patch.object(owner, name, killed):
        if act == "put":
            store.put_module(tiny_module(2), **whose("ann"))
        elif act == "keep":
            store.put_checkpoints([under_way("ann", b"further")])
        else:
            store.delete_user("ann")

for address, place, when in zip(addresses, places, whens, strict=True):
    child = os.fork()
    if child == 0:
        run(address, place, when)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def kill_at(points: dict[str, tuple[str, str]], act: str, root: Path, cluster: Servers) -> dict[str, Address]:
    """A store per point in which `act` was killed; two users have a history, a module and the next one under way."""
    stores: dict[str, Address] = {
        point: cluster.addresses() if point.startswith("cluster") else (str(root / f"store-{number}"), None)
        for number, point in enumerate(points)
    }
    for address in stores.values():
        with Store(*address) as store:
            for user in ("ann", "bob"):
                store.put_history(user, "movie_tagging", HISTORY)
                store.put_module(_OLD, **whose(user))
                store.put_checkpoints([under_way(user)])
    addresses = (" ".join(part for part in address if part is not None) for address in stores.values())
    lists = (addresses, (p for p, _ in points.values()), (w for _, w in points.values()))
    script = [sys.executable, "-c", _SCRIPT, act, *(";".join(values) for values in lists)]
    codes = subprocess.run(script, cwd=_TESTS, env=environment(), capture_output=True, text=True, check=True).stdout
    assert codes.split() == [str(-signal.SIGKILL)] * len(points)
    return stores


def environment() -> dict[str, str]:
    """For a process of its own; what leads to S3 is passed on."""
    storage = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    path = os.pathsep.join([str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")])
    return storage | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def killed_puts(tmp_path_factory: pytest.TempPathFactory, cluster: Servers) -> dict[str, Address]:
    return kill_at(_PUT_POINTS, "put", tmp_path_factory.mktemp("puts"), cluster)


@pytest.fixture(scope="module")
def killed_keeps(tmp_path_factory: pytest.TempPathFactory, cluster: Servers) -> dict[str, Address]:
    return kill_at(_KEEP_POINTS, "keep", tmp_path_factory.mktemp("keeps"), cluster)


@pytest.fixture(scope="module")
def killed_deletions(tmp_path_factory: pytest.TempPathFactory, cluster: Servers) -> dict[str, Address]:
    return kill_at(_DELETE_POINTS, "delete", tmp_path_factory.mktemp("deletions"), cluster)


@pytest.mark.parametrize("point", _PUT_POINTS)
def test_a_put_killed_when(killed_puts: dict[str, Address], point: str) -> None:
    """The old version is whole, the new one is there wholly or not at all, and no garbage is left.

    A checkpoint is there until its module is.
    """
    address = killed_puts[point]
    done = "the commit is done" in point
    with Store(*address, read_only=True) as store:
        assert notes(store) == (0 if point.endswith("the commit is done") else 1)
        assert held(store, "ann") == (None if done else b"under way")
        records = store.modules(user_id="ann")
        assert [record.version for record in records] == ([1, 2] if done else [1])
    with Store(*address) as store:
        assert store.modules(user_id="ann") == records
        for record, module in zip(records, (_OLD, _NEW), strict=False):
            assert same(store.load_module(record), module)
        assert notes(store) == 0
        assert module_folders(store) == sorted(record.location for record in store.modules())
        assert len(module_folders(store, "checkpoints")) == (1 if done else 2)
        assert held(store, "bob") == b"under way"
        again = store.put_module(_NEW, **whose("ann"))
        assert again.version == len(records) + 1
        assert same(store.load_module(again), _NEW)


@pytest.mark.parametrize("point", _KEEP_POINTS)
def test_a_checkpoint_killed_when(killed_keeps: dict[str, Address], point: str) -> None:
    """The old one is whole or the new one is, and no garbage is left."""
    address = killed_keeps[point]
    with Store(*address) as store:
        assert held(store, "ann") == (b"further" if "the commit is done" in point else b"under way")
        assert held(store, "bob") == b"under way"
        assert len(module_folders(store, "checkpoints")) == 2
        assert notes(store) == 0
        store.put_checkpoints([under_way("ann", b"further still")])
        assert held(store, "ann") == b"further still"
        assert len(module_folders(store, "checkpoints")) == 2


def test_what_a_put_of_the_first_schema_left_is_cleared(tmp_path: Path) -> None:
    """Its module had its place, and its row was not committed."""
    with Store(tmp_path) as store:
        kept = store.put_module(_OLD, **whose("ann"))
    dead = subprocess.Popen(["true"])
    dead.wait()
    work = tmp_path / "tmp" / temporary_name("put").replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    orphan = tmp_path / "modules" / "0a" / ("0a" * 16) / "movie_tagging" / "k0" / ("f" * 12) / "v0001"
    for folder in (work, orphan):
        folder.mkdir(parents=True)
    (work / "target").write_text(str(orphan.relative_to(tmp_path)))
    with Store(tmp_path) as store:
        assert not (tmp_path / "modules" / "0a").exists()
        assert list((tmp_path / "tmp").iterdir()) == []
        assert same(store.load_module(kept), _OLD)


@pytest.mark.parametrize("point", _DELETE_POINTS)
def test_a_deletion_killed_when(killed_deletions: dict[str, Address], point: str) -> None:
    """Nobody sees the user any more, the next opening removes the last trace, and others keep all."""
    address = killed_deletions[point]
    if "the rows are gone" not in point:
        with Store(*address, read_only=True) as store:
            assert store.users() == ("bob",)
            assert store.modules(user_id="ann") == ()
            assert store.find_module("ann", "movie_tagging") is None
            with pytest.raises(UnknownUserError):
                store.history("ann", "movie_tagging")
    with Store(*address) as store:
        assert rows_with(store, "ann") == []
        assert store.files is not None or files_with(store.folder, "ann") == []
        assert store.history("bob", "movie_tagging") == HISTORY
        (kept,) = store.modules()
        assert module_folders(store) == [kept.location]
        assert same(store.load_module(kept), _OLD)
        assert held(store, "bob") == b"under way"
        assert len(module_folders(store, "checkpoints")) == 1


_PUT_MANY = """
import sys, time
from pathlib import Path
from store_samples import HISTORY, tiny_module, whose
from oppu.store import NewModule, Store
signs, seed, address = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
(signs / f"ready-{seed}").touch()
while not (signs / "go").exists():
    time.sleep(0.001)
with Store(*address) as store:
    for number in range(5):
        store.put_history(f"user-{seed}", "movie_tagging", HISTORY)
        training = {"by": seed, "number": number}
        store.put_module(tiny_module(seed), **whose("ann", training=training))
        together = [whose(user, training=training) for user in ("cid", "bea", "dan", "cid")[::1 if seed == 1 else -1]]
        store.put_modules([NewModule(tiny_module(seed), **each) for each in together])
"""


@pytest.mark.parametrize("sort", ["folder", "cluster"])
def test_two_processes_put_at_once_from_the_first_moment(
    sort: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = [str(tmp_path / "store")]
    if sort == "cluster":
        address = list(request.getfixturevalue("cluster").addresses())
    commands = [[sys.executable, "-c", _PUT_MANY, str(tmp_path), str(seed), *address] for seed in (1, 2)]
    processes = [
        subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for command in commands
    ]
    while not all((tmp_path / f"ready-{seed}").exists() for seed in (1, 2)):
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    with Store(*address) as store:
        records = store.modules(user_id="ann")
        assert [record.version for record in records] == list(range(1, 11))
        for seed in (1, 2):
            mine = [record for record in records if record.training["by"] == seed]
            assert [record.training["number"] for record in mine] == list(range(5))
            assert all(same(store.load_module(record), tiny_module(seed)) for record in mine)
        assert store.users() == ("ann", "bea", "cid", "dan", "user-1", "user-2")
        versions = {user: [record.version for record in store.modules(user)] for user in ("bea", "cid", "dan")}
        assert versions == {user: list(range(1, 21 if user == "cid" else 11)) for user in versions}
        assert notes(store) == 0
