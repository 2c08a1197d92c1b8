"""A base in several precisions: bytes of its weights, peak memory, speed and loss, each in a process of its own.

The loss is that of the base without modules on the answers of the sample task `subject_line`, per answer token; speed
is that of one epoch of training over the same examples, on a CPU by its own seconds, which neighbours on the machine
disturb less than those of the clock. Peaks are of the whole process while it loads, and afterwards while it trains
(Linux); on CUDA, of what torch allocates there.

    python benchmarks/precision.py
    python benchmarks/precision.py --base FOLDER --users 4 --newest 12 --json precision.json
    python benchmarks/precision.py --activations    # what a pass keeps for its backward, in small bfloat16 Llamas
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from oppu.data import read_dataset
from oppu.data.sample import sample_tasks
from oppu.examples import PLAIN, training_examples
from oppu.model.attention import ATTENTION
from oppu.model.bank import Bank
from oppu.model.base import load_base
from oppu.model.embedded import EMBEDDED
from oppu.model.forward import answer_log_probs, passes, rows_of
from oppu.model.kinds import LoraConfig
from oppu.model.recompute import recomputing
from oppu.model.tokens import Encoded, encode
from oppu.personalize import longest_histories
from oppu.tasks import find_task
from oppu.train import Job, Machine, TrainConfig, train

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {"dtype": "float32", "quantize": "8bit"},
    "4bit": {"dtype": "float32", "quantize": "4bit"},
}
CONFIG = TrainConfig(epochs=1, batch_size=8, module=LoraConfig(rank=8))


def measure(precision: str, base_name: str, users: int, newest: int, device: str) -> dict[str, Any]:
    """One precision, in this process."""
    logging.disable_progress_bar()
    base = load_base(base_name, device=device, **PRECISIONS[precision])
    loading = peak_mib(base.device)
    forget_peak(base.device)
    sample = sample_tasks()[1]
    task = find_task(str(sample.task))
    jobs = [
        Job(user.id, tuple(encode(base.tokenizer, training_examples(task, user, PLAIN, None, newest), 2048)))
        for user in longest_histories(read_dataset(sample.data, task).users, users)
    ]
    examples = [example for job in jobs for example in job.examples]
    with torch.inference_mode():
        rows = list(rows_of(-1, examples, 1024))
        losses = torch.cat([-answer_log_probs(base.model, group) for group in passes(rows, 1024)])
    machine = Machine(slots=users)
    clock = time.process_time if base.device.type == "cpu" else time.perf_counter
    list(train(base, [Job("first", jobs[0].examples[:2])], CONFIG, machine))  # not counted
    started = clock()
    list(train(base, jobs, CONFIG, machine))
    seconds = clock() - started
    linear, whole = weight_bytes(base.model)
    return {
        "precision": precision,
        "linear_mib": linear / 2**20,
        "weights_mib": whole / 2**20,
        "loading_mib": loading,
        "training_mib": peak_mib(base.device),
        "examples_per_s": len(examples) / seconds,
        "loss": losses.mean().item(),
        "examples": len(examples),
        "answer_tokens": len(losses),
    }


def weight_bytes(model: PreTrainedModel) -> tuple[int, int]:
    """Bytes of the transformer layers' linear layers, with the scales of rounded ones; and of everything."""
    tensors = {t.data_ptr(): (name, t.numel() * t.element_size()) for name, t in model.state_dict().items()}
    sizes = tensors.values()  # what two names share counts once
    return sum(size for name, size in sizes if "_proj" in name), sum(size for _, size in sizes)


def peak_mib(device: torch.device) -> float:
    """The highest memory since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak(device: torch.device) -> None:
    """Begin anew to watch for a peak; what the allocator keeps for later is given back first."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def show_activations() -> None:
    """Count them for models of several shapes, against the formula of docs/performance.md."""
    print(f"{'hidden h':>10}{'inner i':>10}{'bytes per token and layer':>28}{'18 h + 4 i':>12}")
    for hidden, inner in ((256, 256), (256, 1024), (512, 256)):
        one, two = (kept_bytes(hidden, inner, layers) for layers in (1, 2))
        print(f"{hidden:10}{inner:10}{two - one:28.0f}{18 * hidden + 4 * inner:12}")


def kept_bytes(hidden: int, inner: int, layers: int) -> float:
    """Bytes for each token that a forward keeps for its backward, with LoRA on queries and values."""
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 128}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=hidden // 128)).to(torch.bfloat16)
    model.requires_grad_(False).eval().set_attn_implementation(ATTENTION)
    bank = Bank(model, LoraConfig(rank=8), 1)
    bank.reset(0, seed=0)
    texts = torch.randint(3, 98, (2, 260), generator=torch.Generator().manual_seed(0)).tolist()
    rows = list(rows_of(0, [Encoded(tuple(text), 258) for text in texts], 1000))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), bank.values, bank.grads)}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage

    with bank.attach(), recomputing(model, keep):
        answer_log_probs(model, rows)
        return sum(storage.nbytes() for storage in kept.values()) / sum(len(row.row) for row in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=EMBEDDED)
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--newest", type=int, default=8, help="items of each user")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--activations", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.base, args.users, args.newest, args.device)))
        return
    if args.activations:
        show_activations()
        return
    results = []
    for precision in args.precisions.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", precision]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{'':10}{'linear MiB':>12}{'all MiB':>10}{'loading':>10}{'training':>10}{'examples/s':>12}{'loss':>9}")
    for r in results:
        print(
            f"{r['precision']:10}{r['linear_mib']:12.1f}{r['weights_mib']:10.1f}{r['loading_mib']:10.0f}{r['training_mib']:10.0f}"
            f"{r['examples_per_s']:12.2f}{r['loss']:9.4f}"
        )
    print(f"{results[0]['examples']} examples, {results[0]['answer_tokens']} answer tokens")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
