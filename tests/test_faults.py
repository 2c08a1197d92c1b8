"""Processes killed with -9 at random moments, again and again: nobody is lost, torn or trained twice."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from forks import environment
from shell import write_task
from store_samples import module_folders, rows_with
from toys import COLOUR, colour_user, tiny_base_folder, write_release

from oppu.data import read_dataset
from oppu.model.module import Module
from oppu.records import User
from oppu.store import Store

KILLS = 20
HITS = 15
"""Of the kills, at least so many must come while users are being trained."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class House:
    """A base, a task and data on disk, and what an undisturbed run makes of them."""

    folder: Path
    users: Sequence[User]
    modules: dict[str, Module]

    def command(self, store: Path) -> list[str]:
        """`oppu personalize` of everybody into a store."""
        names = {"--task": "colour.toml", "--data": "data", "--base": "tiny"}
        places = [part for option, name in names.items() for part in (option, str(self.folder / name))]
        settings = ["--epochs", "1", "--batch-size", "2", "--rank", "2", "--slots", "3"]
        return ["personalize", *places, "--store", str(store), *settings]


def make_house(folder: Path, *sizes: int) -> House:
    users = [colour_user(f"u{number:03}", size, queries=1) for number, size in enumerate(sizes)]
    tiny_base_folder(folder / "tiny")
    write_task(folder / "colour.toml", COLOUR)
    write_release(folder / "data", users)
    house = House(folder, read_dataset(folder / "data", COLOUR).users, {})
    process = start(house.command(folder / "undisturbed"))
    out, _ = process.communicate()
    assert out.startswith(f"{len(users)} trained; ")
    return House(folder, house.users, checked_modules(folder / "undisturbed", house.users))


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "oppu.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def checked_modules(folder: Path, users: Sequence[User]) -> dict[str, Module]:
    """What `modules_in` gives of the store in a folder."""
    with Store(folder) as store:
        return modules_in(store, users)


def modules_in(store: Store, users: Sequence[User]) -> dict[str, Module]:
    """Everyone's only module, each in its first version and whole; nothing else lies in the store."""
    records = store.modules()
    assert [record.user_id for record in records] == sorted(user.id for user in users)
    assert {record.version for record in records} == {1}
    assert all(store.history(user.id, COLOUR.name) == user.history for user in users)
    found = {record.user_id: store.load_module(record) for record in records}  # checks size and digest
    assert module_folders(store) == sorted(record.location for record in records)
    assert "puts" not in rows_with(store, "")  # no note of a put under way
    return found


def assert_undisturbed(found: dict[str, Module], expected: dict[str, Module]) -> None:
    assert found.keys() == expected.keys()
    for user_id, module in expected.items():
        a, b = (torch.cat([m.tensors[n].flatten() for n in sorted(m.tensors)]) for m in (found[user_id], module))
        assert (a - b).norm() / b.norm() < 1e-4, user_id


# One interpreter that has imported everything, and started no thread, forks a child for each run. A child tells of the
# first pass of training (T), of each user as the caller hears of it, and of the end (E).
_FORKING = """
import json, os, random, signal, sqlite3, sys, time
from contextlib import closing
from pathlib import Path

from forks import ended, fork
from oppu.data import read_dataset
from oppu.model.base import load_base
from oppu.model.kinds import LoraConfig
from oppu.personalize import Plan, personalize
from oppu.recipes import recipe_for
from oppu.store import Store
from oppu.tasks import find_task
from oppu.train import Machine
from dataclasses import replace
from transformers.utils import logging

logging.disable_progress_bar()

folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def work(place, tell):
    task, base = find_task(str(folder / "colour.toml")), load_base(str(folder / "tiny"))
    config = replace(recipe_for(base.family, task).personal, epochs=1, batch_size=2, module=LoraConfig(2, 2))
    told = []
    def began(_):
        if not told:
            told.append(tell("T"))
    with Store(place) as store:
        users = read_dataset(folder / "data", task).users
        for result in personalize(store, base, Plan(task, config), users, machine=Machine(3), on_progress=began):
            tell(f"{result.status} {result.user_id}")
    tell("E")

child, said = fork(folder / "measured", work)
assert said.readline() == "T\\n"
began = time.monotonic()
assert ended(child, said)[0] == 0
length = time.monotonic() - began

chance, number, done = random.Random(seed), 0, 0
while done < kills:
    place = folder / f"killed-{number}"
    number += 1
    code = None
    while code != 0:
        child, said = fork(place, work)
        delay, hit = chance.uniform(0, length / 2), False
        if said.readline() == "T\\n" and done < kills:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        code, told = ended(child, said)
        assert code in (0, -signal.SIGKILL), code
        done += code != 0
        lines = [line for line in told if " " in line]
        with closing(sqlite3.connect(place / "oppu.db")) as database:
            (puts,) = database.execute("SELECT count(*) FROM puts").fetchone()
        print(json.dumps({"store": place.name, "code": code, "delay": delay, "lines": lines, "puts": puts}), flush=True)
"""


