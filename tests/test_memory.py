"""How many tokens and users fit, from what there is."""

from pathlib import Path

import pytest
import torch
from conftest import toy_examples

from oppu.model import memory
from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import KINDS, LoraConfig, default_config
from oppu.model.memory import bytes_per_token, free_bytes, slots_that_fit, tokens_that_fit, useful_tokens
from oppu.train import Job, TrainConfig, train

CPU = torch.device("cpu")


def test_a_tokens_bytes_are_what_a_pass_keeps_for_its_backward(base: Base) -> None:
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in base.model.state_dict().values()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    bank = Bank(base.model, LoraConfig(), 1)
    bank.reset(0, 0)
    rows = list(rows_of(0, toy_examples(12, seed=1), 10_000))
    with bank.attach(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = answer_log_probs(base.model, rows)
    tokens = sum(len(row.row) for row in rows)
    assert len(found)
    assert bytes_per_token(base.model, LoraConfig()) == pytest.approx(sum(kept.values()) / tokens, rel=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_measured(base: Base, kind: str) -> None:
    assert bytes_per_token(base.model, default_config(kind)) > 1000


def test_less_memory_gives_fewer_tokens_and_users_and_never_none(base: Base) -> None:
    each = bytes_per_token(base.model, LoraConfig())
    assert tokens_that_fit(base.model, LoraConfig(), 2, free=10**12) == useful_tokens(CPU, 2) == 1024
    assert tokens_that_fit(base.model, LoraConfig(), 2, free=each * 400) == 200
    assert tokens_that_fit(base.model, LoraConfig(), 2, free=0) == 64
    assert slots_that_fit(CPU, 1000, 1024, free=10**12) == 16
    assert slots_that_fit(CPU, 1000, 32768, free=10**12) == 512
    assert slots_that_fit(CPU, 1000, 1024, free=160_000 * 5) == 5
    assert slots_that_fit(CPU, 1000, 1024, free=0) == 1


def test_the_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": "5000", "memory.current": "2000"}
    monkeypatch.setattr(Path, "read_text", lambda self, *_: files[self.name])
    assert free_bytes(CPU) == 3000
    files["memory.max"] = "max"
    assert free_bytes(CPU) > 1 << 20


def test_the_memory_changes_no_result(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(name, toy_examples(9, seed=n)) for n, name in enumerate(("ann", "ben", "cem"))]
    config = TrainConfig(epochs=2, batch_size=4)
    much = {t.user_id: t for t in train(base, jobs, config)}
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 16)
    for trained in train(base, jobs, config):
        assert trained.losses == pytest.approx(much[trained.user_id].losses, rel=1e-5)
