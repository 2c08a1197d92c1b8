"""Kinds of modules: each equals PEFT's own, packed in company, and modules of different ranks share a bank."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import plain_log_probs, tiny_model, tiny_tokenizer, toy_examples
from peft import IA3Config, PeftModel, PromptTuningConfig, get_peft_model, set_peft_model_state_dict
from peft import LoraConfig as PeftLoraConfig
from test_predict import LABELS, QUESTIONS
from test_train import difference, jobs, padded
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from oppu.errors import ConfigError, ModelError
from oppu.model.bank import Bank, portable, user_seed
from oppu.model.base import Base, make_base
from oppu.model.decode import Decoder, Prompt
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import (
    KINDS,
    Ia3Config,
    LoraConfig,
    LoraXsConfig,
    ModuleConfig,
    PromptConfig,
    config_of,
    default_config,
    largest,
    lora_xs,
)
from oppu.model.module import Module, read_module, write_module
from oppu.model.tokens import encode
from oppu.predict import Question, generate, score_answers, score_labels
from oppu.records import Example
from oppu.train import Job, Machine, TrainConfig, batches_of, learning_rate_factor, train

PEFT = {
    "lora": PeftLoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}
OURS: dict[str, ModuleConfig] = {
    "lora": LoraConfig(rank=4, alpha=8, targets=("q_proj", "down_proj")),
    "ia3": Ia3Config(),
    "prompt": PromptConfig(5),
}
KIND = pytest.mark.parametrize("kind", OURS)
XS = LoraXsConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"))
CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=3e-2)


def train_with_peft(
    kind: str, start: Module, job: Job, config: TrainConfig, model: PreTrainedModel | None = None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """One user alone: padded batches, AdamW, PEFT's module, from the same start, in the tiny or a given base."""
    model = get_peft_model(model if model is not None else tiny_model(), deepcopy(PEFT[kind]))  # PEFT writes into it
    set_peft_model_state_dict(model, {name: tensor.clone() for name, tensor in start.tensors.items()})
    losses = trained_alone(model, [p for p in model.parameters() if p.requires_grad], job, config)
    names = {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    if kind == "prompt":
        names = {"prompt_embeddings": next(iter(names.values()))}
    return names, losses


def trained_alone(
    model: torch.nn.Module, parameters: list[torch.nn.Parameter], job: Job, config: TrainConfig
) -> list[float]:
    """The losses of one user alone: padded batches, torch's AdamW."""
    model.train()
    total = config.epochs * math.ceil(len(job.examples) / config.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for step, batch in enumerate(batches_of(job, config)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, total, config.warmup)
        loss = model(**padded(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def filled(model: torch.nn.Module, config: ModuleConfig, slots: int = 3) -> Bank:
    """Modules that change the output."""
    bank = Bank(model, config, slots)
    for slot in range(slots):
        bank.reset(slot, seed=slot)
    bank.values += 0.2 * torch.randn(bank.values.shape, generator=torch.Generator().manual_seed(7))
    return bank


@KIND
def test_a_user_in_company_equals_the_user_alone_with_peft(base: Base, kind: str) -> None:
    config = replace(CONFIG, module=OURS[kind])
    company = ["long", "medium", "short"]
    found = {t.user_id: t for t in train(base, jobs(company), config, Machine(slots=2, tokens_per_pass=300))}
    for user in company:
        bank = Bank(base.model, config.module, 1)
        bank.reset(0, user_seed(config.seed, user))
        tensors, losses = train_with_peft(kind, bank.module(0), jobs([user])[0], config)
        assert found[user].losses == pytest.approx(losses, rel=1e-4)
        assert difference(dict(found[user].module.tensors), tensors) < 1e-4
        assert difference(dict(bank.module(0).tensors), tensors) > 1e-2  # it has learnt something


@torch.no_grad()
@KIND
def test_peft_loads_a_module_and_gives_the_same_log_probabilities(base: Base, tmp_path: Path, kind: str) -> None:
    bank = filled(base.model, OURS[kind])
    write_module(bank.module(2), tmp_path)
    model = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    examples = toy_examples(6, seed=3)
    skipped = OURS[kind].virtual_tokens
    expected = plain_log_probs(model, examples, skipped)
    rows = list(rows_of(2, [e.after_virtual(skipped) for e in examples], 10_000))
    with bank.attach():
        torch.testing.assert_close(answer_log_probs(base.model, rows), expected, atol=1e-5, rtol=1e-5)


@KIND
def test_a_module_goes_to_disk_and_into_another_slot_unchanged(base: Base, tmp_path: Path, kind: str) -> None:
    bank = filled(base.model, OURS[kind])
    write_module(bank.module(0), tmp_path)
    module = read_module(tmp_path)
    bank.load(1, module)
    assert torch.equal(bank.values[1], bank.values[0])
    again = Bank(base.model, config_of(module), 1)
    again.load(0, module)
    assert difference(dict(again.module(0).tensors), dict(module.tensors)) == 0


@torch.no_grad()
@KIND
def test_a_mixed_batch_answers_as_each_user_alone_with_peft(base: Base, tmp_path: Path, kind: str) -> None:
    bank = filled(base.model, OURS[kind])
    virtual = OURS[kind].virtual_tokens
    questions = [Question(i % 4 - 1, q.example) for i, q in enumerate(QUESTIONS)]
    with bank.attach():
        scores = score_labels(base, LABELS, questions, virtual_tokens=virtual)
        texts = generate(base, LABELS, questions, batch_size=3, virtual_tokens=virtual)
    for slot in range(3):
        write_module(bank.module(slot), tmp_path / str(slot))
    for slot in range(-1, 3):
        mine = [i for i, q in enumerate(questions) if q.slot == slot]
        if not mine:
            continue
        alone = base
        if slot >= 0:
            model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / str(slot)))
            if kind != "prompt":
                alone = make_base("merged", model.merge_and_unload(), tiny_tokenizer())
                plain = [Question(-1, questions[i].example) for i in mine]
                torch.testing.assert_close(score_labels(alone, LABELS, plain), scores[mine], atol=1e-4, rtol=1e-4)
                assert generate(alone, LABELS, plain) == [texts[i] for i in mine]
            else:
                ids = base.tokenizer(questions[mine[0]].example.prompt, return_tensors="pt").input_ids
                logits = model.eval()(input_ids=ids).logits[0, -1]
                with bank.attach():
                    prompt = [*range(-virtual, 0), *ids[0].tolist()]
                    found = Decoder(base.model).admit([Prompt(0, slot, tuple(prompt))])[0]
                torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_fresh_module_changes_nothing_and_a_merged_one_equals_the_bank(kind: str) -> None:
    base = make_base("tiny", tiny_model(), tiny_tokenizer())

    def log_probs(slot: int) -> torch.Tensor:
        return answer_log_probs(base.model, list(rows_of(slot, toy_examples(6, seed=3), 10_000)))

    fresh, bank, before = Bank(base.model, OURS[kind], 1), filled(base.model, OURS[kind]), log_probs(-1)
    fresh.reset(0, seed=1)
    with fresh.attach():
        assert torch.equal(log_probs(0), before)
    with bank.attach():
        unmerged = log_probs(1)
    bank.merge(1)
    torch.testing.assert_close(log_probs(-1), unmerged, atol=1e-4, rtol=1e-4)
    assert (unmerged - before).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize(
    "targets",
    [
        ("model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj"),  # as of modules on the top layer
        ("self_attn.k_proj", "mlp.down_proj"),
    ],
)
def test_ia3_on_layers_named_in_full_can_be_stored_loaded_and_used_by_peft(
    base: Base, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    config = Ia3Config(targets=targets)
    bank = filled(base.model, config)
    module = bank.module(1)
    again = Bank(base.model, config, 1)
    again.load(0, module)
    assert torch.equal(again.values[0], bank.values[1])
    write_module(module, tmp_path / "module")
    model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "module")).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with bank.attach():
        found = Decoder(base.model).admit([Prompt(0, 1, tuple(ids[0].tolist()))])[0]
    torch.testing.assert_close(found, model(input_ids=ids).logits[0, -1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_ia3_multiplies_in_float32_over_a_bfloat16_base_as_peft_does() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 11, 14]])
    base = make_base("tiny", tiny_model().to(torch.bfloat16), tiny_tokenizer())
    bank = Bank(base.model, Ia3Config(), 1)
    bank.values[0] = 1.003  # in bfloat16: 1
    module = bank.module(0)
    peft = get_peft_model(tiny_model().to(torch.bfloat16), deepcopy(PEFT["ia3"]))
    set_peft_model_state_dict(peft, {name: tensor.clone() for name, tensor in module.tensors.items()})
    plain = Decoder(base.model).admit([Prompt(0, -1, tuple(ids[0].tolist()))])[0]
    with bank.attach():
        found = Decoder(base.model).admit([Prompt(0, 0, tuple(ids[0].tolist()))])[0]
    expected = peft.eval()(input_ids=ids).logits[0, -1]
    assert not torch.equal(found, plain)
    assert (found - expected).abs().max() < 0.5 * (found - plain).abs().max()


