"""Users dealt out over real Ray workers on this machine, and the errors of the command line around it."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from deadly import DeadlyProfiles, ProfilesOfAStoreThatIsAway
from shell import World, refused
from store_samples import module_folders
from toys import COLOUR, FAST, colour_user, colour_users, tiny_base_folder

from oppu.errors import ConfigError, ModelError, StoreError
from oppu.examples import training_examples
from oppu.model.base import load_base
from oppu.model.checkpoint import checkpoint_bytes, read_checkpoint
from oppu.personalize import Plan, personalize, training_fingerprint
from oppu.scale.cluster import Cluster, Team, addresses, team_for
from oppu.scale.ray import StorePlace, Work, personalize_on_ray
from oppu.store import NewCheckpoint, Store
from oppu.train import Machine

PLAN = Plan(COLOUR, FAST)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two cores for the tests of this file; runs use it and leave it."""
    ray = pytest.importorskip("ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # workers import `deadly`
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


def work_in(store: Path, base: Path, **changed: Any) -> Work:
    return Work(StorePlace(str(store)), str(base), PLAN, **{"machine": Machine(2), **changed})


@pytest.mark.slow
def test_modules_made_on_ray_are_those_made_without(ray: Any, folder: Path, tmp_path: Path) -> None:
    users = [*colour_users(5, 1, 3, 4, 7, 2, 6, 1), colour_user("n", 0)]
    work = work_in(tmp_path / "ray", folder)
    tokens: list[int] = []
    results = list(personalize_on_ray(work, users, Cluster(workers=2), lambda p: tokens.append(p.tokens)))
    assert sorted((r.user_id, r.status) for r in results) == [
        *((u, "trained") for u in "abcdefgh"),
        ("n", "no history"),
    ]
    assert sum(tokens) > 0
    with Store(tmp_path / "here") as here, Store(tmp_path / "ray") as there:
        list(personalize(here, load_base(str(folder)), PLAN, users))
        for a, b in zip(here.modules(), there.modules(), strict=True):
            assert (a.user_id, a.version, a.base_name, a.training["fingerprint"]) == (
                b.user_id, b.version, b.base_name, b.training["fingerprint"],
            )  # fmt: skip
            found, expected = there.load_module(b).tensors, here.load_module(a).tensors
            for name, tensor in expected.items():
                assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6)
    again = list(personalize_on_ray(work, users, Cluster(workers=2)))
    assert sorted((r.user_id, r.status) for r in again) == [*((u, "kept") for u in "abcdefgh"), ("n", "no history")]


@pytest.mark.slow
def test_a_user_who_kills_every_worker_is_given_up_and_the_others_are_trained(
    ray: Any, folder: Path, tmp_path: Path
) -> None:
    users = [*colour_users(5, 4, 3, 2), colour_user("poison", 6)]
    said: list[str] = []
    work = work_in(tmp_path / "store", folder, profiles=DeadlyProfiles(a=""))
    results = {r.user_id: r for r in personalize_on_ray(work, users, Cluster(workers=1), on_notice=said.append)}
    assert {user: r.status for user, r in results.items()} == {**dict.fromkeys("abcd", "trained"), "poison": "failed"}
    assert results["poison"].reason.startswith(
        "user poison: workers died each time they trained it (killed from outside"
    )
    assert results["poison"].reason.endswith("; the same command tries again")
    assert len(said) in (5, 6)
    assert said[0].startswith(
        "worker 1 died (killed from outside, perhaps for want of memory); given out again: poison"
    )
    with Store(tmp_path / "store") as store:
        assert [(r.user_id, r.version) for r in store.modules()] == [(user, 1) for user in "abcd"]


