"""A base of 8 or 4 bits: users in company equal PEFT's own training on the same rounded weights."""

import importlib.util
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import plain_log_probs, toy_examples
from huggingface_hub import constants
from peft import PeftModel
from serve_house import TITLE, put_user, random_module, running_server
from shell import SMALL, World, done, oppu, refused
from test_kinds import CONFIG, OURS, filled, train_with_peft
from test_predict import PROMPTS, QUESTIONS, TEXT
from test_train import difference, jobs
from toys import COLOUR, tiny_base_folder
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from oppu.errors import ConfigError, ModelError
from oppu.model import quantize
from oppu.model.bank import Bank, user_seed
from oppu.model.base import Base, load_base
from oppu.model.decode import Decoder, Prompt
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import LoraConfig, LoraXsConfig
from oppu.model.memory import bytes_per_token
from oppu.model.module import write_module
from oppu.model.quantize import QUANTIZATIONS
from oppu.predict import generate
from oppu.store import Store
from oppu.train import Machine, train

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
NEEDED = pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
BITS = pytest.mark.parametrize("bits", ["8bit", "4bit"])
KIND = pytest.mark.parametrize("kind", OURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


def loaded(folder: Path, bits: str | None) -> Base:
    return load_base(str(folder), device="cpu", quantize=bits)


def reference(folder: Path, bits: str) -> PreTrainedModel:
    """The model as transformers gives it, in training mode: there bitsandbytes, on a CPU, rounds weights alone."""
    settings = BitsAndBytesConfig(**QUANTIZATIONS[bits], bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}
    )
    return model.train()


@NEEDED
@BITS
@KIND
def test_a_user_in_company_equals_the_user_alone_with_peft_on_the_same_quantized_base(
    folder: Path, kind: str, bits: str
) -> None:
    base, config = loaded(folder, bits), replace(CONFIG, module=OURS[kind])
    company = ["long", "medium", "short"]
    found = {t.user_id: t for t in train(base, jobs(company), config, Machine(slots=2, tokens_per_pass=300))}
    plain = {t.user_id: t for t in train(loaded(folder, None), jobs(company), config, Machine(slots=2))}
    for user in company:
        bank = Bank(base.model, config.module, 1)
        bank.reset(0, user_seed(config.seed, user))
        tensors, losses = train_with_peft(kind, bank.module(0), jobs([user])[0], config, reference(folder, bits))
        assert found[user].losses == pytest.approx(losses, rel=1e-4)
        assert difference(dict(found[user].module.tensors), tensors) < 1e-4
        assert plain[user].losses != pytest.approx(losses, rel=1e-4)  # the weights were rounded


@NEEDED
@BITS
@KIND
@torch.no_grad()
def test_peft_loads_a_module_on_the_same_quantized_base_with_the_same_log_probabilities(
    folder: Path, tmp_path: Path, kind: str, bits: str
) -> None:
    base = loaded(folder, bits)
    bank, skipped = filled(base.model, OURS[kind]), OURS[kind].virtual_tokens
    write_module(bank.module(2), tmp_path)
    model = PeftModel.from_pretrained(reference(folder, bits), str(tmp_path)).train()
    examples = toy_examples(6, seed=3)
    expected = plain_log_probs(model, examples, skipped)
    rows = list(rows_of(2, [e.after_virtual(skipped) for e in examples], 10_000))
    with bank.attach():
        torch.testing.assert_close(answer_log_probs(base.model, rows), expected, atol=1e-5, rtol=1e-5)


@NEEDED
@BITS
def test_modules_over_packed_weights_have_the_shapes_of_those_over_plain_ones(folder: Path, bits: str) -> None:
    for config in OURS.values():
        packed, plain = (Bank(loaded(folder, kind).model, config, 1).module(0) for kind in (bits, None))
        assert {n: t.shape for n, t in packed.tensors.items()} == {n: t.shape for n, t in plain.tensors.items()}
        assert packed.config == plain.config


