"""Killed or interrupted at any moment, a run goes on where it was: the same results, and hardly a step taken twice."""

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import write_task
from store_samples import files_with, module_folders, notes, rows_with
from toys import COLOUR, FAST, colour_user, colour_users, tiny_base_folder, write_release

from oppu.adapt import AdaptConfig, adapt_into_store
from oppu.data import read_dataset
from oppu.errors import ConfigError
from oppu.evaluate import experiment as module
from oppu.evaluate.experiment import Experiment, Stage, run
from oppu.evaluate.results import Cell
from oppu.model.base import Base, load_base
from oppu.model.kinds import LoraConfig
from oppu.model.module import Module
from oppu.personalize import Plan, personalize
from oppu.records import Dataset, User
from oppu.store import NewCheckpoint, Store
from oppu.train import Machine, TrainConfig

USERS, SLOTS = 3, 2
EVERY_S = 0.1
"""How often runs that are killed keep what is under way."""
STEP_S = 0.02
"""What a pass takes at least, so that it is known how many fit between two checkpoints."""
LOST = round(EVERY_S / STEP_S) + 2
"""Steps of a user that a kill may cost: those between two checkpoints, and two more."""
SETTINGS = TrainConfig(epochs=2, batch_size=1, learning_rate=1e-2, module=LoraConfig(rank=2, alpha=4))

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
from oppu.data import read_dataset
from oppu.evaluate import experiment
from oppu.model.base import load_base
from oppu.personalize import Plan, personalize
from oppu.store import Store
from oppu.tasks import find_task
from oppu.train import Machine
from test_resume import EVERY_S, KILLS, SETTINGS, SLOTS, STEP_S, wanted
from toys import colour_users
from transformers.utils import logging

logging.disable_progress_bar()
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
task = find_task(str(folder / "colour.toml"))
dataset = read_dataset(folder / "data", task)
assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"

