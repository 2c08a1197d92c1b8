"""Memory over many users: trains them with a tiny random base, and prints the process's memory as it goes.

    python benchmarks/memory.py                 2,000 users, 3 to 6 minutes, most of it waiting for the disk
    python benchmarks/memory.py --users 500

Exit code 1 if the memory has grown by more than `--most` MiB from a quarter of the users to the last.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from oppu.model.base import Base, load_base, make_base
from oppu.model.embedded import EMBEDDED
from oppu.model.kinds import LoraConfig
from oppu.personalize import Plan, personalize
from oppu.records import HistoryItem, User
from oppu.store import Store
from oppu.tasks import find_task
from oppu.train import Machine, TrainConfig


def tiny_base() -> Base:
    """A random Llama of two layers with the embedded base's tokenizer."""
    tokenizer = load_base(EMBEDDED).tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return make_base("tiny", LlamaForCausalLM(config), tokenizer)


def user(number: int) -> User:
    """A user with two to five headlines."""
    fields = [{"text": f"Article {n} of writer {number}.", "title": f"Headline {n}"} for n in range(2 + number % 4)]
    return User(f"u{number}", tuple(HistoryItem(str(n), item, float(n)) for n, item in enumerate(fields)))


def resident_mib() -> float:
    """The process's resident memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--most", type=float, default=16.0)
    options = parser.parse_args()
    plan = Plan(find_task("news_headline"), TrainConfig(epochs=1, module=LoraConfig(rank=2, alpha=2)))
    first = 0.0
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        users = (user(number) for number in range(options.users))
        for done, _ in enumerate(personalize(store, tiny_base(), plan, users, machine=Machine(8)), start=1):
            if done % max(1, options.users // 8) == 0:
                print(f"{done:6} users  {resident_mib():8.1f} MiB", flush=True)
            if done == options.users // 4:
                first = resident_mib()
        grown = resident_mib() - first
    print(f"grown by {grown:.1f} MiB from user {options.users // 4} to user {options.users}")
    sys.exit(grown > options.most)


if __name__ == "__main__":
    main()
