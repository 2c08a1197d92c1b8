"""Training one module per user: transformers + PEFT, one user after another, against oppu's bank.

The peer is tuned fairly: padding to the batch's longest example, fused attention, no gradient checkpointing, and one
model for all users whose adapter is set anew. Both sides start from the same weights and take the same batches of the
same examples; the losses that they see are compared. Each side has its own process, so that peak memory is its own.

    python benchmarks/training.py --tasks movie_tagging --json training.json
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from oppu.data import read_dataset
from oppu.examples import Setting, training_examples
from oppu.model.bank import Bank, user_seed
from oppu.model.base import Base, load_base
from oppu.model.embedded import EMBEDDED, embedded_folder
from oppu.model.tokens import Encoded, encode
from oppu.personalize import longest_histories
from oppu.recipes import recipe_for
from oppu.tasks import find_task
from oppu.train import Job, Machine, TrainConfig, batches_of, learning_rate_factor, train


@dataclass(frozen=True)
class Case:
    """What both sides train."""

    task: str
    data: str
    k: int
    users: int
    newest: int
    epochs: int
    batch_size: int
    base: str
    slots: int
    tokens_per_pass: int


def jobs_of(case: Case, base: Base) -> list[Job]:
    """Each user's encoded examples."""
    task = find_task(case.task)
    users = longest_histories(read_dataset(Path(case.data), task).users, case.users)
    return [
        Job(
            user.id,
            tuple(encode(base.tokenizer, training_examples(task, user, Setting(case.k), None, case.newest), 2048)),
        )
        for user in users
    ]


def config_of(case: Case) -> TrainConfig:
    """The base's own settings with the case's batch size and epochs."""
    recipe = recipe_for(case.base, find_task(case.task))
    return replace(recipe.personal, epochs=case.epochs, batch_size=case.batch_size)


def run_oppu(case: Case, base: Base, jobs: list[Job]) -> dict[str, list[float]]:
    """All users at once; the losses of each user's steps."""
    machine = Machine(case.slots, case.tokens_per_pass)
    return {done.user_id: list(done.losses) for done in train(base, jobs, config_of(case), machine)}


def run_peer(case: Case, jobs: list[Job], model: PeftModel, starts: dict[str, Any]) -> dict[str, list[float]]:
    """One user after another with transformers, PEFT and torch's AdamW."""
    config = config_of(case)
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses: dict[str, list[float]] = {}
    for job in jobs:
        set_peft_model_state_dict(model, starts[job.user_id])
        total = config.epochs * math.ceil(len(job.examples) / config.batch_size)
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        seen = losses[job.user_id] = []
        for step, batch in enumerate(batches_of(job, config)):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, total, config.warmup)
            loss = model(**padded(batch)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            seen.append(loss.item())
    return losses


def padded(batch: list[Encoded]) -> dict[str, torch.Tensor]:
    """A batch as a data collator makes it: padded on the right to its longest example."""
    width = max(len(e.tokens) for e in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for line, e in enumerate(batch):
        ids[line, : len(e.tokens)] = torch.tensor(e.tokens)
        mask[line, : len(e.tokens)] = 1
        labels[line, e.answer_start : len(e.tokens)] = torch.tensor(e.tokens[e.answer_start :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def measure(side: str, case: Case) -> dict[str, Any]:
    """One side's figures, in this process."""
    logging.disable_progress_bar()
    base = load_base(case.base)
    jobs = jobs_of(case, base)
    examples = case.epochs * sum(len(job.examples) for job in jobs)
    tokens = case.epochs * sum(len(e.tokens) for job in jobs for e in job.examples)
    if side == "oppu":
        run_oppu(replace(case, epochs=1), base, [Job("warm-up", jobs[0].examples[: case.batch_size])])
        started = time.perf_counter()
        losses = run_oppu(case, base, jobs)
    else:
        config = config_of(case)
        bank = Bank(base.model, config.module, 1)
        starts = {}
        for job in jobs:
            bank.reset(0, user_seed(config.seed, job.user_id))
            starts[job.user_id] = dict(bank.module(0).tensors)
        shape = bank.module(0).config
        del bank, base
        folder = embedded_folder() if case.base == EMBEDDED else case.base
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa"),
            PeftConfig(
                r=config.module.rank, lora_alpha=int(config.module.alpha), target_modules=list(shape["target_modules"])
            ),
        )
        model.train()
        warm_up = Job(jobs[0].user_id, jobs[0].examples[: case.batch_size])
        run_peer(replace(case, epochs=1), [warm_up], model, starts)
        started = time.perf_counter()
        losses = run_peer(case, jobs, model, starts)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "examples_per_s": examples / seconds,
        "tokens_per_s": tokens / seconds,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": losses,
    }


def in_own_process(side: str, case: Case) -> dict[str, Any]:
    """One side's figures, measured in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--case", json.dumps(asdict(case))]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def compare(case: Case) -> dict[str, Any]:
    """Both sides of a case, their ratio, and the largest relative difference of a loss."""
    peer, ours = in_own_process("peer", case), in_own_process("oppu", case)
    left, right = peer.pop("losses"), ours.pop("losses")
    differences = [abs(a - b) / abs(a) for user in left for a, b in zip(left[user], right[user], strict=True)]
    return {
        **asdict(case),
        "peer": peer,
        "oppu": ours,
        "ratio": ours["examples_per_s"] / peer["examples_per_s"],
        "largest_loss_difference": max(differences),
    }


def show(result: dict[str, Any]) -> None:
    """A case as a small table."""
    print(f"\n{result['task']}, k={result['k']}, {result['users']} users, batches of {result['batch_size']}")
    print(f"  {'':18}{'examples/s':>12}{'tokens/s':>12}{'peak MiB':>12}{'seconds':>10}")
    for side, name in (("peer", "transformers+PEFT"), ("oppu", "oppu")):
        r = result[side]
        print(
            f"  {name:18}{r['examples_per_s']:12.2f}{r['tokens_per_s']:12.0f}"
            f"{r['peak_memory_mib']:12.0f}{r['seconds']:10.1f}"
        )
    print(
        f"  ratio {result['ratio']:.2f}; largest relative difference of a loss {result['largest_loss_difference']:.1e}"
    )


def main() -> None:
    """Parse, run every case, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="movie_tagging", help="names, separated by commas")
    parser.add_argument("--data", default="../shared/data", help="folder with one folder per task")
    parser.add_argument("--k", default="0", help="numbers of retrieved items, separated by commas")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--newest", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="default: Table 4's for the task")
    parser.add_argument("--base", default=EMBEDDED)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--tokens-per-pass", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, Case(**json.loads(options.case)))))
        return
    results = []
    for name in options.tasks.split(","):
        for k in options.k.split(","):
            batch_size = options.batch_size or find_task(name).paper.batch_size
            case = Case(
                name, str(Path(options.data) / name), int(k), options.users, options.newest, options.epochs,
                batch_size, options.base, options.slots, options.tokens_per_pass,
            )  # fmt: skip
            results.append(compare(case))
            show(results[-1])
    if options.json:
        options.json.write_text(json.dumps({"cases": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
