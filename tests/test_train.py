"""Many users at once give what each would get alone from transformers + PEFT."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model, toy_examples
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, set_peft_model_state_dict

from oppu.errors import ConfigError
from oppu.model.bank import Bank, user_seed
from oppu.model.base import Base
from oppu.model.kinds import LoraConfig
from oppu.model.tokens import Encoded
from oppu.train import Job, Machine, TrainConfig, Trained, batches_of, learning_rate_factor, train

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=5e-3, module=LoraConfig(rank=4, alpha=8))
HISTORIES = {"long": 23, "short": 3, "one": 1, "medium": 9, "late": 6}


def jobs(names: list[str]) -> list[Job]:
    order = list(HISTORIES)
    return [Job(name, toy_examples(HISTORIES[name], seed=order.index(name))) for name in names]


def train_all(base: Base, names: list[str], **machine: int) -> dict[str, Trained]:
    return {t.user_id: t for t in train(base, jobs(names), CONFIG, Machine(**machine))}


def train_with_peft(
    base: Base, job: Job, config: TrainConfig, steps: int | None = None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The reference: one user alone, padded, full logits, torch's AdamW, PEFT's LoRA; `steps`: only the first."""
    bank = Bank(base.model, config.module, 1)
    bank.reset(0, user_seed(config.seed, job.user_id))
    start = bank.module(0)
    lora = PeftLoraConfig(
        r=config.module.rank, lora_alpha=config.module.alpha, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]
    )
    model = get_peft_model(tiny_model(), lora)
    set_peft_model_state_dict(model, dict(start.tensors))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = config.epochs * math.ceil(len(job.examples) / config.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(min(step, total - 1), total, config.warmup)
    )
    losses = []
    for batch in itertools.islice(batches_of(job, config), steps):
        loss = model(**padded(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    names = {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return names, losses


def padded(batch: list[Encoded]) -> dict[str, torch.Tensor]:
    width = max(len(e.tokens) for e in batch)
    ids = torch.full((len(batch), width), 2)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for line, e in enumerate(batch):
        ids[line, : len(e.tokens)] = torch.tensor(e.tokens)
        mask[line, : len(e.tokens)] = 1
        labels[line, e.answer_start : len(e.tokens)] = torch.tensor(e.tokens[e.answer_start :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative difference of two modules, as one vector each."""
    assert left.keys() == right.keys()
    a = torch.cat([left[name].flatten() for name in sorted(left)])
    b = torch.cat([right[name].flatten() for name in sorted(left)])
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("together", [1, 2, 9])
@pytest.mark.parametrize("user", HISTORIES)
def test_a_user_in_a_full_bank_equals_the_user_alone_with_peft(
    base: Base, user: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oppu.train._updated_together", lambda _: together)
    trained = train_all(base, list(HISTORIES), slots=3, tokens_per_pass=150)
    tensors, losses = train_with_peft(base, jobs([user])[0], CONFIG)
    assert trained[user].losses == pytest.approx(losses, rel=1e-4)
    assert difference(dict(trained[user].module.tensors), tensors) < 1e-4


def test_neighbours_their_number_and_their_order_change_nothing(base: Base) -> None:
    alone = train_all(base, ["medium"], slots=1)["medium"]
    for names, slots in ((["medium", "long"], 2), (["long", "one", "late", "medium", "short"], 3)):
        company = train_all(base, names, slots=slots, tokens_per_pass=300)["medium"]
        assert company.losses == pytest.approx(alone.losses, rel=1e-5)
        assert difference(dict(company.module.tensors), dict(alone.module.tensors)) < 1e-4


@pytest.mark.parametrize("users", [["medium"], ["medium", "long"], ["long", "one", "late", "medium", "short"]])
def test_the_number_of_cores_changes_nothing(base: Base, users: list[str]) -> None:
    found = {}
    for cores in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            found[cores] = train_all(base, users, slots=len(users), tokens_per_pass=300)["medium"]
        finally:
            torch.set_num_threads(before)
    assert found[3].losses == pytest.approx(found[1].losses, rel=1e-5)
    assert difference(dict(found[3].module.tensors), dict(found[1].module.tensors)) < 1e-4


@pytest.mark.parametrize("name", ["epochs", "batch_size", "patience"])
def test_a_setting_with_which_nobody_can_be_trained_is_refused(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(ConfigError, match=f"{name} is {value}; use 1 or more"):
            replace(CONFIG, **{name: value})


def test_every_user_is_finished_once_however_few_the_slots(base: Base) -> None:
    finished = [t.user_id for t in train(base, jobs(list(HISTORIES)), CONFIG, Machine(slots=2))]
    assert sorted(finished) == sorted(HISTORIES)


def test_dropout_is_the_users_own(base: Base) -> None:
    config = TrainConfig(epochs=2, batch_size=4, module=LoraConfig(rank=4, dropout=0.3))
    alone = {t.user_id: t for t in train(base, jobs(["medium"]), config, Machine(1))}["medium"]
    company = {t.user_id: t for t in train(base, jobs(["long", "medium"]), config, Machine(2))}["medium"]
    exact = {t.user_id: t for t in train(base, jobs(["medium"]), CONFIG, Machine(1))}["medium"]
    assert company.losses == pytest.approx(alone.losses, rel=1e-5)
    assert alone.losses[1] != pytest.approx(exact.losses[1], rel=1e-5)


def test_another_seed_trains_another_module_and_the_same_seed_the_same(base: Base) -> None:
    def trained(seed: int) -> dict[str, object]:
        (found,) = train(base, jobs(["medium"]), replace(CONFIG, seed=seed))
        return {"losses": found.losses, **{name: tensor.tolist() for name, tensor in found.module.tensors.items()}}

    first, second = trained(0), trained(1)
    assert first == trained(0)
    assert all(first[name] != second[name] for name in first)


def test_training_leaves_the_base_as_it_was(base: Base) -> None:
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    train_all(base, ["short"], slots=1)
    for name, weight in base.model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_training_lowers_the_loss(base: Base) -> None:
    habit = tuple(Encoded((*e.prompt, 50, 51), len(e.prompt)) for e in toy_examples(24, seed=0))
    (trained,) = train(base, [Job("habit", habit)], replace(CONFIG, learning_rate=3e-2, epochs=6), Machine(1))
    assert sum(trained.losses[-3:]) < 0.8 * sum(trained.losses[:3])


def test_a_user_with_long_items_is_shared_among_the_cores_and_nothing_changes(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Job("long", tuple(Encoded(e.tokens * 6, 6 * len(e.tokens) - 2) for e in toy_examples(4, seed=1)))
    company = [long, *jobs(["short", "one"])]
    copied: list[int] = []
    monkeypatch.setattr(Bank, "copy", lambda self, slot, to, copy=Bank.copy: (copied.append(to), copy(self, slot, to)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        shared = {t.user_id: t for t in train(base, company, CONFIG, Machine(slots=3))}
        torch.set_num_threads(1)
        assert copied
        copied.clear()
        alone = {t.user_id: t for t in train(base, company, CONFIG, Machine(slots=3))}
        assert not copied
    finally:
        torch.set_num_threads(before)
    for user, trained in shared.items():
        assert trained.losses == pytest.approx(alone[user].losses, rel=1e-5)
        assert difference(dict(trained.module.tensors), dict(alone[user].module.tensors)) < 1e-4


STOPPING = replace(CONFIG, epochs=12, learning_rate=3e-2, patience=2, held_out=0.2)


def test_a_user_stops_early_by_its_own_held_out_items_and_keeps_its_best_epoch(base: Base) -> None:
    names = ["long", "medium", "late", "short", "one"]
    company = {t.user_id: t for t in train(base, jobs(names), STOPPING, Machine(slots=3))}
    epochs = {name: len(trained.held_out_losses) - 1 for name, trained in company.items()}
    assert len({epochs[name] for name in ("long", "medium", "late")}) > 1  # some go on when others are done
    assert min(epochs[name] for name in ("long", "medium", "late")) < STOPPING.epochs
    assert company["one"].held_out_losses == ()  # its one item is trained on
    assert len(company["one"].losses) == STOPPING.epochs
    for job in jobs(["long", "medium", "late", "short"]):
        found = company[job.user_id]
        count = len(job.examples) - math.ceil(0.2 * len(job.examples))
        learnt = replace(job, examples=job.examples[:count])
        per_epoch = math.ceil(count / STOPPING.batch_size)
        best = found.held_out_losses.index(min(found.held_out_losses))
        assert epochs[job.user_id] == min(STOPPING.epochs, best + 2)
        tensors, losses = train_with_peft(base, learnt, STOPPING, best * per_epoch)
        assert difference(dict(found.module.tensors), tensors) < 1e-4
        assert list(found.losses[: len(losses)]) == pytest.approx(losses, rel=1e-4)


def test_a_user_whom_no_epoch_helps_keeps_a_module_that_changes_nothing(base: Base) -> None:
    (job,) = jobs(["long"])
    (found,) = train(base, [job], replace(STOPPING, learning_rate=1.0), Machine(slots=1))
    assert min(found.held_out_losses) == found.held_out_losses[0]
    assert len(found.held_out_losses) == 1 + 2
    assert all(not tensor.any() for name, tensor in found.module.tensors.items() if "lora_B" in name)


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("slots", [2, 3])
def test_early_stop_does_not_depend_on_the_company(base: Base, slots: int, cores: int) -> None:
    names = ["long", "medium", "late"]
    before = torch.get_num_threads()
    torch.set_num_threads(cores)  # with several, spare slots take copies: never the place of one who is not due
    try:
        machine = Machine(slots=slots, tokens_per_pass=300)
        company = {t.user_id: t for t in train(base, jobs(names), STOPPING, machine)}
    finally:
        torch.set_num_threads(before)
    for name in names:
        (alone,) = train(base, jobs([name]), STOPPING, Machine(slots=1))
        assert alone.held_out_losses == pytest.approx(company[name].held_out_losses, rel=1e-4)
        assert difference(dict(alone.module.tensors), dict(company[name].module.tensors)) < 1e-4
