"""Modules on the upper layers alone: how much of the gain do they keep?

If they kept nearly all of it, the frozen layers below could be computed once per history item. Chosen and measured on
held-out users alone: the base is adapted on the other base users; the held-out ones are joined by their most frequent
label into users with histories of useful length; each one's newest two items and the question are kept for testing.

NLL is the mean negative log likelihood of the right label among the task's labels. The gain kept is that of NLL,
relative to modules on the query and value projections of all layers. The cost counts layers: a forward and a backward
of every layer for full modules; for the top N, the layers below once per item and those above in every epoch. `--ways`
tries some of the ways alone, by their numbers in the list.

    python benchmarks/layers.py --data DATA --task news_categorize --folder runs/out/layers
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers.utils import logging

from oppu.adapt import AdaptConfig, adapt_into_store
from oppu.data import read_dataset
from oppu.examples import query_examples, training_examples
from oppu.model.bank import Bank
from oppu.model.base import Base, load_base
from oppu.model.kinds import LoraConfig
from oppu.model.tokens import encode
from oppu.personalize import longest_histories
from oppu.predict import Question, score_labels
from oppu.recipes import recipe_for
from oppu.records import Example, User
from oppu.store import Store
from oppu.tasks import Task, find_task
from oppu.train import Job, Machine, train

QV = ("self_attn.q_proj", "self_attn.v_proj")
ATTENTION = (*QV, "self_attn.k_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Way:
    """Where the modules sit, and how they are trained."""

    name: str
    layers: int | None = None
    """The top so many; None: all; 0: no module."""
    targets: tuple[str, ...] = QV
    rank: int = 8
    learning_rate: float = 3e-3


WAYS = (
    Way("no module", 0),
    Way("all layers, query and value"),
    Way("all layers, query and value, 1e-2", learning_rate=1e-2),
    Way("top 10, query and value", 10),
    Way("top 10, query and value, 1e-2", 10, learning_rate=1e-2),
    Way("top 10, attention", 10, ATTENTION),
    Way("top 10, MLP", 10, MLP),
    Way("top 10, all", 10, ATTENTION + MLP),
    Way("top 10, all, 1e-2", 10, ATTENTION + MLP, learning_rate=1e-2),
    Way("top 10, all, rank 32", 10, ATTENTION + MLP, rank=32),
    Way("top 12, all", 12, ATTENTION + MLP),
    Way("top 12, all, rank 32, 5e-3", 12, ATTENTION + MLP, 32, 5e-3),
)


@dataclass(frozen=True)
class Trial:
    """A joined user: what is trained on, and what is asked, with the right labels."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    right: tuple[int, ...]


def trials_of(task: Task, users: Sequence[User], longest: int) -> list[Trial]:
    """Users of the same most frequent label, joined until they have `longest` training items."""
    groups: dict[str, list[User]] = defaultdict(list)
    for user in users:
        labels = Counter(e.answer for e in training_examples(task, user)[:-2])
        groups[str(labels.most_common(1)[0][0])].append(user)
    found = []
    for label, members in sorted(groups.items()):
        for number, part in enumerate(joined(members, longest)):
            items = [training_examples(task, user) for user in part]
            asked = [e for user in part for e in query_examples(task, user)]
            test = [e for listed in items for e in listed[-2:]] + [e for e in asked if e.answer is not None]
            right = [task.labels.index(str(e.answer)) for e in test]
            train = [e for listed in items for e in listed[:-2]]
            found.append(Trial(f"{label} {number}", tuple(train), tuple(test), tuple(right)))
    return found


def joined(users: Sequence[User], longest: int) -> Iterator[list[User]]:
    """The users in groups of at least `longest` training items, the last aside."""
    group: list[User] = []
    for user in users:
        group.append(user)
        if sum(len(u.history) - 2 for u in group) >= longest:
            yield group
            group = []
    if group:
        yield group


def measure(way: Way, base: Base, task: Task, trials: Sequence[Trial], epochs: int) -> dict[str, float]:
    """Quality and time of one way."""
    layers = base.model.config.num_hidden_layers
    top = layers if way.layers is None else way.layers
    config = replace(
        recipe_for(base.family, task).personal,
        module=LoraConfig(way.rank, way.rank, targets=way.targets),
        top_layers=top if 0 < top < layers else None,
        learning_rate=way.learning_rate,
        epochs=epochs,
    )
    bank = Bank(base.model, config.module_for(base), len(trials))
    started = time.perf_counter()
    if way.layers != 0:
        jobs = [Job(trial.name, tuple(encode(base.tokenizer, list(trial.train), 2048))) for trial in trials]
        done = {trained.user_id: trained.module for trained in train(base, jobs, config, Machine())}
        for slot, trial in enumerate(trials):
            bank.load(slot, done[trial.name])
    seconds = time.perf_counter() - started
    questions = [Question(s if way.layers != 0 else -1, e) for s, trial in enumerate(trials) for e in trial.test]
    with bank.attach():
        scores = score_labels(base, task, questions).log_softmax(-1)
    right = [label for trial in trials for label in trial.right]
    chosen = scores.argmax(-1).tolist()
    nll = -sum(float(line[label]) for line, label in zip(scores, right, strict=True)) / len(right)
    return {
        "accuracy": sum(a == b for a, b in zip(chosen, right, strict=True)) / len(right),
        "nll": nll,
        "seconds": seconds,
        "questions": len(right),
        "cost": ((layers - top if 0 < top < layers else 0) + 2 * top * epochs) / (2 * layers * epochs),
    }


def main() -> None:
    """Adapt the base, try every way, print a table; finished ways in FOLDER are not measured again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per task")
    parser.add_argument("--task", default="news_categorize")
    parser.add_argument("--folder", type=Path, required=True, help="for the adapted base and the figures")
    parser.add_argument("--held-out", type=int, default=50, help="held-out users: those with the longest histories")
    parser.add_argument("--longest", type=int, default=40, help="training items of a joined user, about")
    parser.add_argument("--pairs", type=int, default=400, help="to adapt the base on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ways", help="numbers, separated by commas, beside 0 and 1 [default: all]")
    options = parser.parse_args()
    logging.disable_progress_bar()
    task = find_task(options.task)
    everyone = read_dataset(options.data / task.name, task).base_users
    held_out = longest_histories(everyone, options.held_out)
    others = [user for user in everyone if user not in held_out]
    with Store(options.folder) as store:
        plain = load_base()
        config = AdaptConfig(recipe_for(plain.family, task).adapt, pairs=options.pairs)
        base = adapt_into_store(store, plain, task, others, config, machine=Machine(1))
    trials = trials_of(task, held_out, options.longest)
    print(task.name, len(trials), "joined users with", [len(trial.train) for trial in trials], "items", flush=True)
    kept = options.folder / f"{task.name}.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    found = {line["name"]: line for line in map(json.loads, lines)}
    wanted = {0, 1, *map(int, options.ways.split(","))} if options.ways else set(range(len(WAYS)))
    for way in (way for number, way in enumerate(WAYS) if number in wanted):
        if way.name not in found:
            found[way.name] = asdict(way) | measure(way, base, task, trials, options.epochs)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[way.name]) + "\n")
        line = found[way.name]
        none = found[WAYS[0].name]["nll"]
        full = found.get(WAYS[1].name, line)["nll"]
        gain = (none - line["nll"]) / (none - full) if none != full else 0.0
        print(
            f"{way.name:32} accuracy {line['accuracy']:.3f}  NLL {line['nll']:.3f}  gain kept {gain:6.0%}  "
            f"cost {line['cost']:4.0%}  {line['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
