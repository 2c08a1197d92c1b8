"""Training one module per user: transformers + PEFT, one user after another, against oppu's bank.

Three sides, from the same weights, on the same batches of the same examples, each in a process of its own, so that peak
memory is its own; the losses that they see are compared.

- peer: transformers + PEFT, tuned fairly, and published: as in the paper's published code (`one_by_one.py`).
- oppu: all users at once.

Distinct tokens are those of a user's batch with shared beginnings counted once, and the operations are what a step on
these needs (`operations.py`), whatever else a side computes. The machine's rate is that of the base's own matrix
products, forward and backward, in the best of two ways to use the cores, measured in oppu's process.

All sides are on the same device in the same precision: a GPU in bfloat16 where there is one (`--device`, `--dtype`),
with modules in float32; peak memory is then the device's. `--base random:llama-2-7b` is a model of that shape with
random weights, since speed needs no trained ones (with the embedded base's tokenizer and vocabulary).

`--batches N` trains at most N batches of each user, drawn from the whole history: a history of 500 items is measured as
it would go on. `--company 8,64` measures, instead, oppu's time per user with so many users, all of like histories:
copies of those of `--users`.

    python benchmarks/training.py --tasks movie_tagging --json training.json
    python benchmarks/training.py --tasks all --k 0,1 --newest 1,10,100,500 --batches 2 --published
    python benchmarks/training.py --company 8,64
    python benchmarks/training.py --base random:llama-2-7b --newest 100 --batches 4 --users 16
"""

import argparse
import gc
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel
from transformers.utils import logging

from one_by_one import Losses, peft_model, published_loss, train_one_by_one, tuned_loss
from operations import machine_rate, needed, wait
from oppu.data import read_dataset
from oppu.errors import ConfigError
from oppu.examples import Setting, training_examples
from oppu.model.bank import Bank, user_seed
from oppu.model.base import Base, load_base, make_base
from oppu.model.devices import AUTO, find_device, find_dtype
from oppu.model.embedded import EMBEDDED, embedded_folder
from oppu.model.module import Module
from oppu.model.tokens import encode
from oppu.personalize import longest_histories
from oppu.recipes import recipe_for
from oppu.tasks import LAMP_TASKS, find_task
from oppu.train import Job, TrainConfig, batches_of, train


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
    batches: int | None = None
    """Of each user, at most."""
    copies: int = 1
    """Every user stands so many times, under other names: users of like histories."""
    repeats: int = 1
    """Runs of each side, of which the fastest counts."""
    device: str = AUTO
    dtype: str = AUTO


RANDOM = {
    "random:llama-2-7b": (4096, 11008, 32, 32, 32),
    "random:tiny": (32, 64, 2, 4, 2),  # tries the program out
}
"""Bases with random weights: hidden size, inner size, layers, heads, heads of keys and values."""


def jobs_of(case: Case, base: Base) -> list[Job]:
    """Each user's encoded examples."""
    task = find_task(case.task)
    users = longest_histories(read_dataset(Path(case.data), task).users, case.users)
    jobs = []
    for user in users:
        examples = training_examples(task, user, Setting(case.k), None, case.newest)
        if case.batches is not None:
            count = min(len(examples), case.batches * case.batch_size)
            examples = random.Random(user.id).sample(examples, count)
        encoded = tuple(encode(base.tokenizer, examples, 2048))
        jobs += [Job(f"{user.id} {copy}" if copy else user.id, encoded) for copy in range(case.copies)]
    return jobs


def base_of(case: Case) -> Base:
    """The case's base, for oppu."""
    if case.base not in RANDOM:
        return load_base(case.base, device=case.device, dtype=case.dtype)
    return make_base(case.base, random_model(case), AutoTokenizer.from_pretrained(embedded_folder()))


def random_model(case: Case) -> PreTrainedModel:
    """A Llama of the named shape with weights drawn on the device, the same for all sides."""
    hidden, inner, layers, heads, groups = RANDOM[case.base]
    device = find_device(case.device)
    config = LlamaConfig(
        vocab_size=AutoTokenizer.from_pretrained(embedded_folder()).vocab_size,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=find_dtype(case.dtype, device))
    return model.to(device)


def plain_model(case: Case) -> PreTrainedModel:
    """The case's base, for the peers."""
    if case.base in RANDOM:
        return random_model(case)
    device = find_device(case.device)
    folder = embedded_folder() if case.base == EMBEDDED else case.base
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=find_dtype(case.dtype, device))
    return model.to(device)


