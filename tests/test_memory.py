"""How many tokens and users fit, from what there is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import toy_examples

from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.engine import Engine
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import KINDS, LoraConfig, default_config
from oppu.model.memory import bytes_per_token, free_bytes, slots_that_fit, tokens_held, tokens_that_fit, useful_tokens
from oppu.model.recompute import recomputing
from oppu.model.tokens import Encoded
from oppu.model.workers import Room, Workers
from oppu.train import Job, Machine, TrainConfig, train

CPU = torch.device("cpu")


def test_a_tokens_bytes_are_what_a_pass_keeps_for_its_backward(base: Base) -> None:
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in base.model.state_dict().values()}

    def count(tensor: torch.Tensor) -> None:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    bank = Bank(base.model, LoraConfig(), 1)
    bank.reset(0, 0)
    rows = list(rows_of(0, toy_examples(12, seed=1), 10_000))
    with bank.attach(), recomputing(base.model, count):
        found = answer_log_probs(base.model, rows)
    tokens = sum(len(row.row) for row in rows)
    assert len(found)
    assert bytes_per_token(base.model, LoraConfig()) == pytest.approx(sum(kept.values()) / tokens, rel=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_measured(base: Base, kind: str) -> None:
    assert bytes_per_token(base.model, default_config(kind)) > 1000


def test_less_memory_gives_fewer_tokens_and_users_and_never_none(base: Base) -> None:
    each = bytes_per_token(base.model, LoraConfig())
    assert tokens_held(base.model, LoraConfig(), free=each * 400) == 200
    assert tokens_that_fit(10**9, CPU, 2) == useful_tokens(CPU, 2) == 1024
    assert tokens_that_fit(200, CPU, 1) == 200
    assert tokens_that_fit(200, CPU, 2) == 100  # a row may have two shares
    assert tokens_that_fit(0, CPU, 2) == 64
    assert slots_that_fit(CPU, 1000, 1024, free=10**12) == 16
    assert slots_that_fit(CPU, 1000, 32768, free=10**12) == 512
    assert slots_that_fit(CPU, 1000, 1024, free=160_000 * 5) == 5
    assert slots_that_fit(CPU, 1000, 1024, free=0) == 1


def test_no_pass_is_longer_than_two_workers_shares(base: Base) -> None:
    batch = [Encoded(tuple((start * 7 + i * start) % 90 for i in range(50)), 48) for start in range(1, 33)]
    tokens = sum(len(row.row) for row in rows_of(0, batch, 10_000))
    assert tokens > 1000
    bank = Bank(base.model, LoraConfig(rank=2), 1)
    bank.reset(0, 0)
    losses, passes = {}, {}
    for count in (1, 8):
        seen: list[int] = []
        engine = Engine(
            base,
            bank,
            Workers(count, count, None),
            1024,
            Room(2048),
            None,
            lambda news, to=seen: to.append(news.tokens),
        )
        with bank.attach():
            losses[count] = engine.backward({0: batch})
        passes[count] = seen
    assert max(passes[1]) > 512
    assert max(passes[8]) <= 256
    assert losses[8] == pytest.approx(losses[1], rel=1e-5)


def test_the_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": "5000", "memory.current": "2000", "memory.stat": "anon 1\ninactive_file 0\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, *_: files[self.name])
    assert free_bytes(CPU) == 3000
    files["memory.stat"] = "anon 1\ninactive_file 1500\n"  # read and not needed: the kernel gives it up
    assert free_bytes(CPU) == 4500
    files["memory.max"] = "max"
    assert free_bytes(CPU) > 1 << 20


def test_the_memory_changes_no_result(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(name, toy_examples(9, seed=n)) for n, name in enumerate(("ann", "ben", "cem"))]
    config = TrainConfig(epochs=2, batch_size=4)
    much = {t.user_id: t for t in train(base, jobs, config)}
    monkeypatch.setattr("oppu.train.free_bytes", lambda device: 1 << 16)
    for trained in train(base, jobs, config):
        assert trained.losses == pytest.approx(much[trained.user_id].losses, rel=1e-5)


def test_a_process_plans_with_its_share_of_the_memory(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def fitting(*given: Any) -> int:
        planned.append(given[-1])
        return 64

    monkeypatch.setattr("oppu.train.free_bytes", lambda device: 1000)
    monkeypatch.setattr("oppu.train.tokens_held", fitting)
    for machine in (Machine(), Machine(memory_share=0.25)):
        list(train(base, [Job("ann", toy_examples(2, seed=1))], TrainConfig(epochs=1), machine))
    assert planned == [1000, 250]
