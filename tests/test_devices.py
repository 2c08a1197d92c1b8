"""Where a base lies and in which precision: chosen for the machine, or as it is said, or refused in one line."""

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, toy_examples
from shell import World, done, refused
from test_train import difference, jobs, train_with_peft

from oppu.errors import ConfigError
from oppu.model.bank import Bank
from oppu.model.base import load_base, make_base
from oppu.model.devices import find_device, find_dtype
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import Ia3Config, LoraConfig, ModuleConfig, PromptConfig
from oppu.train import Job, Machine, TrainConfig, train

CUDA = torch.cuda.is_available()
WITHOUT_CUDA = pytest.mark.skipif(CUDA, reason="there is a CUDA device")
CPU = torch.device("cpu")
KINDS: dict[str, ModuleConfig] = {"lora": LoraConfig(rank=4), "ia3": Ia3Config(), "prompt": PromptConfig(5)}


def fake_cuda(monkeypatch: pytest.MonkeyPatch, count: int = 1, bfloat16: bool = True) -> None:
    """The answers that torch would give on a machine with so many cards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)


@WITHOUT_CUDA
def test_without_cuda_a_base_lies_on_the_cpu_in_float32(world: World) -> None:
    base = load_base(str(world.base))
    assert (base.device, base.model.dtype) == (CPU, torch.float32)


@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_with_cuda_a_base_lies_there_in_the_best_precision_that_the_card_has(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, dtype: torch.dtype
) -> None:
    fake_cuda(monkeypatch, bfloat16=bfloat16)
    device = find_device("auto")
    assert (device.type, find_dtype("auto", device)) == ("cuda", dtype)
    assert find_dtype("auto", CPU) == torch.float32
    assert find_dtype("float16", device) == torch.float16


def test_a_card_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, count=2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"^--device: there is no cuda:2: 2 CUDA devices; use 0 to 1$"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "xla", "meta", "cuda:x"])
def test_an_unknown_device_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^--device: unknown device '{name}'; use auto, cpu, cuda, cuda:1, ... or mps$"
    ):
        find_device(name)


@WITHOUT_CUDA
def test_cuda_where_there_is_none_is_refused(world: World) -> None:
    line = refused("ask", "what?", "--store", world.store, "--user", "ann", "--device", "cuda")
    assert line.startswith("--device: there is no CUDA device here")
    assert line.endswith("; use --device cpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an MPS device")
def test_mps_where_there_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--device: there is no MPS device here; use --device cpu$"):
        find_device("mps")


def test_an_unknown_precision_is_refused_on_the_command_line(world: World) -> None:
    line = refused("ask", "what?", "--store", world.store, "--user", "ann", "--dtype", "float8")
    assert line == "--dtype: unknown precision 'float8'; use auto, float32, bfloat16, float16"


def test_a_module_trained_in_one_precision_answers_in_another(world: World) -> None:
    said = done("ask", "Which colour? thing: car", "--store", world.store, "--user", "ann", "--dtype", "bfloat16")
    assert said.strip() in ("red", "blue", "green")


def test_a_fingerprint_does_not_depend_on_the_precision(world: World) -> None:
    wide, narrow = load_base(str(world.base)), load_base(str(world.base), dtype="bfloat16")
    assert narrow.model.dtype == torch.bfloat16
    assert narrow.fingerprint == wide.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_over_a_bfloat16_base_modules_and_gradients_stay_float32(kind: str) -> None:
    base = make_base("tiny", tiny_model().to(torch.bfloat16), tiny_tokenizer())
    bank = Bank(base.model, KINDS[kind], 1)
    bank.reset(0, seed=1)
    skipped = KINDS[kind].virtual_tokens if isinstance(KINDS[kind], PromptConfig) else 0  # type: ignore[union-attr]
    rows = list(rows_of(0, [e.after_virtual(skipped) for e in toy_examples(6, seed=2)], 60))
    assert len(rows) > 1
    with bank.attach():
        loss = -answer_log_probs(base.model, rows).mean()
    loss.backward()
    assert loss.dtype == bank.values.dtype == bank.grads.dtype == torch.float32
    assert float(bank.grads.norm()) > 0
    assert all(weight.dtype == torch.bfloat16 for weight in base.model.parameters())
    # the gradients have more than bfloat16's eight bits: they were summed in float32
    assert not torch.equal(bank.grads, bank.grads.bfloat16().float())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_over_a_bfloat16_base_are_near_those_of_float32(kind: str) -> None:
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, module=KINDS[kind])
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        base = make_base("tiny", tiny_model().to(dtype), tiny_tokenizer())
        (found[dtype],) = train(base, jobs(["long"]), config, Machine(slots=1))
    assert found[torch.bfloat16].losses == pytest.approx(found[torch.float32].losses, rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in found[torch.bfloat16].module.tensors.values())


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("user", ["long", "one"])
def test_on_cuda_a_user_in_company_equals_the_user_alone_with_peft_on_the_cpu(user: str) -> None:
    config = TrainConfig(epochs=3, batch_size=4, learning_rate=5e-3, module=LoraConfig(rank=4, alpha=8))
    base = make_base("tiny", tiny_model().to("cuda"), tiny_tokenizer())
    company: list[Job] = jobs(["medium", "long", "one", "late"])
    found = {t.user_id: t for t in train(base, company, config, Machine(slots=2, tokens_per_pass=150))}
    reference = make_base("tiny", tiny_model(), tiny_tokenizer())
    tensors, losses = train_with_peft(reference, jobs([user])[0], config)
    assert found[user].losses == pytest.approx(losses, rel=1e-3)
    assert difference(dict(found[user].module.tensors), tensors) < 1e-3