def test_personalize_killed_again_and_again_loses_nobody(tmp_path: Path, seed: int) -> None:
    house = make_house(tmp_path, *(1 + number % 8 for number in range(24)))
    command = [sys.executable, "-W", "ignore", "-c", _FORKING, str(tmp_path), str(KILLS), str(seed)]
    out = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True).stdout
    runs = [json.loads(line) for line in out.splitlines()]
    killed = [run for run in runs if run["code"] == -signal.SIGKILL]
    assert len(killed) == KILLS
    # a run that was killed before it reported everybody was killed while it trained or committed
    said = [{line.split(" ")[1] for line in run["lines"]} for run in killed]
    hits = [run for run, users in zip(killed, said, strict=True) if len(users) < len(house.users)]
    in_a_put = sum(run["puts"] > 0 for run in killed)
    print(f"{len(hits)} kills in training, {in_a_put} of them in a put")
    assert len(hits) >= HITS
    assert in_a_put > 0
    for place in {run["store"] for run in runs}:
        trained = Counter(
            line.removeprefix("trained ")
            for run in runs
            for line in run["lines"]
            if run["store"] == place and line.startswith("trained ")
        )
        assert max(trained.values()) == 1
        assert_undisturbed(checked_modules(tmp_path / place, house.users), house.modules)


class Killer(threading.Thread):
    """Kills workers of a run with -9, each at a random moment after it has begun to train, until there were enough."""

    def __init__(self, driver: int, chance: random.Random, most: int) -> None:
        super().__init__()
        self.killed = 0
        self._driver = psutil.Process(driver)
        self._chance = chance
        self._most = most
        self._ends: dict[int, float] = {}

    def run(self) -> None:
        while self.killed < self._most and self._driver.is_running():
            for process in training_workers(self._driver):
                end = self._ends.setdefault(process.pid, time.monotonic() + self._chance.uniform(0, 2))
                if end <= time.monotonic() and self.killed < self._most:
                    process.kill()
                    process.wait()
                    self.killed += 1
            time.sleep(0.05)


def training_workers(driver: psutil.Process) -> Iterator[psutil.Process]:
    """Ray names a process after what it does."""
    try:
        for process in driver.children(recursive=True):
            if process.cmdline()[:1] == ["ray::Worker.run"]:
                yield process
    except psutil.Error:  # it has gone since
        return


def test_ray_workers_killed_again_and_again_lose_nobody(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("ray")
    house = make_house(tmp_path, *(1 + number % 6 for number in range(400)))
    chance, killed, hits = random.Random(seed), 0, 0
    for number in range(KILLS):
        store = tmp_path / f"killed-{number}"
        with start([*house.command(store), "--ray", "local", "--ray-workers", "2"]) as process:
            killer = Killer(process.pid, chance, KILLS - killed)
            killer.start()
            out, err = process.communicate()
            killer.join()
        killed += killer.killed
        hits += err.count("given out again: ")
        assert process.returncode == 0, err
        assert sum(int(part.split(" ")[0]) for part in out.split(";")[0].split(", ")) == len(house.users), out
        assert_undisturbed(checked_modules(store, house.users), house.modules)
        print(f"run {number}: {killed} kills, {hits} in training; {out.strip()}")
        if killed == KILLS:
            break
    assert killed == KILLS
    assert hits >= HITS


@pytest.fixture
def seed() -> int:
    """Of the random moments, printed when a test fails; OPPU_FAULT_SEED repeats them."""
    given = int(os.environ.get("OPPU_FAULT_SEED", time.time_ns() % 1_000_000))
    print(f"OPPU_FAULT_SEED={given}")
    return given
