"""Killed with -9 in any stage, an experiment goes on where it was: the same results, and hardly a step taken twice."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forks import environment
from interruptions import (
    SETTINGS,
    assert_nothing_under_way,
    difference,
    modules,
    results,
    steps_of,
    undisturbed,
    written,
)
from shell import write_task
from store_samples import module_folders
from toys import COLOUR, colour_user, colour_users, tiny_base_folder, write_release

from oppu.evaluate.design import Experiment
from oppu.model.base import load_base
from oppu.store import Store

USERS, SLOTS = 3, 2
EVERY_S = 0.1
"""How often runs that are killed keep what is under way."""
STEP_S = 0.02
"""What a pass takes at least, so that it is known how many fit between two checkpoints."""
LOST = round(EVERY_S / STEP_S) + 2
"""Steps of a user that a kill may cost: those between two checkpoints, and two more."""

KILLS = (
    ("adapting the base (plain)", 0.3, 0.6),
    ("oppu k=0: training", 0.25, 0.4),
    ("oppu k=0: training", 0.2, 0.4),
    ("oppu k=0: answers", 0.2, 0.7),
    ("adapting the base (bm25-k1)", 0.3, 0.6),
)
"""The stages in which a run is killed, in order, each between these shares of the stage's news."""

# One interpreter that has imported everything, and started no thread, forks a child for each run. Children tell of each
# news of a stage, and write each optimizer step of each user to a file.
_FORKING = """
import json, os, random, signal, sys, time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import oppu.train
from forks import ended, fork
from oppu.data import read_dataset
from oppu.evaluate import experiment
from oppu.model.base import load_base
from oppu.personalize import Plan, personalize
from oppu.store import Store
from oppu.tasks import find_task
from oppu.train import Machine
from interruptions import SETTINGS
from test_resume import EVERY_S, KILLS, SLOTS, STEP_S, wanted
from toys import colour_users
from transformers.utils import logging

logging.disable_progress_bar()
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
task = find_task(str(folder / "colour.toml"))
dataset = read_dataset(folder / "data", task)

def work(place, tell):
    steps = os.open(folder / f"{place.name}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    update = oppu.train._update
    def counted(bank, learners, *rest):
        update(bank, learners, *rest)
        for learner in learners:
            os.write(steps, f"{learner.user_id} {learner.step}\\n".encode())
    def on_stage(stage):
        tell(stage.name)
        time.sleep(STEP_S)
    machine = Machine(SLOTS, checkpoint_s=EVERY_S)
    with patch.object(oppu.train, "_update", counted), patch.object(experiment, "write_report", lambda *_: None):
        experiment.run(wanted(task, folder), dataset, place, machine=machine, on_stage=on_stage)

def work_until_the_commit(place, tell):
    killed = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    with Store(place) as store, patch.object(Store, "put_module_once", killed):
        base, plan = load_base(str(folder / "tiny")), Plan(task, SETTINGS)
        list(personalize(store, base, plan, colour_users(6), machine=Machine(1, checkpoint_s=0)))

child, said = fork(folder / "undisturbed", work)
code, lines = ended(child, said)
assert code == 0
news = Counter(lines)

chance, began = random.Random(seed), time.monotonic()
for stage, low, high in KILLS:
    wait = round(news[stage] * chance.uniform(low, high))
    child, said = fork(folder / "killed", work)
    while wait:
        line = said.readline()
        assert line, f"it ended before it was killed in {stage}"
        wait -= line == stage + "\\n"
    time.sleep(chance.uniform(0, 2 * STEP_S))
    os.kill(child, signal.SIGKILL)
    assert ended(child, said)[0] == -signal.SIGKILL
child, said = fork(folder / "killed", work)
assert ended(child, said)[0] == 0
assert ended(*fork(folder / "at the commit", work_until_the_commit))[0] == -signal.SIGKILL
print(json.dumps({"news": news, "seconds": time.monotonic() - began}))
"""


