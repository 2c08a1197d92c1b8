"""The bank equals a three-line loop over users, whatever the mix, and its modules are PEFT's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import plain_log_probs, tiny_model, tiny_tokenizer, toy_examples
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from oppu.errors import ConfigError, ModelError
from oppu.model.attention import use_layout
from oppu.model.bank import Bank, check_fits, user_seed
from oppu.model.base import Base, make_base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import LoraConfig, LoraXsConfig, ModuleConfig
from oppu.model.module import Module, read_module, write_module

Spans = tuple[tuple[int, int, int], ...]

LORA = LoraConfig(rank=3, alpha=6)
LAYER = "model.layers.0.self_attn.q_proj"
TOKENS = 12
MIXES: dict[str, Spans] = {
    "identical": ((1, 0, 12),),
    "distinct": ((0, 0, 4), (1, 4, 8), (2, 8, 12)),
    "skewed": ((2, 0, 1), (0, 1, 11), (1, 11, 12)),
    "a user in two rows": ((0, 0, 3), (1, 3, 6), (0, 6, 12)),
    "with the base between": ((0, 0, 2), (-1, 2, 9), (2, 9, 12)),
    "a token each": tuple((n % 4 - 1, n, n + 1) for n in range(12)),
    "empty": ((-1, 0, 12),),
}


@dataclass(frozen=True)
class Spread:
    """A layout of spans alone, for one layer by itself."""

    spans: Spans
    longest: int = TOKENS

    def attend(self, *_: Any) -> torch.Tensor:
        raise AssertionError("one layer has no attention")


def filled_bank(model: PreTrainedModel, config: LoraConfig = LORA, slots: int = 3, stacked: bool | None = None) -> Bank:
    """A bank of modules that change the output; a fresh one's b is zero."""
    bank = Bank(model, config, slots, stacked=stacked)
    for slot in range(slots):
        bank.reset(slot, seed=slot)
    bank.values += 0.3 * torch.randn(bank.values.shape, generator=torch.Generator().manual_seed(7))
    return bank


