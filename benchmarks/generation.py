"""Mixed generation for several users: oppu against transformers + PEFT, on the same model, prompts and modules.

    python benchmarks/generation.py --users 8 --requests-per-user 4 --json generation.json

The peer is PEFT's own way to mix users in a batch: `model.generate(..., adapter_names=[...])`, prompts of like length
padded on the left, SDPA attention, a cache of keys and values, inference mode. Both decode greedily, end an answer at
the end token or a line break, and take batches of the same size. Each side runs in a process of its own, so that the
peak of its memory is its own. The modules are random with a non-zero b; the texts of both sides are compared.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from oppu.data import read_dataset
from oppu.data.sample import sample_tasks
from oppu.examples import Setting, query_examples, training_examples
from oppu.model.bank import Bank, LoraConfig
from oppu.model.base import Base, load_base
from oppu.model.tokens import encode
from oppu.personalize import longest_histories
from oppu.predict import Question, generate, text_of
from oppu.tasks import Task, find_task

LORA = LoraConfig(rank=8, alpha=8)
SPREAD = 0.05
"""Standard deviation of b: enough to change what is written, not so much that it is no language any more."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="base model, as for oppu")
    parser.add_argument("--task", help="task with text answers; default: the sample task subject_line")
    parser.add_argument("--data", type=Path, help="histories and questions; default: the sample data")
    parser.add_argument("--k", type=int, default=0, help="retrieved items in a prompt")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--requests-per-user", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3, help="timed runs, of which the median counts")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--side", choices=["peer", "oppu"], help=argparse.SUPPRESS)
    return parser.parse_args()


def the_task(args: argparse.Namespace) -> tuple[Task, Path]:
    sample = sample_tasks()[1]
    task = find_task(args.task or str(sample.task))
    return task.model_copy(update={"max_answer_tokens": args.max_new_tokens}), args.data or sample.data


def the_questions(task: Task, data: Path, args: argparse.Namespace) -> list[Question]:
    """The users with the longest histories, a slot each: their questions, then their newest items as questions."""
    setting = Setting(k=args.k)
    per_user = []
    for slot, user in enumerate(longest_histories(read_dataset(data, task).users, args.users)):
        examples = [*query_examples(task, user, setting), *reversed(training_examples(task, user, setting))]
        per_user.append([Question(slot, example) for example in examples[: args.requests_per_user]])
    return [question for round_ in zip(*per_user, strict=True) for question in round_]


def random_bank(base: Base, users: int) -> Bank:
    bank = Bank(base.model, LORA, users)
    for slot in range(users):
        bank.reset(slot, seed=slot)
        module = bank.module(slot)
        generator = torch.Generator().manual_seed(slot)
        for name, tensor in module.tensors.items():
            if "lora_B" in name:
                tensor.normal_(0, SPREAD, generator=generator)
        bank.load(slot, module)
    return bank


def timed(run: Callable[[], list[str]], repeat: int) -> tuple[list[str], float]:
    """The texts, and the median of the seconds; one run before does not count."""
    run()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        texts = run()
        seconds.append(time.perf_counter() - start)
    return texts, statistics.median(seconds)


def run_oppu(base: Base, task: Task, questions: list[Question], args: argparse.Namespace) -> tuple[list[str], float]:
    with random_bank(base, args.users).attach():
        return timed(lambda: generate(base, task, questions, batch_size=args.batch_size), args.repeat)


class EndsLine(StoppingCriteria):  # type: ignore[misc]
    """A sequence is done when a line break follows its first letter; two look-ups for each step."""

    def __init__(self, base: Base) -> None:
        texts = [base.tokenizer.decode([token]) for token in range(base.model.config.vocab_size)]
        self.breaks = torch.tensor(["\n" in text for text in texts])
        self.letters = torch.tensor([bool(text.strip()) for text in texts])
        self.begins_and_breaks = torch.tensor(["\n" in text.lstrip() for text in texts])
        self.begun = torch.zeros(0, dtype=torch.bool)

    def start(self, lines: int) -> "EndsLine":
        self.begun = torch.zeros(lines, dtype=torch.bool)
        return self

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        last = input_ids[:, -1]
        done = (self.begun & self.breaks[last]) | self.begins_and_breaks[last]
        self.begun |= self.letters[last]
        return done