@pytest.mark.slow
def test_a_worker_goes_on_with_whom_a_run_elsewhere_left_under_way(ray: Any, folder: Path, tmp_path: Path) -> None:
    user, base = colour_user("a", 8), load_base(str(folder))
    passes = iter(range(2))

    def interrupt(_: object) -> None:
        if next(passes, None) is None:
            raise InterruptedError

    place = ("a", COLOUR.name, PLAN.setting.name, base.fingerprint)
    fingerprint = training_fingerprint(base, PLAN, training_examples(COLOUR, user))
    with Store(tmp_path / "store") as store:
        with pytest.raises(InterruptedError):
            list(personalize(store, base, PLAN, [user], machine=Machine(1, checkpoint_s=0), on_progress=interrupt))
        data = store.checkpoint(*place, fingerprint)
        assert data is not None
        kept = read_checkpoint(data, fingerprint)
        marked = replace(kept, losses=(123.0, *kept.losses[1:]))  # by which it is known again
        store.put_checkpoints([NewCheckpoint(*place, fingerprint, checkpoint_bytes(marked, fingerprint))])
    (result,) = personalize_on_ray(work_in(tmp_path / "store", folder), [user], Cluster(workers=1))
    assert result.record is not None
    losses = result.record.training["losses"]
    assert (losses[:2], len(losses)) == ([123.0, kept.losses[1]], 4)
    with Store(tmp_path / "store") as store:
        assert module_folders(store, "checkpoints") == []


@pytest.mark.slow
def test_a_killed_dispatcher_costs_nobody(ray: Any, folder: Path, tmp_path: Path) -> None:
    users = [colour_user(f"u{number:02}", 3) for number in range(40)]
    said: list[str] = []
    results = []
    for result in personalize_on_ray(work_in(tmp_path / "s", folder), users, Cluster(workers=1), on_notice=said.append):
        if not results:
            for process in psutil.Process().children(recursive=True):
                if process.cmdline()[0].startswith("ray::Dispatcher"):
                    process.kill()
        results.append(result)
    assert sorted(result.user_id for result in results) == [user.id for user in users]
    assert any(line.startswith("the dispatcher died (") for line in said)
    with Store(tmp_path / "s") as store:
        assert [record.version for record in store.modules()] == [1] * 40


