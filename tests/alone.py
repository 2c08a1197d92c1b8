"""What studies are checked against: one module trained by itself and merged, one plain forward for each answer."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_model, tiny_tokenizer

from oppu.data import read_dataset
from oppu.data.sample import sample_tasks
from oppu.model.bank import Bank
from oppu.model.base import load_base
from oppu.model.tokens import encode
from oppu.personalize import longest_histories
from oppu.recipes import recipe_for
from oppu.records import Example, User
from oppu.tasks import Task, find_task
from oppu.train import Job, TrainConfig, train

QUICK = ("--no-adapt", "--epochs", "1", "--learning-rate", "0.01", "--batch-size", "4", "--rank", "2")
"""Options under which a tiny base learns something in no time."""


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
    base = load_base(str(folder))
    if learnt:
        (trained,) = train(base, [Job(name, tuple(encode(base.tokenizer, learnt, 512)))], config_of(task))
        bank = Bank(base.model, config_of(task).module, 1)
        bank.load(0, trained.module)
        bank.merge(0)
    model = tiny_model()
    model.load_state_dict(base.model.state_dict())
    if task.labels and labels:
        found = []
        for example in asked:
            scores = torch.tensor([sum(log_probs(model, example.prompt, label)) for label in task.labels])
            found.append(-float(scores.double().log_softmax(-1)[task.labels.index(str(example.answer))]))
        return found
    return [-mean(log_probs(model, example.prompt, str(example.answer))) for example in asked]


@torch.inference_mode()
def log_probs(model: torch.nn.Module, prompt: str, answer: str) -> list[float]:
    """log p of each of the answer's tokens, its end among them."""
    tokenizer = tiny_tokenizer()
    before = tokenizer(prompt).input_ids
    after = [*tokenizer(f" {answer}").input_ids, tokenizer.eos_token_id]
    logits = model(input_ids=torch.tensor([[*before, *after]])).logits[0].double().log_softmax(-1)
    return [float(logits[len(before) - 1 + place, token]) for place, token in enumerate(after)]


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