def config_of(case: Case) -> TrainConfig:
    """The base's own settings with the case's batch size and epochs."""
    recipe = recipe_for(case.base, find_task(case.task))
    return replace(recipe.personal, epochs=case.epochs, batch_size=case.batch_size)


def train_together(base: Base, jobs: Sequence[Job], config: TrainConfig) -> Losses:
    """All users at once."""
    return {done.user_id: list(done.losses) for done in train(base, jobs, config)}


def first_modules(base: Base, jobs: Sequence[Job], config: TrainConfig) -> dict[str, Module]:
    """What each user's training begins with, by user."""
    bank, starts = Bank(base.model, config.module, 1), {}
    for job in jobs:
        bank.reset(0, user_seed(config.seed, job.user_id))
        starts[job.user_id] = bank.module(0)
    return starts


def measure(side: str, case: Case) -> dict[str, Any]:
    """One side's figures, in this process."""
    logging.disable_progress_bar()
    base, config = base_of(case), config_of(case)
    device = base.device
    jobs = jobs_of(case, base)
    examples = case.epochs * sum(len(job.examples) for job in jobs)
    tokens = case.epochs * sum(len(e.tokens) for job in jobs for e in job.examples)
    distinct, operations = needed(base, [batch for job in jobs for batch in batches_of(job, config)])
    run: Callable[[Sequence[Job], TrainConfig], Losses]
    if side == "oppu":
        run = partial(train_together, base)
    else:
        starts = first_modules(base, jobs, config)
        del base
        gc.collect()
        forget_peak(device)
        is_published = side == "published"
        model = peft_model(plain_model(case), starts[jobs[0].user_id], config.module, published=is_published)
        run = partial(train_one_by_one, model, starts, published_loss if is_published else tuned_loss)
    run([replace(jobs[0], examples=jobs[0].examples[: case.batch_size])], replace(config, epochs=1))  # a warm-up
    losses, seconds = best_of(case.repeats, device, lambda: run(jobs, config))
    return {
        "seconds": seconds,
        "users": len(jobs),
        "users_per_hour": 3600 * len(jobs) / seconds,
        "examples_per_s": examples / seconds,
        "tokens_per_s": tokens / seconds,
        "distinct_tokens_per_s": distinct / seconds,
        "gflops": operations / seconds / 1e9,
        "peak_memory_mib": peak_memory_mib(device),
        "losses": losses,
        **({"machine_gflops": machine_rate(base)} if side == "oppu" else {}),
    }


def best_of(repeats: int, device: torch.device, run: Callable[[], Losses]) -> tuple[Losses, float]:
    """The losses of a run, which are the same each time, and the seconds of the fastest."""
    seconds = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        losses = run()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return losses, min(seconds)


def forget_peak(device: torch.device) -> None:
    """On a GPU, begin anew to watch for a peak; a process has its own from the start."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held so far; on a GPU, of the GPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(side: str, case: Case) -> dict[str, Any]:
    """One side's figures, measured in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--case", json.dumps(asdict(case))]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def compare(case: Case, published: bool) -> dict[str, Any]:
    """All sides of a case, oppu's ratio to the others, and the largest relative difference of a loss."""
    sides = {side: in_own_process(side, case) for side in ("peer", *(["published"] if published else []), "oppu")}
    losses = {side: figures.pop("losses") for side, figures in sides.items()}
    left, right = losses["peer"], losses["oppu"]
    differences = [abs(a - b) / abs(a) for user in left for a, b in zip(left[user], right[user], strict=True)]
    ours = sides["oppu"]
    return {
        **asdict(case),
        **sides,
        "ratio": ours["examples_per_s"] / sides["peer"]["examples_per_s"],
        "share_of_machine": ours["gflops"] / ours["machine_gflops"],
        "memory_ratio": ours["peak_memory_mib"] / sides["peer"]["peak_memory_mib"],
        "largest_loss_difference": max(differences),
    }


def show(result: dict[str, Any]) -> None:
    """A case as a small table."""
    print(
        f"\n{result['task']}, k={result['k']}, {result['users']} users with at most {result['newest']} items, "
        f"batches of {result['batch_size']}" + (f", {result['batches']} of each" if result["batches"] else "")
    )
    columns = ("examples/s", "users/h", "tokens/s", "distinct/s", "GFLOP/s", "peak MiB", "seconds")
    print(f"  {'':20}" + "".join(f"{column:>12}" for column in columns))
    names = {"peer": "transformers + PEFT", "published": "published recipe", "oppu": "oppu"}
    for side, name in names.items():
        if (r := result.get(side)) is not None:
            print(
                f"  {name:20}{r['examples_per_s']:12.2f}{r['users_per_hour']:12.0f}{r['tokens_per_s']:12.0f}"
                f"{r['distinct_tokens_per_s']:12.0f}{r['gflops']:12.0f}{r['peak_memory_mib']:12.0f}{r['seconds']:12.1f}"
            )
    print(
        f"  ratio {result['ratio']:.2f}; {result['share_of_machine']:.0%} of the machine's "
        f"{result['oppu']['machine_gflops']:.0f} GFLOP/s; {result['memory_ratio']:.2f} times the peer's memory; "
        f"largest relative difference of a loss {result['largest_loss_difference']:.1e}",
        flush=True,
    )