@pytest.mark.slow
def test_an_error_that_would_end_every_worker_is_raised_as_it_is(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=f"^{tmp_path / 'empty'}: cannot load the base model: ") as found:
        list(personalize_on_ray(work_in(tmp_path / "store", tmp_path / "empty"), colour_users(2), Cluster(workers=1)))
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_costs_workers_and_no_user(
    ray: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oppu.scale.ray._STORE_PAUSE_S", 0.1)
    work = work_in(tmp_path / "store", folder, profiles=ProfilesOfAStoreThatIsAway(tmp_path / "asked", 2))
    said: list[str] = []
    results = list(personalize_on_ray(work, colour_users(3, 2), Cluster(workers=1), on_notice=said.append))
    assert sorted((r.user_id, r.status) for r in results) == [("a", "trained"), ("b", "trained")]
    line = "died (postgresql://db: cannot be reached; check that the server runs); given out again: a"
    assert [notice for notice in said if "died" in notice] == [f"worker 1 {line}", f"worker 2 {line}"]


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_with_its_error(
    ray: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oppu.scale.ray._STORE_PAUSE_S", 0.1)
    monkeypatch.setattr("oppu.scale.ray._DEATHS_IN_A_ROW", 2)
    work = work_in(tmp_path / "store", folder, profiles=ProfilesOfAStoreThatIsAway(tmp_path / "asked", 99))
    with pytest.raises(StoreError, match=r"^postgresql://db: cannot be reached; check that the server runs$"):
        list(personalize_on_ray(work, colour_users(3), Cluster(workers=1)))
    assert (tmp_path / "asked").stat().st_size == 2


def test_nobody_to_train_needs_no_cluster(folder: Path, tmp_path: Path) -> None:
    assert list(personalize_on_ray(work_in(tmp_path / "store", folder), [], Cluster("nowhere:1"))) == []


# how many workers, and where


@pytest.mark.parametrize(
    ("machines", "wanted", "team"),
    [
        ([(2, 0)], None, Team(1, 2, 0)),
        ([(32, 0)], None, Team(4, 8, 0)),
        ([(4, 0), (16, 0)], None, Team(5, 4, 0)),
        ([(1, 0), (16, 0)], None, Team(4, 4, 0)),
        ([(1, 0)], None, Team(1, 1, 0)),
        ([(4, 0), (4, 0), (4, 0)], 2, Team(2, 4, 0)),
        ([(2, 0)], 2, Team(2, 1, 0)),
        ([(16, 2), (8, 0)], None, Team(2, 8, 1)),
        ([(16, 2), (8, 4)], 3, Team(3, 2, 1)),
    ],
)
def test_workers_are_one_for_each_gpu_or_for_every_eight_cores(
    machines: list[tuple[int, int]], wanted: int | None, team: Team
) -> None:
    assert team_for([{"CPU": cores, "GPU": gpus} for cores, gpus in machines], wanted) == team


def test_workers_of_one_machine_share_its_memory_and_a_gpu_is_its_workers_own() -> None:
    assert [Team(8, 8, 0).memory_share(cores) for cores in (64, 8, 4)] == [0.125, 1.0, 1.0]
    assert Team(2, 8, 1).memory_share(64) == 1.0


def test_more_workers_than_cores_or_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--ray-workers: the cluster has 6 cores, one at least .*; give at most 6"):
        team_for([{"CPU": 2.0}, {"CPU": 4.0}, {}], 7)
    with pytest.raises(
        ConfigError, match=r"--ray-workers: the cluster has 2 GPUs, one for each worker; give at most 2"
    ):
        team_for([{"CPU": 8.0, "GPU": 2.0}], 3)


def test_machines_are_those_with_room_for_a_worker_and_ones_own() -> None:
    nodes = [
        {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"memory": 1.0}},
        {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Alive": True, "Resources": {"CPU": 2.0}},
        {"NodeID": "c", "NodeManagerAddress": "10.0.0.2", "Alive": True, "Resources": {"GPU": 1.0}},
        {"NodeID": "d", "NodeManagerAddress": "10.0.0.3", "Alive": False, "Resources": {"CPU": 2.0}},
    ]
    assert addresses(nodes, "b") == {"10.0.0.2"}
    assert addresses(nodes, "a") == {"10.0.0.1", "10.0.0.2"}


# the command line


def command(world: World) -> list[str]:
    places = {"--task": world.task, "--data": world.data, "--store": world.store, "--base": world.base}
    return ["personalize", *(str(part) for option in places.items() for part in option)]


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:x", ":6379"])
def test_what_is_no_address_of_a_cluster_is_refused(world: World, address: str) -> None:
    pytest.importorskip("ray")
    line = refused(*command(world), "--ray", address)
    assert line.startswith(f"--ray: '{address}' is no address of a Ray cluster; use local, auto, or HOST:PORT")


def test_an_address_where_nobody_or_something_else_listens_is_refused_within_seconds(world: World) -> None:
    pytest.importorskip("ray")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert refused(*command(world), "--ray", address).startswith(
            f"--ray {address}: no Ray cluster answers ([Errno "
        )
        other.listen()
        line = refused(*command(world), "--ray", address)
    assert line.startswith(f"--ray {address}: no Ray cluster answers (timed out); start one with `ray start --head`")


def test_workers_without_ray_are_refused(world: World) -> None:
    line = refused(*command(world), "--ray-workers", "2")
    assert line == "--ray-workers: there are no workers without Ray; add --ray local"


def test_without_ray_the_extra_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused(*command(world), "--ray", "local") == "--ray: Ray is not installed; pip install 'oppu[cluster]'"


def test_the_dispatcher_imports_no_torch() -> None:
    script = "import sys, oppu.scale.dispatcher; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", script]) == 0
