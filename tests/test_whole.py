"""Full fine-tuning is that of a plain loop with torch's own AdamW; scores of answers are those of plain forwards."""

import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from alone import log_probs, mean
from conftest import tiny_model, tiny_tokenizer, toy_examples

from oppu.errors import ModelError
from oppu.evaluate.lab import whole
from oppu.evaluate.lab.whole import train_whole
from oppu.model.base import Base, make_base
from oppu.model.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint
from oppu.model.engine import Progress
from oppu.predict import Question, score_answers
from oppu.records import Example
from oppu.train import Job, TrainConfig, batches_of, learning_rate_factor

CONFIG = TrainConfig(epochs=2, learning_rate=1e-2, batch_size=3, warmup=0.4)


def plainly(config: TrainConfig) -> tuple[torch.nn.Module, list[float]]:
    """The reference: example by example, no packing."""
    model = tiny_model()
    batches = list(batches_of(Job("everybody", toy_examples(7, seed=3)), config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(min(step, len(batches) - 1), len(batches), config.warmup)
    )
    losses = []
    for batch in batches:
        found = []
        for example in batch:
            logits = model(input_ids=torch.tensor([example.tokens])).logits[0, example.answer_start - 1 : -1]
            targets = torch.tensor(example.tokens[example.answer_start :])
            found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        loss = torch.cat(found).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("tokens", [None, 64])
def test_all_parameters_are_trained_as_by_a_plain_loop(base: Base, tokens: int | None) -> None:
    model, losses = plainly(CONFIG)
    found, _ = train_whole(base, toy_examples(7, seed=3), CONFIG, tokens_per_pass=tokens)
    assert found == pytest.approx(losses, abs=2e-5)
    before = tiny_model().state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(base.model.state_dict()[name], weight, atol=2e-4, rtol=1e-3)
        if "inv_freq" not in name:
            assert not torch.equal(weight, before[name]), name


def test_the_base_is_frozen_again_and_progress_counts_every_example(base: Base) -> None:
    seen = []
    train_whole(base, toy_examples(5, seed=1), CONFIG, on_progress=lambda news: seen.append(news.examples))
    assert sum(seen) == 2 * 5
    assert not any(weight.requires_grad for weight in base.model.parameters())


def test_a_training_goes_on_from_its_checkpoint(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, kept = toy_examples(7, seed=3), []
    monkeypatch.setattr(whole, "_BETWEEN", 0)
    losses, _ = train_whole(base, examples, CONFIG, on_checkpoint=kept.append, checkpoint_s=0)
    assert [each.step for each in kept] == [1, 2, 3, 4, 5, 6]
    assert [each.examples_done(7, CONFIG.batch_size) for each in kept] == [3, 6, 7, 10, 13, 14]
    for checkpoint in kept:
        begun = read_checkpoint(checkpoint_bytes(checkpoint, "this"), "this")
        again = make_base("again", tiny_model(), tiny_tokenizer())
        news: list[Progress] = []
        found, seconds = train_whole(
            again,
            examples,
            CONFIG,
            begun=partial(iter([begun]).__next__),
            on_progress=news.append,
        )
        assert found == losses
        assert seconds > checkpoint.seconds
        assert sum(each.examples for each in news) == 14
        for name, weight in base.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], weight), name


def test_checkpoints_take_a_tenth_of_the_time_at_most(base: Base) -> None:
    kept = []

    def keep(checkpoint: Checkpoint) -> None:
        kept.append(checkpoint.step)
        time.sleep(0.5)

    train_whole(base, toy_examples(7, seed=3), CONFIG, on_checkpoint=keep, checkpoint_s=0)
    assert kept == [1, 6]


def test_without_memory_for_a_checkpoint_the_training_goes_on(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(whole, "free_bytes", lambda _: 1000)
    kept: list[Checkpoint] = []
    losses, _ = train_whole(base, toy_examples(7, seed=3), CONFIG, on_checkpoint=kept.append, checkpoint_s=0)
    assert (len(losses), kept) == (6, [])
    assert "what is under way is not kept" in caplog.text


def test_a_base_in_half_precision_is_refused(base: Base) -> None:
    half = replace(base, model=base.model.to(torch.bfloat16))
    with pytest.raises(ModelError, match=r"tiny: its weights are torch.bfloat16; load it in float32"):
        train_whole(half, toy_examples(2, seed=1), CONFIG)


def test_an_answers_score_is_the_mean_of_its_tokens_in_a_plain_forward(base: Base) -> None:
    pairs = [("day: one motto:", "be kind"), ("day: one motto:", "x"), ("day: two motto:", "never mind the rest")]
    questions = [Question(-1, Example("u", str(n), prompt, answer)) for n, (prompt, answer) in enumerate(pairs)]
    done: list[int] = []
    found = score_answers(base, questions, on_done=done.append)
    assert found == pytest.approx(
        [mean(log_probs(tiny_model(), prompt, [answer])[0]) for prompt, answer in pairs], abs=1e-5
    )
    assert sum(done) == 3
    with pytest.raises(ModelError, match="the answer has"):
        score_answers(base, questions, max_tokens=5)


def test_the_tokenizer_of_these_tests_adds_nothing() -> None:
    assert tiny_tokenizer()("a").input_ids == tiny_tokenizer()("a", add_special_tokens=False).input_ids