@NEEDED
@BITS
@KIND
def test_a_token_keeps_as_much_for_its_backward_as_over_the_plain_base(folder: Path, kind: str, bits: str) -> None:
    packed, plain = (bytes_per_token(loaded(folder, bits_of).model, OURS[kind]) for bits_of in (bits, None))
    assert packed < 1.1 * plain  # full copies of the weights would be 75 % more


@NEEDED
@BITS
def test_lora_xs_needs_plain_weights_and_says_so(folder: Path, bits: str) -> None:
    with pytest.raises(ConfigError, match="is quantized, LoRA-XS needs its weight; use --kind lora"):
        Bank(loaded(folder, bits).model, LoraXsConfig(rank=4), 1)


@NEEDED
@BITS
def test_weights_shrink_and_the_head_stays_whole(folder: Path, bits: str) -> None:
    def size(base: Base) -> int:
        return sum(w.numel() * w.element_size() for w in base.model.model.layers.parameters())

    base, plain = loaded(folder, bits), loaded(folder, None)
    assert size(base) < size(plain) * (0.3 if bits == "8bit" else 0.2)
    assert torch.equal(base.model.lm_head.weight, plain.model.lm_head.weight)


@NEEDED
@BITS
def test_neighbours_change_nothing_even_if_their_activations_are_huge(folder: Path, bits: str) -> None:
    """bitsandbytes' own 8-bit product treats a column apart for all where anyone in the batch leaves the range."""
    base = loaded(folder, bits)
    layer = base.model.model.layers[0].mlp.up_proj
    mine = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    loud = 100 * torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(torch.cat([mine, loud]))[:5], layer(mine), atol=1e-5, rtol=1e-5)


@NEEDED
@BITS
def test_a_quantized_layer_is_the_plain_product_with_its_rounded_weights_forward_and_backward(
    folder: Path, bits: str
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    layer = loaded(folder, bits).model.model.layers[1].mlp.down_proj
    if bits == "8bit":
        weight = layer.weight.data.float() * layer.state.SCB[:, None] / 127
    else:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, x @ weight.T)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x @ weight.T) @ weight)


@NEEDED
def test_a_cpu_for_which_bitsandbytes_packs_weights_anew_trains_after_it_has_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, module=OURS["lora"])
    (expected,) = train(loaded(folder, "4bit"), jobs(["short"]), config, Machine(slots=1))
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    base = loaded(folder, "4bit")
    with torch.no_grad():
        answer_log_probs(base.model, list(rows_of(-1, toy_examples(3, seed=1), 1000)))
    (found,) = train(base, jobs(["short"]), config, Machine(slots=1))
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)


@NEEDED
@BITS
def test_a_mixed_batch_over_a_quantized_base_writes_what_each_user_gets_alone(folder: Path, bits: str) -> None:
    base = loaded(folder, bits)
    bank = filled(base.model, OURS["lora"])
    with bank.attach():
        together = generate(base, TEXT, QUESTIONS)
        alone = [generate(base, TEXT, [question])[0] for question in QUESTIONS]
        assert together == alone
        decoder = Decoder(base.model)
        tokens = base.tokenizer(PROMPTS[0]).input_ids
        stepwise = decoder.admit([Prompt(0, 1, tuple(tokens[:-1]))]), decoder.step(tokens[-1:])
        at_once = Decoder(base.model).admit([Prompt(0, 1, tuple(tokens))])
        torch.testing.assert_close(stepwise[1], at_once, atol=1e-4, rtol=1e-4)


@NEEDED
def test_a_fingerprint_covers_the_quantization_and_nothing_of_the_machine(folder: Path) -> None:
    full = loaded(folder, None).fingerprint
    found = {bits: loaded(folder, bits).fingerprint for bits in ("8bit", "4bit")}
    assert len({full, *found.values()}) == 3
    for bits, fingerprint in found.items():
        again = load_base(str(folder), device="cpu", dtype="bfloat16", quantize=bits)
        assert (again.fingerprint, again.quantize) == (fingerprint, bits)


