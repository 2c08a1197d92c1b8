"""Mixed generation for several users: oppu against transformers + PEFT, on the same model, prompts and modules.

    python benchmarks/generation.py --json generation.json

The users' modules are trained first (or taken from `--modules`), so that answers end as they do in use: each where it
is finished. The peer is PEFT's own way to mix users in a batch: `model.generate(..., adapter_names=[...])`, prompts of
like length padded on the left, SDPA attention, a cache of keys and values, inference mode; the best of its batch sizes
counts. Both decode greedily and end an answer at the end token or a line break. Each side has a process of its own, so
that the peak of its memory is its own, and they take turns, so that what else the machine does troubles both alike. The
peak is that of the batch size that counts; on a GPU (`--device`) of what torch allocates there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from oppu.data import read_dataset
from oppu.data.sample import sample_tasks
from oppu.examples import Setting, query_examples, training_examples
from oppu.model.bank import Bank
from oppu.model.base import Base, load_base
from oppu.model.devices import AUTO, find_device
from oppu.model.kinds import LoraConfig
from oppu.model.module import Module, read_module, write_module
from oppu.model.tokens import encode
from oppu.personalize import longest_histories
from oppu.predict import Question, generate, text_of
from oppu.recipes import recipe_for
from oppu.records import User
from oppu.tasks import Task, find_task
from oppu.train import Job, Machine, train
from precision import forget_peak, peak_mib

Answer = Callable[[list[Question], int], list[str]]
"""The texts for some questions, given a batch size."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="base model, as for oppu")
    parser.add_argument("--device", default=AUTO, help="auto: a GPU where there is one")
    parser.add_argument("--dtype", default=AUTO, help="of the base; auto: bfloat16 on a GPU, else float32")
    parser.add_argument("--task", help="task with text answers; default: the sample task subject_line")
    parser.add_argument("--data", type=Path, help="histories and questions; default: the sample data")
    parser.add_argument("--k", type=int, default=0, help="retrieved items in a prompt")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--requests-per-user", type=int, default=12)
    parser.add_argument(
        "--modules", type=Path, help="folder of the users' modules; trained into it where one is missing"
    )
    parser.add_argument("--epochs", type=int, default=2, help="of this training")
    parser.add_argument("--newest", type=int, default=32, help="items of a history to train on")
    parser.add_argument("--batch-sizes", default="16,32,48", help="oppu's, of which the best counts")
    parser.add_argument("--peer-batch-sizes", default="8,16,32,48", help="the peer's, of which the best counts")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3, help="timed runs, of which the median counts")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--side", choices=["peer", "oppu", "train"], help=argparse.SUPPRESS)
    return parser.parse_args()


def the_task(args: argparse.Namespace) -> tuple[Task, Path]:
    sample = sample_tasks()[1]
    task = find_task(args.task or str(sample.task))
    return task.model_copy(update={"max_answer_tokens": args.max_new_tokens}), args.data or sample.data


def the_users(task: Task, data: Path, args: argparse.Namespace) -> list[User]:
    """The users with the longest histories, a slot each."""
    return longest_histories(read_dataset(data, task).users, args.users)


def the_questions(task: Task, users: Sequence[User], args: argparse.Namespace) -> list[Question]:
    """Each user's questions, then the user's newest items as questions; the users in turn."""
    setting = Setting(k=args.k)
    per_user = []
    for slot, user in enumerate(users):
        examples = [*query_examples(task, user, setting), *reversed(training_examples(task, user, setting))]
        per_user.append([Question(slot, example) for example in examples[: args.requests_per_user]])
    return [question for round_ in zip(*per_user, strict=True) for question in round_]


def train_modules(base: Base, task: Task, users: Sequence[User], args: argparse.Namespace) -> None:
    """A module into `args.modules` for each user who has none there, with the demo's settings."""
    config = replace(recipe_for(base.family, task).personal, epochs=args.epochs, learning_rate=3e-3, batch_size=4)
    setting = Setting(k=args.k)
    jobs = [
        Job(
            user.id,
            tuple(encode(base.tokenizer, training_examples(task, user, setting, None, args.newest), base.max_tokens)),
        )
        for user in users
        if not (args.modules / user.id).exists()
    ]
    for trained in train(base, jobs, config, Machine(slots=8)):
        write_module(trained.module, args.modules / trained.user_id)