def run_peer(base: Base, task: Task, questions: list[Question], args: argparse.Namespace) -> tuple[list[str], float]:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model, set_peft_model_state_dict

    modules = random_bank(base, args.users)
    base.model.set_attn_implementation("sdpa")
    targets = sorted({name.split(".")[-3] for name in modules.module(0).tensors})
    config = PeftLoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config, adapter_name="user-0")
    for slot in range(1, args.users):
        model.add_adapter(f"user-{slot}", config)
    for slot in range(args.users):
        set_peft_model_state_dict(model, dict(modules.module(slot).tensors), adapter_name=f"user-{slot}")
    model.eval()
    del modules

    prompts = encode(base.tokenizer, [q.example for q in questions], 2048 - task.max_answer_tokens, answers=False)
    order = sorted(range(len(questions)), key=lambda i: len(prompts[i].tokens))
    batches = [order[i : i + args.batch_size] for i in range(0, len(order), args.batch_size)]
    line_end, end = EndsLine(base), base.tokenizer.eos_token_id

    def write(batch: Sequence[int]) -> list[str]:
        width = max(len(prompts[i].tokens) for i in batch)
        ids = torch.full((len(batch), width), end)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(batch):
            ids[line, width - len(prompts[i].tokens) :] = torch.tensor(prompts[i].tokens)
            mask[line, width - len(prompts[i].tokens) :] = 1
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            adapter_names=[f"user-{questions[i].slot}" for i in batch],
            max_new_tokens=task.max_answer_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
            stopping_criteria=StoppingCriteriaList([line_end.start(len(batch))]),
        )
        return [text_of(base, tokens, "\n") for tokens in output[:, width:].tolist()]

    def run() -> list[str]:
        texts = {}
        with torch.inference_mode():
            for batch in batches:
                texts |= dict(zip(batch, write(batch), strict=True))
        return [texts[i] for i in range(len(questions))]

    return timed(run, args.repeat)


def run_side(args: argparse.Namespace) -> dict[str, Any]:
    """One side, in this process."""
    task, data = the_task(args)
    questions = the_questions(task, data, args)
    base = load_base(args.base)
    texts, seconds = (run_peer if args.side == "peer" else run_oppu)(base, task, questions, args)
    tokens = sum(
        len(ids) + 1 for ids in base.tokenizer(texts, add_special_tokens=False).input_ids
    )  # and what ends them
    return {
        "task": task.name,
        "texts": texts,
        "seconds": seconds,
        "requests_per_s": len(texts) / seconds,
        "new_tokens_per_s": tokens / seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_apart(side: str) -> dict[str, Any]:
    """One side, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    args = arguments()
    if args.side:
        print(json.dumps(run_side(args)))
        return
    peer, oppu = run_apart("peer"), run_apart("oppu")
    task, texts = oppu.pop("task"), (peer.pop("texts"), oppu.pop("texts"))
    del peer["task"]
    different = [i for i, (left, right) in enumerate(zip(*texts, strict=True)) if left != right]
    ratio = oppu["requests_per_s"] / peer["requests_per_s"]
    print(f"{task}: {len(texts[0])} requests of {args.users} users, up to {args.max_new_tokens} new tokens each")
    for name, side in (("transformers + PEFT", peer), ("oppu", oppu)):
        print(
            f"  {name:20} {side['requests_per_s']:7.2f} requests/s {side['new_tokens_per_s']:8.1f} tokens/s "
            f"{side['peak_memory_mb']:7.0f} MB"
        )
    print(f"  oppu is {ratio:.2f} times as fast; {len(different)} of {len(texts[0])} texts differ")
    for i in different[:3]:
        print(f"    peer: {texts[0][i]!r}\n    oppu: {texts[1][i]!r}")
    case = {
        "task": task,
        "users": args.users,
        "requests": len(texts[0]),
        "different_texts": len(different),
        "peer": peer,
        "oppu": oppu,
        "ratio": ratio,
    }
    if args.json is not None:
        args.json.write_text(json.dumps({"cases": [case]}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