def wanted(task: Any, folder: Path) -> Experiment:
    """An experiment with every stage: two adaptions, a training, and answers with and without modules."""
    return Experiment(task, ("oppu", "rag"), (1,), str(folder / "tiny"), SETTINGS, SETTINGS)


@pytest.fixture(scope="module")
def seed() -> int:
    """Of the random moments, printed when a test fails; OPPU_FAULT_SEED repeats them."""
    given = int(os.environ.get("OPPU_FAULT_SEED", time.time_ns() % 1_000_000))
    print(f"OPPU_FAULT_SEED={given}")
    return given


@dataclass(frozen=True)
class Killed:
    """What the killed runs, and the undisturbed one, have left in a folder."""

    folder: Path
    news: Mapping[str, int]
    """Of the undisturbed run, by stage."""
    seconds: float
    """Of all killed runs of the experiment together."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    users = [colour_user(f"u{number}", 24, queries=8) for number in range(USERS)]
    write_release(folder / "data", users, [colour_user("x", 10), colour_user("y", 10)])
    write_task(folder / "colour.toml", COLOUR)
    tiny_base_folder(folder / "tiny")
    command = [sys.executable, "-W", "ignore", "-c", _FORKING, str(folder), str(seed)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(), check=True)
    return Killed(folder, **json.loads(ran.stdout))


@pytest.mark.slow
def test_an_experiment_killed_in_every_stage_ends_as_the_undisturbed_one(house: Killed) -> None:
    undisturbed, killed = house.folder / "undisturbed", house.folder / "killed"
    assert written(killed) == written(undisturbed)
    assert_same_store(killed / "store", undisturbed / "store")
    assert not (killed / "under-way").exists()
    assert {path.name for path in (killed / "store" / "bases").iterdir()} == {"colour-plain", "colour-bm25-k1"}
    # the work of a kill is done again, and no more
    taken, needed = (
        Counter((house.folder / f"{name}.steps").read_text().split("\n")) for name in ("killed", "undisturbed")
    )
    assert taken.keys() == needed.keys()
    adapting = sum("adapting" in stage for stage, *_ in KILLS)
    training = sum("training" in stage for stage, *_ in KILLS)
    assert sum(taken.values()) - sum(needed.values()) <= LOST * (adapting + SLOTS * training)
    # the seconds are those of all runs together
    (seconds,) = [row["seconds"] for row in results(killed)["rows"] if row["method"] == "oppu"]
    least = STEP_S * (house.news["oppu k=0: training"] - USERS + house.news["oppu k=0: answers"])
    assert least - 3 * (EVERY_S + 2 * STEP_S) < seconds < house.seconds


def assert_same_store(found: Path, expected: Path) -> None:
    """The same bases to the last bit, the same modules and losses, and nothing under way."""
    with Store(found) as left, Store(expected, read_only=True) as right:
        assert [(b.name, b.fingerprint) for b in left.bases()] == [(b.name, b.fingerprint) for b in right.bases()]
        assert [(r.user_id, r.setting, r.version) for r in left.modules()] == [
            (r.user_id, r.setting, r.version) for r in right.modules()
        ]
        for mine, theirs in zip(left.modules(), right.modules(), strict=True):
            assert difference(left.load_module(mine), right.load_module(theirs)) < 1e-4
            assert mine.training["losses"] == pytest.approx(theirs.training["losses"], rel=1e-3)
        assert module_folders(left) == sorted(record.location for record in left.modules())
        assert_nothing_under_way(left)


@pytest.mark.slow
def test_killed_between_the_last_step_and_the_commit_only_the_last_step_is_taken_again(
    house: Killed, tmp_path: Path
) -> None:
    base = load_base(str(house.folder / "tiny"))
    with Store(house.folder / "at the commit") as opened:
        assert opened.modules() == ()
        assert steps_of(opened, base, colour_users(6)) == 1
        expected = undisturbed(tmp_path / "undisturbed", base, colour_users(6))
        assert difference(modules(opened)["a"], expected["a"]) == 0.0
        assert_nothing_under_way(opened)