def oppu_side(base: Base, task: Task, modules: Sequence[Module]) -> Answer:
    bank = Bank(base.model, LoraConfig.of(modules[0]), len(modules))
    for slot, module in enumerate(modules):
        bank.load(slot, module)

    def answer(questions: list[Question], batch_size: int) -> list[str]:
        with bank.attach():
            return generate(base, task, questions, batch_size=batch_size)

    return answer


class EndsLine(StoppingCriteria):  # type: ignore[misc]
    """A sequence is done when a line break follows its first letter; two look-ups for each step."""

    def __init__(self, base: Base) -> None:
        texts = [base.tokenizer.decode([token]) for token in range(base.model.config.vocab_size)]
        self.device = base.device
        self.breaks = torch.tensor(["\n" in text for text in texts], device=self.device)
        self.letters = torch.tensor([bool(text.strip()) for text in texts], device=self.device)
        self.begins_and_breaks = torch.tensor(["\n" in text.lstrip() for text in texts], device=self.device)
        self.start(0)

    def start(self, lines: int) -> "EndsLine":
        self.begun = torch.zeros(lines, dtype=torch.bool, device=self.device)
        return self

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        last = input_ids[:, -1]
        done = (self.begun & self.breaks[last]) | self.begins_and_breaks[last]
        self.begun |= self.letters[last]
        return done


def peer_side(base: Base, task: Task, modules: Sequence[Module]) -> Answer:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model, set_peft_model_state_dict

    base.model.set_attn_implementation("sdpa")
    shape = modules[0].config
    config = PeftLoraConfig(
        r=shape["r"], lora_alpha=shape["lora_alpha"], target_modules=shape["target_modules"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.model, config, adapter_name="user-0")
    for slot in range(1, len(modules)):
        model.add_adapter(f"user-{slot}", config)
    for slot, module in enumerate(modules):
        set_peft_model_state_dict(model, dict(module.tensors), adapter_name=f"user-{slot}")
    model.eval()

    line_end, end = EndsLine(base), base.tokenizer.eos_token_id

    def write(prompts: Sequence[tuple[int, ...]], slots: Sequence[int]) -> list[str]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), end)
        mask = torch.zeros_like(ids)
        for line, prompt in enumerate(prompts):
            ids[line, width - len(prompt) :] = torch.tensor(prompt)
            mask[line, width - len(prompt) :] = 1
        output = model.generate(
            input_ids=ids.to(base.device),
            attention_mask=mask.to(base.device),
            adapter_names=[f"user-{slot}" for slot in slots],
            max_new_tokens=task.max_answer_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
            stopping_criteria=StoppingCriteriaList([line_end.start(len(prompts))]),
        )
        return [text_of(base, tokens, "\n") for tokens in output[:, width:].tolist()]

    def answer(questions: list[Question], batch_size: int) -> list[str]:
        room = 2048 - task.max_answer_tokens
        prompts = [e.tokens for e in encode(base.tokenizer, [q.example for q in questions], room, answers=False)]
        order = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
        texts: dict[int, str] = {}
        with torch.inference_mode():
            for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
                written = write([prompts[i] for i in batch], [questions[i].slot for i in batch])
                texts |= dict(zip(batch, written, strict=True))
        return [texts[i] for i in range(len(questions))]

    return answer


def serve_side(args: argparse.Namespace) -> None:
    """One side, in this process: an empty line when it is ready; a line of figures for each batch size it is sent."""
    task, data = the_task(args)
    users = the_users(task, data, args)
    base = load_base(args.base, device=args.device, dtype=args.dtype)
    if args.side == "train":
        train_modules(base, task, users, args)
        return
    modules = [read_module(args.modules / user.id) for user in users]
    questions = the_questions(task, users, args)
    answer = (peer_side if args.side == "peer" else oppu_side)(base, task, modules)
    answer(questions[:8], 8)  # does not count
    print(flush=True)
    for line in sys.stdin:
        forget_peak(base.device)
        start, start_cpu = time.perf_counter(), time.process_time()
        texts = answer(questions, int(line))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        memory = peak_mib(base.device)
        lengths = [len(ids) + 1 for ids in base.tokenizer(texts, add_special_tokens=False).input_ids]  # and the end
        result = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_memory_mb": memory, "lengths": lengths}
        print(json.dumps({**result, "texts": texts}), flush=True)