def test_a_soft_prompt_cannot_be_merged(base: Base) -> None:
    with pytest.raises(ConfigError, match="cannot be merged"):
        filled(base.model, PromptConfig(5)).merge(0)


def test_users_of_different_ranks_share_a_bank_and_train_as_if_alone(base: Base) -> None:
    names, shapes = ["long", "medium", "short"], [LoraConfig(8, 8), LoraConfig(2, 8), LoraConfig(4, 2)]
    config = replace(CONFIG, module=shapes[0])
    mixed = [replace(job, module=shape) for job, shape in zip(jobs(names), shapes, strict=True)]
    company = {t.user_id: t for t in train(base, mixed, config, Machine(slots=3))}
    for job, shape in zip(jobs(names), shapes, strict=True):
        (alone,) = train(base, [job], replace(config, module=shape), Machine(slots=1))
        assert company[job.user_id].losses == pytest.approx(alone.losses, rel=1e-5)
        assert company[job.user_id].module.config == alone.module.config
        assert difference(dict(company[job.user_id].module.tensors), dict(alone.module.tensors)) < 1e-4


@torch.no_grad()
def test_modules_of_different_ranks_and_alphas_answer_together(base: Base) -> None:
    shapes = [LoraConfig(2, 8, targets=("q_proj", "v_proj")), LoraConfig(4, 2, targets=("q_proj", "v_proj"))]
    modules = [filled(base.model, shape, 1).module(0) for shape in shapes]
    together = Bank(base.model, largest([config_of(m) for m in modules]), 2)
    for slot, module in enumerate(modules):
        together.load(slot, module)
        assert difference(dict(together.module(slot).tensors), dict(module.tensors)) == 0
    questions = [Question(i % 2, q.example) for i, q in enumerate(QUESTIONS)]
    with together.attach():
        scores, texts = score_labels(base, LABELS, questions), generate(base, LABELS, questions)
    for slot, (shape, module) in enumerate(zip(shapes, modules, strict=True)):
        bank = Bank(base.model, shape, 1)
        bank.load(0, module)
        mine = [i for i, q in enumerate(questions) if q.slot == slot]
        plain = [Question(0, questions[i].example) for i in mine]
        with bank.attach():
            torch.testing.assert_close(score_labels(base, LABELS, plain), scores[mine], atol=1e-5, rtol=1e-5)
            assert generate(base, LABELS, plain) == [texts[i] for i in mine]