def factors(bank: Bank, layer: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(a [R, I], b [O, R]) of each slot, apart from the bank."""
    modules = [bank.module(slot).tensors for slot in range(bank.slots)]
    names = [f"base_model.model.{layer}.lora_{part}.weight" for part in "AB"]
    return [(m[names[0]].requires_grad_(), m[names[1]].requires_grad_()) for m in modules]


def gradients(bank: Bank, layer: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    (place,) = (place for place in bank._kind.places if place.target.name == layer)
    a, b = place.both(bank.grads, bank.config.rank)
    return list(zip(a, b, strict=True))


def loop(linear: torch.nn.Module, x: torch.Tensor, bank: Bank, users: Sequence[Any], spans: Spans) -> torch.Tensor:
    """The reference."""
    y = linear(x)
    for slot, start, end in spans:
        if slot >= 0:
            a, b = users[slot]
            y = y.index_add(0, torch.arange(start, end), bank.config.scale * x[start:end] @ a.T @ b.T)
    return y


@pytest.mark.parametrize("stacked", [False, True], ids=["span by span", "stacked"])
@pytest.mark.parametrize("mix", MIXES)
def test_forward_and_gradients_equal_a_loop_over_the_users(base: Base, mix: str, stacked: bool) -> None:
    bank, spans = filled_bank(base.model, stacked=stacked), MIXES[mix]
    users, linear = factors(bank, LAYER), base.model.get_submodule(LAYER)
    x = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(2))
    x_bank, x_loop = (x.clone().requires_grad_() for _ in range(2))
    with bank.attach(), use_layout(Spread(spans)):
        found = linear(x_bank[None])[0]
    expected = loop(linear, x_loop, bank, users, spans)
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x_bank.grad, x_loop.grad)
    for (a, b), (grad_a, grad_b) in zip(users, gradients(bank, LAYER), strict=True):
        torch.testing.assert_close(grad_a, a.grad if a.grad is not None else torch.zeros_like(a))
        torch.testing.assert_close(grad_b, b.grad if b.grad is not None else torch.zeros_like(b))


@torch.no_grad()
@pytest.mark.parametrize("mix", MIXES)
def test_answers_without_gradients_equal_the_loop_too(base: Base, mix: str) -> None:
    bank, linear = filled_bank(base.model), base.model.get_submodule(LAYER)
    x = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(1))
    with bank.attach(), use_layout(Spread(MIXES[mix])):
        found = linear(x[None])[0]
    torch.testing.assert_close(found, loop(linear, x, bank, factors(bank, LAYER), MIXES[mix]))


@torch.no_grad()
def test_a_step_follows_the_modules_when_they_change(base: Base) -> None:
    bank, linear, spans = filled_bank(base.model), base.model.get_submodule(LAYER), MIXES["a token each"]
    x = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(1))
    with bank.attach(), use_layout(Spread(spans)):
        linear(x[:, None])
        bank.load(0, bank.module(2))
        found = linear(x[:, None])[:, 0]
    users = factors(bank, LAYER)
    assert torch.equal(users[0][0], users[2][0])
    torch.testing.assert_close(found, loop(linear, x, bank, users, spans))


def test_gradients_add_up_until_they_are_forgotten(base: Base) -> None:
    bank, linear = filled_bank(base.model), base.model.get_submodule(LAYER)
    x = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(1))
    seen = []
    with bank.attach(), use_layout(Spread(MIXES["identical"])):
        for _ in range(2):
            linear(x[None]).sum().backward()
            seen.append(bank.grads.clone())
    torch.testing.assert_close(seen[1], 2 * seen[0])
    assert seen[0].abs().sum() > 0
    bank.zero_grad()
    assert not bank.grads.any()


def log_probs(model: PreTrainedModel, slot: int) -> torch.Tensor:
    """What the model makes of a few sequences of one slot."""
    return answer_log_probs(model, list(rows_of(slot, toy_examples(6, seed=3), 10_000)))


@torch.no_grad()
def test_a_fresh_module_leaves_the_base_as_it_was(base: Base) -> None:
    bank = Bank(base.model, LORA, 2)
    bank.reset(1, seed=5)
    before = log_probs(base.model, -1)
    with bank.attach():
        assert torch.equal(log_probs(base.model, 1), before)
    assert bank.module(1).tensors[f"base_model.model.{LAYER}.lora_A.weight"].abs().max() > 0


@torch.no_grad()
def test_slot_minus_one_is_the_base_and_a_detached_bank_is_none(base: Base) -> None:
    bank, before = filled_bank(base.model), log_probs(base.model, -1)
    with bank.attach():
        assert torch.equal(log_probs(base.model, -1), before)
        assert (log_probs(base.model, 0) - before).abs().max() > 0.01
    assert torch.equal(log_probs(base.model, 0), before)


def gpt2() -> PreTrainedModel:
    """Its projections are transposed (Conv1D), and one layer holds query, key and value."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=128, bos_token_id=1, eos_token_id=2, **sizes)).eval()


MODELS = {"llama": tiny_model, "gpt2": gpt2}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_merged_module_equals_one_that_is_not_merged(name: str) -> None:
    base = make_base(name, MODELS[name](), tiny_tokenizer())
    bank, before = filled_bank(base.model), log_probs(base.model, -1)
    with bank.attach():
        unmerged = log_probs(base.model, 1)
    bank.merge(1)
    torch.testing.assert_close(log_probs(base.model, -1), unmerged, atol=1e-4, rtol=1e-4)
    assert (unmerged - before).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("targets", [None, ("q_proj", "up_proj"), ("layers.1.self_attn.o_proj",)])
def test_peft_loads_a_module_and_gives_the_same_logits(
    base: Base, tmp_path: Path, targets: tuple[str, ...] | None
) -> None:
    bank = filled_bank(base.model, replace(LORA, targets=targets))
    write_module(bank.module(2), tmp_path)
    model = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    (row,) = rows_of(2, toy_examples(6, seed=3), 10_000)
    expected = plain_log_probs(model, row.examples)
    with bank.attach():
        torch.testing.assert_close(answer_log_probs(base.model, [row]), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_peft_loads_a_module_of_transposed_layers(tmp_path: Path) -> None:
    base = make_base("gpt2", gpt2(), tiny_tokenizer())
    bank = filled_bank(base.model)
    write_module(bank.module(0), tmp_path)
    model = PeftModel.from_pretrained(gpt2(), str(tmp_path)).eval()
    (row,) = rows_of(0, toy_examples(1, seed=3), 10_000)
    expected = plain_log_probs(model, row.examples)
    with bank.attach():
        torch.testing.assert_close(answer_log_probs(base.model, [row]), expected, atol=1e-5, rtol=1e-5)


def test_a_module_comes_back_from_a_slot_as_it_went_in(base: Base) -> None:
    bank = filled_bank(base.model)
    module = bank.module(0)
    bank.load(2, module)
    assert torch.equal(bank.values[2], bank.values[0])
    again = bank.module(2)
    assert again.config == module.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in module.tensors.items())
    assert LoraConfig.of(module) == replace(LORA, targets=("q_proj", "v_proj"))


def test_a_module_taken_out_is_a_copy(base: Base) -> None:
    bank = filled_bank(base.model)
    module = bank.module(0)
    before = bank.values.clone()
    for tensor in module.tensors.values():
        tensor.zero_()
    assert torch.equal(bank.values, before)


def changed(module: Module, tensors: dict[str, torch.Tensor | None] | None = None, **config: Any) -> Module:
    """The module with other settings and tensors; None takes one away."""
    merged = {**module.tensors, **(tensors or {})}
    return Module({name: t for name, t in merged.items() if t is not None}, {**module.config, **config})


A = f"base_model.model.{LAYER}.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        ({A: torch.zeros(3, 31)}, {}, f"{A} is [3, 31], not [3, 32]"),
        ({A: None}, {}, f"{A} is missing"),
        ({"base_model.model.x.lora_A.weight": torch.zeros(3, 3)}, {}, "base_model.model.x.lora_A.weight is not known"),
        ({}, {"peft_type": "IA3"}, "peft_type is IA3, not LORA"),
        ({}, {"use_rslora": True}, "use_rslora is True, which is not supported"),
        ({}, {"alpha_pattern": {"q_proj": 2}}, "alpha_pattern is {'q_proj': 2}, which is not supported"),
        ({}, {"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is [5, 6], which is not supported"),
        ({}, {"use_qalora": True}, "use_qalora is True, which is not supported"),
        ({}, {"lora_bias": True}, "lora_bias is True, which is not supported"),
        ({}, {"kasa_config": {}}, "kasa_config is {}, which is not supported"),
        ({}, {"arrow_config": {"top_k": 3}}, "arrow_config is {'top_k': 3}, which is not supported"),
        ({}, {"monteclora_config": {}}, "monteclora_config is {}, which is not supported"),
        ({}, {"use_bdlora": {"nblocks": 2}}, "use_bdlora is {'nblocks': 2}, which is not supported"),
        ({}, {"layers_to_transform": 0}, "layers_to_transform is 0, which is not supported"),
        ({}, {"layer_replication": [[0, 2]]}, "layer_replication is [[0, 2]], which is not supported"),
        ({}, {"init_lora_weights": "pissa"}, "init_lora_weights is pissa, which is not supported"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4, which is not supported"),
        ({}, {"init_lora_weights": ["olora"]}, "init_lora_weights is ['olora'], which is not supported"),
    ],
)
def test_what_does_not_fit_is_named_and_the_slot_stays(
    base: Base, tensors: dict[str, torch.Tensor | None], config: dict[str, Any], words: str
) -> None:
    bank = filled_bank(base.model)
    before = bank.values.clone()
    with pytest.raises(ModelError) as caught:
        bank.load(1, changed(bank.module(0), tensors, **config))
    assert f"the module does not fit: {words}; use it with" in caught.value.line()
    assert torch.equal(bank.values, before)


SETTINGS = [
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": False},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "mica"},
    {"alora_invocation_tokens": [5, 6]},
    {"use_rslora": True},
    {"bias": "lora_only"},
]


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_peft_reads_as_another_model_is_refused_and_the_rest_answers_as_in_peft(
    base: Base, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = PeftLoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    made = get_peft_model(tiny_model(), config)
    for name, weight in made.named_parameters():
        weight += 0.1 * torch.randn(weight.shape) * ("lora_" in name)
    made.save_pretrained(tmp_path)
    examples = toy_examples(3, seed=0)
    known = plain_log_probs(PeftModel.from_pretrained(tiny_model(), tmp_path).eval(), examples)
    module = read_module(tmp_path)
    bank = Bank(base.model, LoraConfig(4, 8, targets=("q_proj",)), 1)
    if next(iter(settings.values())) in (False, "gaussian", "orthogonal", "lora_only"):
        bank.load(0, module)
        with bank.attach():
            found = answer_log_probs(base.model, list(rows_of(0, examples, 4096)))
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(ModelError, match=f"{next(iter(settings))} is .*, which is not supported"):
            bank.load(0, module)


NO_SCALES = [{"lora_alpha": alpha} for alpha in (None, "8", True, math.nan, math.inf, 1e300, 10**400)]


@pytest.mark.parametrize("config", [*NO_SCALES, {"r": None}, {"r": 0}], ids=str)
@pytest.mark.parametrize("shape", [LORA, LoraXsConfig(3)], ids=["lora", "lora-xs"])
def test_what_is_no_number_to_scale_by_is_refused(base: Base, shape: ModuleConfig, config: dict[str, Any]) -> None:
    bank = Bank(base.model, shape, 1)
    bank.reset(0, seed=0)
    module = bank.module(0)
    (name,) = config
    with pytest.raises(ModelError, match=f"the module does not fit: {name} is "):
        check_fits(base.model, changed(module, **config))
    with pytest.raises(ModelError, match=f"the module does not fit: {name} is "):
        bank.load(0, changed(module, **config))
    without = {key: value for key, value in module.config.items() if key != name}
    with pytest.raises(ModelError, match=f"{name} is None"):
        check_fits(base.model, Module(module.tensors, without))


def test_a_module_of_another_rank_is_refused_by_its_rank_first(base: Base) -> None:
    module = filled_bank(base.model, LoraConfig(rank=4, alpha=6)).module(0)
    with pytest.raises(ModelError, match=r"does not fit: r is 4, not between 1 and 3; .*lora_A.weight is"):
        Bank(base.model, LORA, 1).load(0, module)


def test_a_module_of_another_base_is_refused_with_the_number_of_misfits(base: Base) -> None:
    module = filled_bank(make_base("more layers", tiny_model(layers=3), tiny_tokenizer()).model).module(0)
    with pytest.raises(ModelError, match=r"layers\.2\.self_attn.* is not known; .*\(and 1 more\)"):
        Bank(base.model, LORA, 1).load(0, module)
    with pytest.raises(ModelError, match="is not known"):
        check_fits(base.model, module)


def test_a_module_that_is_no_lora_has_no_shape_here(base: Base) -> None:
    module = filled_bank(base.model).module(0)
    with pytest.raises(ModelError, match="the module is IA3 on "):
        LoraConfig.of(changed(module, peft_type="IA3"))
    with pytest.raises(ModelError, match=r"the module is LORA on \.\*q_proj; use a LoRA module"):
        LoraConfig.of(changed(module, target_modules=".*q_proj"))


@pytest.mark.parametrize("targets", [("nope",), ("q_proj", "nope"), ("q_proj", "lm_head")])
def test_unknown_target_names_are_refused_with_those_there_are(base: Base, targets: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        Bank(base.model, LoraConfig(targets=targets), 1)
    names = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert caught.value.line() == f"no linear layer is called {targets[-1]}; use some of: {names}"


def test_dropout_is_drawn_from_the_users_own_stream(base: Base) -> None:
    linear = base.model.get_submodule(LAYER)
    config = replace(LORA, dropout=0.5)
    x = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(1))

    def outputs(seeds: list[int], mine: int) -> torch.Tensor:
        """Of the user in slot `mine`, on the same tokens, whoever the neighbours are."""
        bank = filled_bank(base.model, config, len(seeds))
        for slot, seed in enumerate(seeds):
            bank.reset(slot, seed)
            bank.values[slot] = 0.1
        spans = tuple((slot, 4 * slot, 4 * slot + 4) for slot in range(len(seeds)))
        tokens = x.repeat(len(seeds), 1)[: 4 * len(seeds)].clone()
        tokens[4 * mine : 4 * mine + 4] = x[:4]
        with bank.attach(), use_layout(Spread(spans)):
            found: torch.Tensor = linear(tokens[None])[0, 4 * mine : 4 * mine + 4]
        return found.detach()

    alone = outputs([11], 0)
    assert torch.equal(outputs([5, 11, 6], 1), alone)
    assert not torch.allclose(outputs([12], 0), alone)


def test_dropout_keeps_the_mean_and_answers_have_none(base: Base) -> None:
    linear, config = base.model.get_submodule(LAYER), replace(LORA, dropout=0.5)
    bank, without = filled_bank(base.model, config), filled_bank(base.model)
    x = torch.ones(4000, 32)
    spans = ((0, 0, 4000),)
    with bank.attach(), use_layout(Spread(spans)):
        dropped = linear(x[None])[0].detach()
        with torch.no_grad():
            answered = linear(x[None])[0]
    with without.attach(), use_layout(Spread(spans)):
        expected = linear(x[None])[0].detach()
    torch.testing.assert_close(answered, expected)
    assert dropped.std(0).min() > 0.01
    error = dropped.std(0) / 4000**0.5
    assert ((dropped.mean(0) - expected.mean(0)).abs() < 6 * error).all()


def test_a_users_seed_does_not_depend_on_the_process_and_differs_between_users() -> None:
    assert user_seed(0, "u17") == 3_550_204_180
    assert user_seed(0, "u18") != user_seed(0, "u17")


def test_another_seed_gives_a_user_other_random_numbers() -> None:
    """A generator on the CPU looks at 32 bits of its seed alone."""
    seeds = [user_seed(seed, "u17") for seed in (0, 1, 2, 7, 2**31)]
    drawn = {tuple(torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in seeds}
    assert len(drawn) == len(seeds)