class Side:
    """One side in a process of its own, and what it has measured."""

    def __init__(self, name: str, batch_sizes: str, modules: Path) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--modules", str(modules), "--side", name]
        self.batch_sizes = [int(size) for size in batch_sizes.split(",")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._runs: dict[int, list[dict[str, Any]]] = {size: [] for size in self.batch_sizes}
        self._next_line()  # it is ready

    def measure(self) -> None:
        """One timed run with each batch size."""
        assert self._process.stdin is not None
        for size in self.batch_sizes:
            print(size, file=self._process.stdin, flush=True)
            self._runs[size].append(json.loads(self._next_line()))

    def _medians(self, key: str) -> dict[int, float]:
        return {size: statistics.median(run[key] for run in runs) for size, runs in self._runs.items()}

    def _next_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("one side of the benchmark failed; what it printed above says why")
        return line

    def close(self) -> dict[str, Any]:
        """Medians over the runs: the figures of the fastest batch size, the least CPU time, and the times of all."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        seconds, cpu_seconds = self._medians("seconds"), self._medians("cpu_seconds")
        best = min(seconds, key=seconds.__getitem__)
        last = self._runs[best][-1]
        return {
            "batch_size": best,
            "seconds": seconds[best],
            "cpu_seconds": min(cpu_seconds.values()),
            "requests_per_s": len(last["texts"]) / seconds[best],
            "new_tokens_per_s": sum(last["lengths"]) / seconds[best],
            "peak_memory_mb": max(run["peak_memory_mb"] for run in self._runs[best]),
            "seconds_by_batch_size": seconds,
            "cpu_seconds_by_batch_size": cpu_seconds,
            "lengths": last["lengths"],
            "texts": last["texts"],
        }


def measure(args: argparse.Namespace, modules: Path) -> dict[str, Any]:
    """Both sides, in turn."""
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--modules", str(modules), "--side", "train"], check=True)
    sides = [Side("peer", args.peer_batch_sizes, modules), Side("oppu", args.batch_sizes, modules)]
    for _ in range(args.repeat):
        for side in sides:
            side.measure()
    peer, oppu = (side.close() for side in sides)
    texts = peer.pop("texts"), oppu.pop("texts")
    lengths = oppu.pop("lengths")
    del peer["lengths"]
    return {
        "task": the_task(args)[0].name,
        "users": args.users,
        "requests": len(lengths),
        "mean_answer_tokens": statistics.mean(lengths),
        "longest_answer_tokens": max(lengths),
        "threads": torch.get_num_threads(),
        "device": str(find_device(args.device)),
        "different_texts": [pair for pair in zip(*texts, strict=True) if pair[0] != pair[1]],
        "peer": peer,
        "oppu": oppu,
        "ratio": peer["seconds"] / oppu["seconds"],
        "cpu_ratio": peer["cpu_seconds"] / oppu["cpu_seconds"],
    }


def show(case: dict[str, Any]) -> None:
    print(
        f"{case['task']} on {case['device']}: {case['requests']} requests of {case['users']} users, "
        f"{case['threads']} threads; "
        f"answers of {case['mean_answer_tokens']:.1f} tokens on average, {case['longest_answer_tokens']} at most"
    )
    for name, side in (("transformers + PEFT", case["peer"]), ("oppu", case["oppu"])):
        print(
            f"  {name:20} {side['requests_per_s']:7.2f} requests/s {side['new_tokens_per_s']:8.1f} tokens/s "
            f"{side['peak_memory_mb']:7.0f} MB"
        )
        for kind in ("seconds", "cpu_seconds"):
            times = side[f"{kind}_by_batch_size"].items()
            print(f"    {kind} by batch size: " + ", ".join(f"{size}: {time_s:.2f}" for size, time_s in times))
    different = case["different_texts"]
    print(f"  oppu is {case['ratio']:.2f} times as fast ({case['cpu_ratio']:.2f} by CPU time)", end="; ")
    print(f"{len(different)} of {case['requests']} texts differ")
    for left, right in different[:3]:
        print(f"    peer: {left!r}\n    oppu: {right!r}")


def main() -> None:
    args = arguments()
    if args.side:
        serve_side(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        case = measure(args, args.modules or Path(folder))
    show(case)
    if args.json is not None:
        args.json.write_text(json.dumps({"cases": [case]}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