class WithCore(torch.nn.Module):
    """A linear layer with LoRA-XS beside it, from a singular value decomposition of the whole rounded weight."""

    def __init__(self, linear: torch.nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        u, s, v = torch.linalg.svd(linear.weight.detach().bfloat16().double(), full_matrices=False)
        signs = u[:, :rank].gather(0, u[:, :rank].abs().argmax(0, keepdim=True)).sign()
        self.a = (v[:rank] * signs.T * s[:rank, None]).float()
        self.b = (u[:, :rank] * signs).float()
        self.core = torch.nn.Parameter(torch.zeros(rank, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scale * x @ self.a.T @ self.core.T @ self.b.T


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_alone_in_a_bank_of_two_and_in_one_of_32_gets_the_same_module(base: Base, kind: str) -> None:
    config = replace(CONFIG, module=default_config(kind))
    user = jobs(["medium"])[0]
    ragged = [Job(f"user {n}", toy_examples(1 + 5 * n % 13, seed=n)) for n in range(32)]
    modules, losses = [], []
    for neighbours, slots in (([], 1), (ragged[:1], 2), (ragged, 32)):
        company = [*neighbours[: len(neighbours) // 2], user, *neighbours[len(neighbours) // 2 :]]
        found = {t.user_id: t for t in train(base, company, config, Machine(slots=slots))}
        assert len(found) == len(company)
        modules.append(dict(found[user.user_id].module.tensors))
        losses.append(found[user.user_id].losses)
    for other, seen in zip(modules[1:], losses[1:], strict=True):
        assert difference(other, modules[0]) < 1e-4
        assert seen == pytest.approx(losses[0], rel=1e-5)


def test_lora_xs_in_company_equals_the_user_alone_with_a_plain_layer(base: Base) -> None:
    config = replace(CONFIG, module=XS)
    company = ["long", "medium", "short"]
    found = {t.user_id: t for t in train(base, jobs(company), config, Machine(slots=2, tokens_per_pass=300))}
    for user in company:
        model = tiny_model().requires_grad_(False)
        cores = []
        for name, layer in list(model.named_modules()):
            if name.endswith(XS.targets):
                plain = WithCore(layer, XS.rank, XS.scale)
                model.set_submodule(name, plain)
                cores.append(plain.core)
        losses = trained_alone(model, cores, jobs([user])[0], config)
        assert found[user].losses == pytest.approx(losses, rel=1e-4)
        assert difference(dict(found[user].module.tensors), {"cores": torch.stack(cores).detach()}) < 1e-4


@torch.no_grad()
def test_lora_xs_is_a_few_kilobytes_and_exports_as_plain_lora(base: Base, tmp_path: Path) -> None:
    bank = filled(base.model, XS)
    write_module(bank.module(2), tmp_path / "stored")
    assert sum(file.stat().st_size for file in (tmp_path / "stored").iterdir()) < 2_000
    write_module(portable(base.model, read_module(tmp_path / "stored")), tmp_path / "exported")
    model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "exported")).eval()
    examples = toy_examples(6, seed=3)
    with bank.attach():
        found = answer_log_probs(base.model, list(rows_of(2, examples, 10_000)))
    torch.testing.assert_close(found, plain_log_probs(model, examples), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_lora_xs_decodes_step_by_step_as_merged() -> None:
    base = make_base("tiny", tiny_model(), tiny_tokenizer())
    bank = filled(base.model, XS)
    questions = [Question(i % 4 - 1, q.example) for i, q in enumerate(QUESTIONS)]
    with bank.attach():
        texts = generate(base, LABELS, questions, batch_size=3)
    bank.merge(1)
    mine = [i for i, q in enumerate(questions) if q.slot == 1]
    assert generate(base, LABELS, [Question(-1, questions[i].example) for i in mine]) == [texts[i] for i in mine]


def test_cores_of_different_ranks_train_together_as_if_alone(base: Base) -> None:
    names, shapes = ["long", "medium", "short"], [replace(XS, rank=rank) for rank in (8, 2, 4)]
    config = replace(CONFIG, module=shapes[0])
    mixed = [replace(job, module=shape) for job, shape in zip(jobs(names), shapes, strict=True)]
    company = {t.user_id: t for t in train(base, mixed, config, Machine(slots=3))}
    for job, shape in zip(jobs(names), shapes, strict=True):
        (alone,) = train(base, [job], replace(config, module=shape), Machine(slots=1))
        assert company[job.user_id].losses == pytest.approx(alone.losses, rel=1e-5)
        assert difference(dict(company[job.user_id].module.tensors), dict(alone.module.tensors)) < 1e-4


def test_the_halves_are_kept_on_disk_and_come_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path))
    monkeypatch.setattr(lora_xs, "_KEPT_FROM", 0)
    first = XS.lay_out(tiny_model())._halves
    (kept,) = (tmp_path / "lora-xs").iterdir()
    again = XS.lay_out(tiny_model())._halves
    assert all(torch.equal(x, y) for p, q in zip(first, again, strict=True) for x, y in zip(p, q, strict=True))
    kept.write_bytes(b"damaged")
    anew = XS.lay_out(tiny_model())._halves
    assert all(torch.equal(x, y) for p, q in zip(first, anew, strict=True) for x, y in zip(p, q, strict=True))


def test_a_base_in_float32_and_in_bfloat16_have_the_same_halves() -> None:
    first, second = (XS.lay_out(tiny_model().to(dtype))._halves for dtype in (torch.float32, torch.bfloat16))
    assert all(torch.equal(x, y) for p, q in zip(first, second, strict=True) for x, y in zip(p, q, strict=True))


def test_a_rank_above_a_layers_own_is_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match="has rank 32 at most; choose a smaller rank"):
        Bank(base.model, replace(XS, rank=64), 1)


def test_different_kinds_and_layers_have_no_bank_in_common() -> None:
    with pytest.raises(ModelError, match="different kinds"):
        largest([LoraConfig(), PromptConfig()])
    with pytest.raises(ModelError, match="different kinds"):
        largest([LoraConfig(targets=("q_proj",)), LoraConfig(targets=("v_proj",))])


def test_an_unknown_kind_is_refused_with_those_there_are(base: Base) -> None:
    with pytest.raises(ConfigError, match="unknown kind of module 'dora'; use one of: ia3, lora, lora-xs, prompt"):
        default_config("dora")
    module = filled(base.model, LoraConfig(), 1).module(0)
    with pytest.raises(ModelError, match="the module is LOHA; use one of: IA3, LORA, LORA_XS, PROMPT_TUNING"):
        config_of(Module(module.tensors, {**module.config, "peft_type": "LOHA"}))


def test_an_item_as_long_as_the_base_takes_leaves_room_for_a_soft_prompt() -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40}
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=256, **sizes), attn_implementation="oppu")
    base = make_base("gpt2", model, tiny_tokenizer())
    config = TrainConfig(epochs=1, module=PromptConfig(5))
    assert config.tokens_for(base) == 35
    example = Example("ann", "i", "word " * 60, "so")
    (trained,) = train(
        base, [Job("ann", tuple(encode(base.tokenizer, [example], config.tokens_for(base))))], config, Machine(1)
    )
    bank = Bank(base.model, config.module, 1)
    bank.load(0, trained.module)
    (loss,) = trained.losses
    bank.reset(0, user_seed(config.seed, "ann"))
    with bank.attach():  # scored on the very tokens that were learnt, and the base on all that it takes
        found = score_answers(base, [Question(0, example)], 40, virtual_tokens=5)
        beside = score_answers(base, [Question(-1, example), Question(0, example)], 40, virtual_tokens=5)
    assert found == pytest.approx([-loss], rel=1e-5)
    assert beside[0] == pytest.approx(score_answers(base, [Question(-1, example)], 40)[0], rel=1e-5)