def company(case: Case, counts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds per user with so many users, the median of runs that take turns.

    ConfigError for a number that cannot be had of whole copies of the case's users, or where there are fewer of these.
    """
    if odd := [count for count in counts if count < 1 or count % case.users]:
        listed = ", ".join(map(str, odd))
        fix = f"use multiples of --users, which is {case.users}"
        raise ConfigError(f"{listed} cannot be had by copying {case.users} users", where="--company", fix=fix)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    memory: dict[int, float] = {}
    for _ in range(repeats):
        for count in counts:
            figures = in_own_process("oppu", replace(case, copies=count // case.users))
            if figures["users"] != count:
                there = figures["users"] * case.users // count
                raise ConfigError(f"{case.data} has {there} users", where="--users", fix=f"use {there}")
            seconds[count].append(figures["seconds"] / count)
            memory[count] = figures["peak_memory_mib"]
    found = [
        {**asdict(case), "users": n, "seconds_per_user": statistics.median(seconds[n]), "peak_memory_mib": memory[n]}
        for n in counts
    ]
    print(f"\n{case.task}, k={case.k}, users of {case.newest} items: seconds per user in company, {repeats} runs")
    for line in found:
        ratio = line["seconds_per_user"] / found[0]["seconds_per_user"]
        print(
            f"  {line['users']:4} users {line['seconds_per_user']:8.2f} s per user  ratio {ratio:.2f}"
            f"  {line['peak_memory_mib']:7.0f} MiB",
            flush=True,
        )
    return found


def geometric_mean(results: list[dict[str, Any]]) -> float | None:
    """Of the ratios of the label and rating tasks without retrieval."""
    found = [r["ratio"] for r in results if r["k"] == 0 and find_task(r["task"]).kind != "text"]
    return statistics.geometric_mean(found) if found else None


def main() -> None:
    """Parse, run every case, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="movie_tagging", help="names, separated by commas, or all")
    parser.add_argument("--data", default="data", help="folder with one folder per task")
    parser.add_argument("--k", default="0", help="numbers of retrieved items, separated by commas")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--company", help="numbers of users, separated by commas: time per user in company")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, of which the fastest counts")
    parser.add_argument("--newest", default="12", help="numbers of items of a history, separated by commas")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="default: Table 4's for the task")
    parser.add_argument("--base", default=EMBEDDED, help=f"as `oppu` takes it, or one of {', '.join(RANDOM)}")
    parser.add_argument("--device", default=AUTO, help="auto: a GPU where there is one")
    parser.add_argument("--dtype", default=AUTO, help="of the base; auto: bfloat16 on a GPU, else float32")
    parser.add_argument("--batches", type=int, help="of each user, at most")
    parser.add_argument("--published", action="store_true", help="measure the published code's recipe, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, Case(**json.loads(options.case)))))
        return
    results: list[dict[str, Any]] = []
    names = [task.name for task in LAMP_TASKS] if options.tasks == "all" else options.tasks.split(",")
    for name, k, newest in itertools.product(names, options.k.split(","), options.newest.split(",")):
        batch_size = options.batch_size or find_task(name).paper.batch_size
        case = Case(
            name, str(Path(options.data) / name), int(k), options.users, int(newest), options.epochs,
            batch_size, options.base, options.batches, repeats=1 if options.company else options.repeats,
            device=options.device, dtype=options.dtype,
        )  # fmt: skip
        if options.company:
            results += company(case, [int(n) for n in options.company.split(",")], options.repeats)
            continue
        results.append(compare(case, options.published))
        show(results[-1])
        if options.json:  # after each case, so that an interruption loses one
            found = {"cases": results, "geometric_mean_label_k0": geometric_mean(results)}
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.company:
        if options.json:
            options.json.write_text(json.dumps({"company": results}, indent=1), encoding="utf-8")
    elif (mean := geometric_mean(results)) is not None:
        print(f"\ngeometric mean of the ratios of label tasks without retrieval: {mean:.2f}")


if __name__ == "__main__":
    main()