def work(place, tell):
    steps = os.open(folder / f"{place.name}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    update = oppu.train._update
    def counted(bank, learner, *rest):
        update(bank, learner, *rest)
        os.write(steps, f"{learner.user_id} {learner.step}\\n".encode())
    def on_stage(stage):
        tell(stage.name)
        time.sleep(STEP_S)
    machine = Machine(SLOTS, checkpoint_s=EVERY_S)
    with patch.object(oppu.train, "_update", counted), patch.object(experiment, "write_report", lambda *_: None):
        experiment.run(wanted(task, folder), dataset, place, machine=machine, on_stage=on_stage)

def work_until_the_commit(place, tell):
    killed = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    with Store(place) as store, patch.object(Store, "put_module", killed):
        base, plan = load_base(str(folder / "tiny")), Plan(task, SETTINGS)
        list(personalize(store, base, plan, colour_users(6), machine=Machine(1, checkpoint_s=0)))

def fork(place, work=work):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            work(place, lambda line: os.write(writing, (line + "\\n").encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, os.fdopen(reading)

def ended(child, said):
    lines = said.read().split("\\n")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines

child, said = fork(folder / "undisturbed")
code, lines = ended(child, said)
assert code == 0
news = Counter(lines)

chance, began = random.Random(seed), time.monotonic()
for stage, low, high in KILLS:
    wait = round(news[stage] * chance.uniform(low, high))
    child, said = fork(folder / "killed")
    while wait:
        line = said.readline()
        assert line, f"it ended before it was killed in {stage}"
        wait -= line == stage + "\\n"
    time.sleep(chance.uniform(0, 2 * STEP_S))
    os.kill(child, signal.SIGKILL)
    assert ended(child, said)[0] == -signal.SIGKILL
child, said = fork(folder / "killed")
assert ended(child, said)[0] == 0
assert ended(*fork(folder / "at the commit", work_until_the_commit))[0] == -signal.SIGKILL
print(json.dumps({"news": news, "seconds": time.monotonic() - began}))
"""


def wanted(task: Any, folder: Path) -> Experiment:
    """An experiment with every stage: two adaptions, a training, and answers with and without modules."""
    return Experiment(task, ("oppu", "rag"), (1,), str(folder / "tiny"), SETTINGS, SETTINGS)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def base(base_folder: Path) -> Base:
    return load_base(str(base_folder))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


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


def environment() -> dict[str, str]:
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def written(out: Path) -> dict[str, Any]:
    """Tables and predictions, without the times that they took."""
    tables = results(out)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in tables["rows"]]
    return {path.name: path.read_bytes() for path in (out / "predictions").iterdir()} | {"rows": rows}


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


def assert_nothing_under_way(store: Store) -> None:
    assert module_folders(store, "checkpoints") == []
    assert "checkpoints" not in rows_with(store, "")
    assert notes(store) == 0


def difference(left: Module, right: Module) -> float:
    a, b = (torch.cat([m.tensors[name].flatten() for name in sorted(m.tensors)]) for m in (left, right))
    return float((a - b).norm() / b.norm())


# one user's training


class Interrupted(Exception):
    """Ctrl-C, or whatever else."""


def interrupt_after(steps: int) -> Any:
    """A progress callback that ends the run in the next step's first pass."""
    left = steps

    def progress(*_: object) -> None:
        nonlocal left
        if left == 0:
            raise Interrupted
        left -= 1

    return progress


def modules(store: Store) -> dict[str, Module]:
    assert {record.version for record in store.modules()} == {1}
    return {record.user_id: store.load_module(record) for record in store.modules()}


def interrupted(store: Store, base: Base, users: Sequence[User], steps: int, slots: int = 1) -> None:
    """Everyone under way has a checkpoint of the last step that was finished."""
    machine = Machine(slots, checkpoint_s=0)
    with pytest.raises(Interrupted):
        list(personalize(store, base, Plan(COLOUR, SETTINGS), users, None, machine, interrupt_after(steps)))


def undisturbed(place: Path, base: Base, users: Sequence[User], slots: int = 1) -> dict[str, Module]:
    with Store(place) as store:
        list(personalize(store, base, Plan(COLOUR, SETTINGS), users, machine=Machine(slots)))
        return modules(store)


def steps_of(store: Store, base: Base, users: Sequence[User], slots: int = 1) -> int:
    """Passes until everyone has a module."""
    taken: list[object] = []
    plan = Plan(COLOUR, SETTINGS)
    for result in personalize(store, base, plan, users, machine=Machine(slots), on_progress=taken.append):
        assert result.status in ("trained", "kept"), result
    return len(taken)


def test_who_was_under_way_is_gone_on_with_to_the_last_bit(store: Store, base: Base, tmp_path: Path) -> None:
    users = colour_users(6)
    interrupted(store, base, users, 7)
    interrupted(store, base, users, 3)
    assert len(module_folders(store, "checkpoints")) == 1
    assert steps_of(store, base, users) == 12 - 7 - 3
    expected = undisturbed(tmp_path / "undisturbed", base, users)
    assert all(torch.equal(modules(store)["a"].tensors[n], tensor) for n, tensor in expected["a"].tensors.items())
    assert_nothing_under_way(store)


def test_several_users_under_way_go_on_each_from_its_own_step(store: Store, base: Base, tmp_path: Path) -> None:
    users = colour_users(2, 6, 5)  # the first is done when the others are not, and the third begins later
    interrupted(store, base, users, 8, slots=2)
    with Store(store.folder) as other:
        assert [record.user_id for record in other.modules()] == ["a"]
    assert len(module_folders(store, "checkpoints")) == 2
    steps_of(store, base, users, slots=2)
    expected = undisturbed(tmp_path / "undisturbed", base, users, slots=2)
    for user_id, found in modules(store).items():
        assert difference(found, expected[user_id]) < 1e-4
    assert_nothing_under_way(store)


def test_other_settings_or_another_history_begin_anew(store: Store, base: Base) -> None:
    interrupted(store, base, colour_users(6), 7)
    assert steps_of(store, base, colour_users(5)) == 10
    interrupted(store, base, colour_users(6), 7)
    other = Plan(COLOUR, replace(SETTINGS, seed=1))
    taken: list[object] = []
    list(personalize(store, base, other, colour_users(6), machine=Machine(1), on_progress=taken.append))
    assert len(taken) == 12
    assert_nothing_under_way(store)


@pytest.mark.parametrize("damage", ["torn", "gone", "of another user"])
def test_a_checkpoint_that_cannot_be_used_is_said_and_costs_only_its_own_steps(
    store: Store, base: Base, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    users = colour_users(6)
    interrupted(store, base, users, 7)
    file = store.folder / module_folders(store, "checkpoints")[0] / "checkpoint.safetensors"
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "gone":
        file.unlink()
    else:
        data = file.read_bytes()
        with store._database.reading() as connection:
            (row,) = connection.exec_driver_sql("SELECT setting, base_fingerprint FROM checkpoints").all()
        store.put_history("b", COLOUR.name, colour_user("b", 6).history)
        users = [colour_user("b", 6)]
        interrupted(store, base, users, 2)
        with store._database.reading() as connection:
            query = "SELECT fingerprint FROM checkpoints WHERE user_id = 'b'"
            (fingerprint,) = connection.exec_driver_sql(query).one()
        store.put_checkpoints([NewCheckpoint("b", COLOUR.name, *row, fingerprint, data)])
    with caplog.at_level(logging.WARNING, "oppu.personalize"):
        assert steps_of(store, base, users) == 12
    assert f"user {users[0].id}: the checkpoint cannot be used, so the training begins anew" in caplog.text
    expected = undisturbed(tmp_path / "undisturbed", base, users)[users[0].id]
    assert difference(modules(store)[users[0].id], expected) == 0.0


def test_checkpoints_that_cannot_be_written_are_said_and_the_training_goes_on(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (store.folder / "checkpoints").write_text("in the way")
    plan = Plan(COLOUR, SETTINGS)
    with caplog.at_level(logging.WARNING, "oppu.personalize"):
        found = list(personalize(store, base, plan, colour_users(2), machine=Machine(1, checkpoint_s=0)))
    assert [result.status for result in found] == ["trained"]
    assert "what is under way cannot be kept; the training goes on" in caplog.text
    assert notes(store) == 0


def test_a_deleted_user_leaves_no_checkpoint_and_the_others_go_on(store: Store, base: Base) -> None:
    users = [colour_user("zanzibar-user", 6), colour_user("ann", 6)]
    interrupted(store, base, users, 5, slots=2)
    folders = module_folders(store, "checkpoints")
    assert len(folders) == 2
    assert store.delete_user("zanzibar-user").checkpoints == 1
    (left,) = module_folders(store, "checkpoints")
    (gone,) = set(folders) - {left}
    assert files_with(store.folder, "zanzibar-user") == []
    assert files_with(store.folder, gone.split("/")[1]) == []
    assert steps_of(store, base, users[1:]) == 12 - 5


def test_a_user_deleted_in_the_training_gets_no_further_checkpoint(store: Store, base: Base) -> None:
    user = colour_user("zanzibar-user", 6)
    steps = 0

    def progress(_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            store.delete_user(user.id)
        if steps == 8:
            assert module_folders(store, "checkpoints") == []
            assert files_with(store.folder, user.id) == []
            raise Interrupted

    with pytest.raises(Interrupted):
        list(personalize(store, base, Plan(COLOUR, SETTINGS), [user], None, Machine(1, checkpoint_s=0), progress))
    assert_nothing_under_way(store)


def test_a_training_that_diverges_leaves_no_checkpoint(store: Store, base: Base) -> None:
    plan = Plan(COLOUR, replace(SETTINGS, learning_rate=1e30))
    (result,) = personalize(store, base, plan, colour_users(6), machine=Machine(1, checkpoint_s=0))
    assert result.status == "failed"
    assert_nothing_under_way(store)


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


# task adaption


HELD_OUT = [colour_user("x", 6), colour_user("y", 4)]
ADAPT = AdaptConfig(SETTINGS)


def adapt_interrupted(store: Store, folder: Path, steps: int) -> None:
    with pytest.raises(Interrupted):
        adapt_into_store(
            store,
            load_base(str(folder)),
            COLOUR,
            HELD_OUT,
            ADAPT,
            machine=Machine(1, checkpoint_s=0),
            on_progress=interrupt_after(steps),
        )


def names(store: Store) -> set[str]:
    return {path.name for path in (store.folder / "bases").iterdir()}


def test_an_adaption_goes_on_to_the_same_base_to_the_last_bit(store: Store, base_folder: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "undisturbed") as other:
        expected = adapt_into_store(other, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    adapt_interrupted(store, base_folder, 9)
    assert names(store) == {".colour-plain.checkpoint"}
    adapt_interrupted(store, base_folder, 1 + 8)  # the first news are the nine steps that are done
    told: list[tuple[int, int, int]] = []
    found = adapt_into_store(
        store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT, on_progress=lambda *news: told.append(news)
    )
    assert found.fingerprint == expected.fingerprint
    assert found.record["losses"] == expected.record["losses"]
    assert [done for done, *_ in told] == list(range(17, 25))
    assert names(store) == {"colour-plain"}


def test_a_torn_checkpoint_of_an_adaption_is_said_and_the_adaption_begins_anew(
    store: Store, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapt_interrupted(store, base_folder, 9)
    file = store.folder / "bases" / ".colour-plain.checkpoint"
    file.write_bytes(file.read_bytes()[:-10])
    told: list[object] = []
    with caplog.at_level(logging.WARNING, "oppu.adapt"):
        adapt_into_store(
            store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT, on_progress=lambda *_: told.append(_)
        )
    assert "the checkpoint cannot be used, so the adaption begins anew (it is torn" in caplog.text
    assert len(told) == 24
    assert names(store) == {"colour-plain"}


def test_a_checkpoint_of_other_pairs_is_not_used_for_an_adaption(
    store: Store, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapt_interrupted(store, base_folder, 9)
    told: list[object] = []
    with caplog.at_level(logging.WARNING, "oppu.adapt"):
        adapt_into_store(
            store, load_base(str(base_folder)), COLOUR, HELD_OUT[:1], ADAPT, on_progress=lambda *_: told.append(_)
        )
    assert "it belongs to another training" in caplog.text
    assert len(told) == 14
    assert names(store) == {"colour-plain"}


def test_a_base_that_was_made_but_not_put_is_put_and_not_made_again(
    store: Store, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_base", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            adapt_into_store(store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    assert store.bases() == ()
    monkeypatch.setattr("oppu.adapt.train_into_base", lambda *_: pytest.fail("it trained"))
    found = adapt_into_store(store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    assert [(kept.name, kept.fingerprint) for kept in store.bases()] == [("colour-plain", found.fingerprint)]


def test_what_a_killed_adaption_left_half_written_is_cleared(store: Store, base_folder: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    from oppu.store.files import temporary_name

    bases = store.folder / "bases"
    living = bases / temporary_name("other")
    living.mkdir()
    half = bases / temporary_name("colour-plain").replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (bases / temporary_name(".colour-plain.checkpoint").replace(f"-{os.getpid()}-", f"-{dead.pid}-")).write_bytes(b"x")
    adapt_into_store(store, load_base(str(base_folder)), COLOUR, HELD_OUT, ADAPT)
    assert names(store) == {"colour-plain", living.name}


# answers, and cells that are not of these inputs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    users = [colour_user("a", 4, queries=5), colour_user("b", 2, queries=4)]
    folder = write_release(tmp_path_factory.mktemp("data"), users, [colour_user("x", 3)])
    return read_dataset(folder, COLOUR)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_report", lambda out, *_: out)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that are computed, in order."""
    cells: list[str] = []
    original = module._Bench.cell

    def cell(self: Any, name: str, k: int, users: Any) -> Cell:
        found = original(self, name, k, users)
        cells.append(found.name)
        return found

    monkeypatch.setattr(module._Bench, "cell", cell)
    return cells


def plainly(base_folder: Path, *methods: str) -> Experiment:
    """Without adaption."""
    return Experiment(COLOUR, methods, (1,), str(base_folder), None, FAST)


FEW_TOKENS = Machine(1, tokens_per_pass=40, checkpoint_s=0)
"""A question in each pass, and each answer kept."""


@pytest.mark.usefixtures("no_report")
def test_answers_are_kept_as_they_come_and_no_question_is_asked_twice(
    tmp_path: Path, base_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = plainly(base_folder, "base")
    run(experiment, dataset, tmp_path / "undisturbed")
    out = tmp_path / "interrupted"

    def interrupt(stage: Stage) -> None:
        if stage.done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(experiment, dataset, out, machine=FEW_TOKENS, on_stage=interrupt)
    file = out / "under-way" / "base-k0.json"
    first = json.loads(file.read_text(encoding="utf-8"))
    assert len(first["answers"]) == 3
    file.write_text(json.dumps(first | {"seconds": 1000.0}), encoding="utf-8")
    asked: list[str] = []
    original = module.answer_users

    def answer(base: Any, plan: Any, users: Sequence[User], *rest: Any) -> Any:
        asked.extend(query.id for user in users for query in user.queries)
        return original(base, plan, users, *rest)

    monkeypatch.setattr(module, "answer_users", answer)
    told: list[Stage] = []
    run(experiment, dataset, out, machine=FEW_TOKENS, on_stage=told.append)
    assert len(asked) == 9 - 3
    assert set(asked).isdisjoint(query for _, query, _ in first["answers"])
    assert [(stage.done, stage.total) for stage in told] == [(done, 9) for done in range(4, 10)]
    assert written(out) == written(tmp_path / "undisturbed")
    assert [row["seconds"] > 1000 for row in results(out)["rows"]] == [False, True]
    assert not (out / "under-way").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("damage", ["torn", "of other inputs"])
def test_kept_answers_that_cannot_be_used_are_not_used(
    tmp_path: Path, base_folder: Path, dataset: Dataset, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out, experiment = tmp_path / "out", plainly(base_folder, "base")
    run(experiment, dataset, tmp_path / "undisturbed")
    run(plainly(base_folder, "rag"), dataset, out)
    wrong = [[user.id, query.id, "wrong"] for user in dataset.users for query in user.queries]
    text = json.dumps({"fingerprint": "of other inputs", "seconds": 1.0, "answers": wrong})
    (out / "under-way").mkdir()
    (out / "under-way" / "base-k0.json").write_text(text[:-3] if damage == "torn" else text, encoding="utf-8")
    with caplog.at_level(logging.WARNING, "oppu.evaluate"):
        run(experiment, dataset, out)
    assert ("cannot be used, so the questions are asked again" in caplog.text) == (damage == "torn")
    assert written(out)["base-k0.json"] == written(tmp_path / "undisturbed")["base-k0.json"]


@pytest.mark.usefixtures("no_report")
def test_a_changed_profile_computes_the_cells_that_show_it_and_no_others(
    tmp_path: Path, base_folder: Path, dataset: Dataset, computed: list[str]
) -> None:
    experiment = plainly(base_folder, "base", "rag", "pag", "oppu", "oppu+pag")
    run(experiment, dataset, tmp_path, profiles={"a": "likes red", "b": "likes blue"})
    assert computed == ["base-k0", "rag-k1", "pag-k0", "oppu-k0", "oppu+pag-k0"]
    computed.clear()
    run(experiment, dataset, tmp_path, profiles={"a": "likes red", "b": "likes blue"})
    assert computed == []
    run(experiment, dataset, tmp_path, profiles={"a": "likes red", "b": "likes all the greens"})
    assert computed == ["pag-k0", "oppu+pag-k0"]
    with Store(tmp_path / "store") as store:
        versions = [(record.user_id, record.setting, record.version) for record in store.modules()]
    assert versions == [
        ("a", "plain", 1), ("a", "profile", 1), ("b", "plain", 1), ("b", "profile", 1), ("b", "profile", 2),
    ]  # fmt: skip


@pytest.mark.usefixtures("no_report")
def test_a_base_of_other_content_under_the_same_name_is_another_run_and_one_moved_is_not(
    tmp_path: Path, dataset: Dataset, computed: list[str]
) -> None:
    folder = tiny_base_folder(tmp_path / "bases" / "mine")
    run(plainly(folder, "base"), dataset, tmp_path / "out")
    folder.rename(tmp_path / "bases" / "moved")
    run(plainly(tmp_path / "bases" / "moved", "base"), dataset, tmp_path / "out")
    assert computed == ["base-k0"]
    tiny_base_folder(folder, seed=1)
    with pytest.raises(ConfigError, match="holds another run"):
        run(plainly(folder, "base"), dataset, tmp_path / "out")


@pytest.mark.usefixtures("no_report")
def test_a_cell_of_other_inputs_is_never_taken_even_if_the_runs_record_is_gone(
    tmp_path: Path, base_folder: Path, dataset: Dataset, computed: list[str]
) -> None:
    run(plainly(base_folder, "base", "rag"), dataset, tmp_path)
    (tmp_path / "run.json").unlink()
    fewer = Dataset(dataset.users[:1], dataset.base_users)
    run(plainly(base_folder, "base"), fewer, tmp_path)
    assert computed == ["base-k0", "rag-k1", "base-k0"]
    assert [row["users"] for row in results(tmp_path)["rows"]] == [1, 1]
