"""Modules on the top layers alone: the layers below are computed once per example, and nothing else changes."""

import errno
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, set_peft_model_state_dict
from test_kinds import trained_alone
from test_train import difference, jobs
from transformers import AutoModelForCausalLM, GPT2Config

from oppu.errors import ConfigError
from oppu.model import trunk
from oppu.model.bank import Bank, user_seed
from oppu.model.base import Base
from oppu.model.forward import SlotRow, rows_of
from oppu.model.kinds import Ia3Config, LoraConfig, LoraXsConfig, ModuleConfig, PromptConfig
from oppu.model.layers import SplitModel, first_layer, on_top_layers, split_model
from oppu.model.packing import Row
from oppu.model.trunk import HiddenFile, trunk_below
from oppu.train import Machine, TrainConfig, train

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=3e-2, top_layers=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def lower(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each time that the lower layers run, but for the trial that a model can be cut."""
    seen: list[int] = []
    original = SplitModel.lower

    def counted(self: SplitModel, rows: list) -> torch.Tensor:
        tokens = sum(len(row) for row in rows)
        seen.extend([tokens] if tokens > 4 else [])
        return original(self, rows)

    monkeypatch.setattr(SplitModel, "lower", counted)
    return seen


def modules(base: Base, config: TrainConfig, machine: Machine | None = None) -> dict[str, dict[str, torch.Tensor]]:
    company = ["long", "medium", "short"]
    return {t.user_id: dict(t.module.tensors) for t in train(base, jobs(company), config, machine or Machine(slots=2))}


def test_a_user_in_company_equals_the_user_alone_with_peft(base: Base, lower: list[int]) -> None:
    names = on_top_layers(base.model, LoraConfig(rank=4, alpha=8), 1).targets
    assert names == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    config = replace(CONFIG, module=LoraConfig(rank=4, alpha=8))
    found = modules(base, config)
    assert lower
    for user, module in found.items():
        bank = Bank(base.model, config.module_for(base), 1)
        bank.reset(0, user_seed(config.seed, user))
        start = bank.module(0)
        model = get_peft_model(tiny_model(), PeftLoraConfig(r=4, lora_alpha=8, target_modules=list(names)))
        set_peft_model_state_dict(model, {name: tensor.clone() for name, tensor in start.tensors.items()})
        trained_alone(model, [p for p in model.parameters() if p.requires_grad], jobs([user])[0], config)
        there = {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}
        assert difference(module, there) < 1e-4


@pytest.mark.parametrize("shape", [LoraConfig(), LoraXsConfig(), Ia3Config()])
def test_the_trunk_changes_no_result(
    base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: ModuleConfig
) -> None:
    config = replace(CONFIG, module=shape)
    machine = Machine(slots=2, trunk_folder=tmp_path)
    kept = modules(base, config, machine)
    again = modules(base, config, machine)
    monkeypatch.setattr(trunk, "split_model", lambda model, first: None)
    for user, whole in modules(base, config).items():
        assert difference(kept[user], whole) < 1e-4
        assert difference(again[user], whole) < 1e-4


def test_the_lower_layers_run_once_per_example_over_epochs_and_runs(
    base: Base, lower: list[int], tmp_path: Path
) -> None:
    machine = Machine(slots=2, trunk_folder=tmp_path)
    modules(base, CONFIG, machine)
    once = sum(lower)
    examples = [example for job in jobs(["long", "medium", "short"]) for example in job.examples]
    assert once <= sum(len(example.tokens) for example in examples)
    modules(base, replace(CONFIG, learning_rate=1e-2), machine)
    assert sum(lower) == once


def test_a_pass_goes_to_the_accelerator_and_comes_from_it_in_one_copy(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is waited for; what is read and what is computed lie in the rows' order."""
    rows = [row for job in jobs(["long", "medium", "short"]) for row in rows_of(0, job.examples, 100)]
    copies: list[str] = []

    def counted(name: str) -> Callable[..., torch.Tensor]:
        original = getattr(torch.Tensor, name)
        return lambda tensor, *given: copies.append(name) or original(tensor, *given)

    split = split_model(base.model, 1)
    assert split is not None
    with torch.no_grad(), trunk_below(base, ["model.layers.1.self_attn.q_proj"], 1 << 20) as trunk:
        assert trunk is not None
        expected = split.lower([row.row for row in rows])
        monkeypatch.setattr(SplitModel, "lower", lambda _, asked: split_lower(expected, rows, asked))
        monkeypatch.setattr(torch.Tensor, "cpu", counted("cpu"))
        monkeypatch.setattr(torch.Tensor, "to", counted("to"))
        assert torch.equal(trunk.hidden(rows[1::2]), split_lower(expected, rows, [row.row for row in rows[1::2]]))
        assert copies == ["cpu", "to"]
        assert torch.equal(trunk.hidden(rows), expected)
        assert torch.equal(trunk.hidden(rows), expected)
        assert copies == ["cpu", "to"] * 2 + ["to"]


def split_lower(hidden: torch.Tensor, rows: Sequence[SlotRow], asked: Sequence[Row]) -> torch.Tensor:
    """The parts of `hidden` that are of the rows asked for."""
    parts = dict(zip([id(row.row) for row in rows], hidden.split([len(row.row) for row in rows]), strict=True))
    return torch.cat([parts[id(row)] for row in asked])


def test_nothing_of_a_trunk_is_left_behind_unless_a_folder_is_given(base: Base, lower: list[int], cache: Path) -> None:
    modules(base, CONFIG)
    once = sum(lower)
    assert list(cache.iterdir()) == []
    modules(base, CONFIG)
    assert sum(lower) == 2 * once


def test_the_file_obeys_its_bound_and_the_result_stays(base: Base, tmp_path: Path) -> None:
    much = modules(base, CONFIG)
    little = modules(base, CONFIG, Machine(slots=2, trunk_bytes=40_000, trunk_folder=tmp_path))
    (file,) = tmp_path.glob("*.bin")
    assert 0 < file.stat().st_size <= 40_000
    for user, module in much.items():
        assert difference(little[user], module) < 1e-4


def test_modules_on_all_layers_have_no_trunk(base: Base, lower: list[int], cache: Path) -> None:
    modules(base, replace(CONFIG, top_layers=None))
    assert not lower
    assert not cache.exists()
    for config, first in (
        (on_top_layers(base.model, LoraConfig(), 1), 1),
        (LoraConfig(), 0),
        (PromptConfig(3), 0),
    ):
        assert first_layer(base.model, config.lay_out(base.model).target_names()) == first


def test_a_model_that_cannot_be_cut_trains_all_the_same() -> None:
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.set_attn_implementation("oppu")
    assert split_model(model, 1) is None  # it adds embeddings of positions to whatever comes in
    assert not model.transformer.h[1]._forward_pre_hooks


def test_what_has_no_such_layers_is_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match="the model has 2 layers; use top:2 at most"):
        on_top_layers(base.model, LoraConfig(), 3)
    with pytest.raises(ConfigError, match="'prompt' sits on no layers"):
        on_top_layers(base.model, PromptConfig(3), 1)