@NEEDED
@BITS
def test_nothing_is_merged_into_a_quantized_base(folder: Path, bits: str) -> None:
    base = loaded(folder, bits)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    with pytest.raises(
        ModelError, match="cannot be merged into a quantized base; adapt the base in full precision first"
    ):
        filled(base.model, OURS["lora"]).merge(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


@pytest.fixture(params=["8bit", "4bit"])
def quantized_folder(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """A base as one finds it on the hub: its files are quantized already."""
    base = loaded(folder, request.param)
    base.model.save_pretrained(tmp_path / "ready")
    base.tokenizer.save_pretrained(tmp_path / "ready")
    return tmp_path / "ready"


@NEEDED
def test_a_base_that_is_quantized_already_is_loaded_as_it_is(folder: Path, quantized_folder: Path) -> None:
    kept = json.loads((quantized_folder / "config.json").read_text())["quantization_config"]
    bits = "8bit" if kept["load_in_8bit"] else "4bit"
    rows = list(rows_of(-1, toy_examples(5, seed=2), 1000))
    base = load_base(str(quantized_folder), device="cpu")
    with torch.no_grad():
        expected = answer_log_probs(loaded(folder, bits).model, rows)
        torch.testing.assert_close(answer_log_probs(base.model, rows), expected, atol=1e-6, rtol=1e-6)
    (trained,) = train(base, jobs(["short"]), replace(CONFIG, module=OURS["lora"]), Machine(slots=1))
    assert all(math.isfinite(loss) for loss in trained.losses)
    assert load_base(str(quantized_folder), device="cpu").fingerprint == base.fingerprint
    assert base.quantize is None
    with pytest.raises(ModelError, match=r"is quantized already \(bitsandbytes\); leave out --quantize"):
        load_base(str(quantized_folder), device="cpu", quantize="4bit")
    with pytest.raises(ModelError, match="cannot be merged into a quantized base"):
        filled(base.model, OURS["lora"]).merge(0)


@NEEDED
@BITS
def test_a_base_on_the_hub_has_the_fingerprint_of_its_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    """The hub's cache, as a download leaves it; no network is asked."""
    kept = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(folder, kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for kind, dtype in ((None, "float32"), (None, "bfloat16"), (bits, "float32"), (bits, "bfloat16")):
        base = load_base("me/tiny", device="cpu", dtype=dtype, quantize=kind)
        assert base.fingerprint == loaded(folder, kind).fingerprint
        assert base.name == "me/tiny"


@NEEDED
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@BITS
def test_on_cuda_a_quantized_base_trains_as_on_the_cpu(folder: Path, bits: str) -> None:
    config = replace(CONFIG, module=OURS["lora"])
    found = []
    for device in ("cpu", "cuda"):
        base = load_base(str(folder), device=device, dtype="float32", quantize=bits)
        found.append({t.user_id: t for t in train(base, jobs(["long", "short"]), config, Machine(slots=2))})
        assert base.fingerprint == loaded(folder, bits).fingerprint
    for user, trained in found[0].items():
        assert found[1][user].losses == pytest.approx(trained.losses, rel=1e-2)


def test_an_unknown_quantization_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--quantize: unknown quantization '3bit'; use 8bit or 4bit$"):
        loaded(folder, "3bit")


def test_without_the_library_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "_LIBRARY", "no_such_library")
    with pytest.raises(
        ConfigError, match=r"^--quantize: it needs .* not installed; run `pip install 'oppu\[quantize\]'`$"
    ):
        loaded(folder, "4bit")


# on the command line


@pytest.fixture
def quantized(world: World, tmp_path: Path) -> World:
    """The world with modules trained on the base at 4 bits."""
    place = replace(world, store=tmp_path / "quantized")
    options = ("--store", place.store, "--base", place.base, "--quantize", "4bit")
    done("personalize", "--task", place.task, "--data", place.data, *options, *SMALL)
    return place


@NEEDED
def test_modules_of_a_quantized_base_are_bound_to_it(quantized: World, tmp_path: Path) -> None:
    with Store(quantized.store) as store:
        (record,) = store.modules("ann")
        assert record.base_fingerprint == loaded(quantized.base, "4bit").fingerprint
        assert record.training["quantize"] == "4bit"
    asked = ("ask", "Which colour? thing: car", "--store", quantized.store, "--user", "ann")
    assert done(*asked).strip() in COLOUR.labels  # quantized as it was for the module, without being told
    assert "was trained on another base" in refused(*asked, "--quantize", "8bit")
    predict = ("predict", "--task", quantized.task, "--data", quantized.data, "--store", quantized.store)
    for extra, missing in ((), True), (("--quantize", "4bit"), False):
        said = oppu(*predict, "--base", quantized.base, "--out", tmp_path / "out.json", *extra).err
        assert ("for want of a module" in said) is missing


@NEEDED
def test_a_second_run_on_the_quantized_base_keeps_all_and_one_on_the_full_base_trains_all(quantized: World) -> None:
    again = ("personalize", "--task", quantized.task, "--data", quantized.data, "--store", quantized.store)
    again = (*again, "--base", quantized.base, *SMALL)
    assert done(*again, "--quantize", "4bit").startswith("2 kept")
    assert done(*again).startswith("2 trained")


@NEEDED
def test_adapting_a_quantized_base_is_refused_and_says_what_to_do(world: World, quantized_folder: Path) -> None:
    adapt = ("adapt", "--task", world.task, "--data", world.data, "--store", world.store)
    what = (
        "a module cannot be merged into a quantized base; adapt the base in full precision first, and give --quantize"
    )
    assert what in refused(*adapt, "--base", world.base, "--quantize", "4bit")
    assert what in refused(*adapt, "--base", quantized_folder)


@NEEDED
def test_an_experiment_adapts_in_full_precision_and_compares_on_the_quantized_base(
    world: World, tmp_path: Path
) -> None:
    run = ("experiment", "--task", world.task, "--data", world.data, "--base", world.base, "--methods", "base,oppu")
    run = (*run, "--out", tmp_path / "run", "--adapt-epochs", "1", *SMALL)
    done(*run, "--quantize", "8bit")
    with Store(tmp_path / "run" / "store") as store:
        (record,) = store.modules("ann")
        adapted = store.base("colour-plain")
        assert adapted is not None
        assert adapted.fingerprint == load_base(str(adapted.path)).fingerprint  # in full on disk
        assert record.base_fingerprint == loaded(adapted.path, "8bit").fingerprint
    assert json.loads((tmp_path / "run" / "results.json").read_text())["config"]["quantize"] == "8bit"
    assert "holds another run" in refused(*run, "--quantize", "4bit")
    assert "holds another run" in refused(*run)


@NEEDED
@BITS
def test_a_server_answers_from_a_quantized_base_and_the_users_modules(folder: Path, tmp_path: Path, bits: str) -> None:
    base = loaded(folder, bits)
    with Store(tmp_path / "store") as store:
        put_user(store, base, "ann", TITLE, 1)
        with running_server(store, base) as (client, _):
            said = client.completions.create(model="user:ann", prompt="what now, my dear?", max_tokens=8, temperature=0)
        alone = loaded(folder, bits)
        bank = Bank(alone.model, LoraConfig(rank=4, alpha=8), 1)
        bank.load(0, random_module(alone, 1))
        with bank.attach():
            decoder, tokens = Decoder(alone.model), list(alone.tokenizer("what now, my dear?").input_ids)
            written: list[int] = [int(decoder.admit([Prompt(0, 0, tuple(tokens))]).argmax())]
            while len(written) < 8 and written[-1] != 2:
                written.append(int(decoder.step(written[-1:]).argmax()))
    assert said.choices[0].text == alone.tokenizer.decode(written, skip_special_tokens=True)
