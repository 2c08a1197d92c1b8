"""What studies are checked against: one module trained by itself and merged, one plain forward for each answer."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_model, tiny_tokenizer

from oppu.data import read_dataset
from oppu.data.sample import sample_tasks
from oppu.model.bank import Bank
from oppu.model.base import Base, load_base
from oppu.model.tokens import encode
from oppu.personalize import longest_histories
from oppu.recipes import recipe_for
from oppu.records import Example, User
from oppu.tasks import Task, find_task
from oppu.train import Job, TrainConfig, train

QUICK = ("--no-adapt", "--epochs", "1", "--learning-rate", "0.01", "--batch-size", "4", "--rank", "2")
"""Options under which a tiny base learns something in no time."""


_TOKENIZER = tiny_tokenizer()


def sample(place: int, users: int) -> tuple[Task, list[User]]:
    """A sample task, 0 of labels and 1 of text, with the users that a study takes."""
    task = find_task(str(sample_tasks()[place].task))
    return task, longest_histories(read_dataset(sample_tasks()[place].data, task).users, users)


def config_of(task: Task) -> TrainConfig:
    """The settings that QUICK stands for."""
    personal = recipe_for("tiny", task).personal
    module = replace(personal.module, rank=2, alpha=2)
    return replace(personal, epochs=1, learning_rate=1e-2, batch_size=4, module=module)


def nlls_alone(
    folder: Path, task: Task, name: str, learnt: Sequence[Example], asked: Sequence[Example], *, labels: bool = True
) -> list[float]:
    """NLL of each right answer: among the task's labels, or per token."""
    base, weights = _loaded(folder)
    base.model.load_state_dict(weights)
    if learnt:
        (trained,) = train(base, [Job(name, tuple(encode(base.tokenizer, learnt, 512)))], config_of(task))
        bank = Bank(base.model, config_of(task).module, 1)
        bank.load(0, trained.module)
        bank.merge(0)
    model = tiny_model()
    model.load_state_dict(base.model.state_dict())
    if not task.labels or not labels:
        return [-mean(log_probs(model, example.prompt, [str(example.answer)])[0]) for example in asked]
    found = []
    for example in asked:
        scores = torch.tensor([sum(each) for each in log_probs(model, example.prompt, task.labels)])
        found.append(-float(scores.double().log_softmax(-1)[task.labels.index(str(example.answer))]))
    return found


@torch.inference_mode()
def log_probs(model: torch.nn.Module, prompt: str, answers: Sequence[str]) -> list[list[float]]:
    """Of each answer, log p of its tokens, its end among them; in one forward, padded where no token looks."""
    before = _TOKENIZER(prompt).input_ids
    after = [[*_TOKENIZER(f" {answer}").input_ids, _TOKENIZER.eos_token_id] for answer in answers]
    longest = max(map(len, after))
    tokens = torch.tensor([[*before, *each, *[0] * (longest - len(each))] for each in after])
    logits = model(input_ids=tokens).logits[:, len(before) - 1 :].double().log_softmax(-1)
    return [
        [float(line[place, token]) for place, token in enumerate(each)]
        for line, each in zip(logits, after, strict=True)
    ]


@cache
def _loaded(folder: Path) -> tuple[Base, dict[str, torch.Tensor]]:
    """A base, and its weights as they were."""
    base = load_base(str(folder))
    return base, {name: weight.clone() for name, weight in base.model.state_dict().items()}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table_of(out: Path, name: str) -> list[dict[str, str]]:
    """A study's table."""
    with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(out: Path, name: str) -> Mapping[str, Any]:
    """A study's JSON."""
    found: Mapping[str, Any] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    return found