def hidden(length: int, fill: float) -> torch.Tensor:
    return torch.full((length, 4), fill)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7)), max_size=60), st.integers(5, 30))
def test_a_key_gives_what_was_put_or_nothing_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int]], capacity: int
) -> None:
    folder = tmp_path_factory.mktemp("ring")
    there: dict[str, torch.Tensor] = {}
    file = HiddenFile(folder, "ring", 4, torch.float32, capacity * 16)
    for number, (key, length) in enumerate(puts):
        if number == len(puts) // 2:
            file.close()
            file = HiddenFile(folder, "ring", 4, torch.float32, capacity * 16)
        if file.get(f"{key}") is None:
            there[f"{key}"] = hidden(length, float(number))
            file.put(f"{key}", there[f"{key}"])
            if length <= capacity:
                assert torch.equal(file.get(f"{key}"), there[f"{key}"])
        total = 0
        for known, expected in there.items():
            found = file.get(known)
            assert found is None or torch.equal(found, expected)
            total += 0 if found is None else len(found)
        assert total <= capacity
    file.close()


def test_what_was_put_outlives_the_process_and_damage_is_noticed(tmp_path: Path) -> None:
    file = HiddenFile(tmp_path, "ring", 4, torch.float32, 1000)
    file.put("ann", hidden(3, 1.0))
    file.put("ben", hidden(2, 2.0))
    file.close()
    data = bytearray((tmp_path / "ring.bin").read_bytes())
    data[3 * 16] ^= 1
    (tmp_path / "ring.bin").write_bytes(data)
    with (tmp_path / "ring.jsonl").open("a") as index:
        index.write('{"key": "cem", "sta')
    again = HiddenFile(tmp_path, "ring", 4, torch.float32, 1000)
    assert torch.equal(again.get("ann"), hidden(3, 1.0))
    assert again.get("ben") is None
    again.put("ben", hidden(2, 2.0))
    assert torch.equal(again.get("ben"), hidden(2, 2.0))
    again.close()


def test_another_bound_begins_anew(tmp_path: Path) -> None:
    file = HiddenFile(tmp_path, "ring", 4, torch.float32, 1000)
    file.put("ann", hidden(3, 1.0))
    file.close()
    again = HiddenFile(tmp_path, "ring", 4, torch.float32, 500)
    assert again.get("ann") is None
    assert (tmp_path / "ring.bin").stat().st_size <= 500
    again.close()


def _hold(folder: Path, ready: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    file = HiddenFile(folder, "ring", 4, torch.float32, 1000)
    file.put("ann", hidden(3, 1.0))
    ready.set()
    done.wait(60)
    file.close()


def test_a_second_process_works_on_a_file_of_its_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(60)
    file = HiddenFile(tmp_path, "ring", 4, torch.float32, 1000)
    assert file.get("ann") is None
    file.put("ann", hidden(3, 9.0))
    assert torch.equal(file.get("ann"), hidden(3, 9.0))
    file.close()
    done.set()
    other.join()
    again = HiddenFile(tmp_path, "ring", 4, torch.float32, 1000)
    assert torch.equal(again.get("ann"), hidden(3, 1.0))
    again.close()


def test_a_full_disk_bounds_the_file_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def allocate(descriptor: int, start: int, size: int) -> None:
        if start + size > 160:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("oppu.model.trunk.os.posix_fallocate", allocate)
    monkeypatch.setattr("oppu.model.trunk._ALLOCATED_TOGETHER", 80)
    file = HiddenFile(tmp_path, "ring", 4, torch.float32, 1000)  # 62 tokens, of which ten have a place
    for n in range(6):
        file.put(f"k{n}", torch.full((3, 4), float(n)))
    kept = {n: found for n in range(6) if (found := file.get(f"k{n}")) is not None}
    assert set(kept) == {
        2,
        4,
        5,
    }  # the fourth found the disk full, the fifth and sixth took the places of the first two
    assert all(torch.equal(found, torch.full((3, 4), float(n))) for n, found in kept.items())
    assert caplog.text.count("No space left on device: 0 MiB of what the lower layers make") == 1
    file.close()
