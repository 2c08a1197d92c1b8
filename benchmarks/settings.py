"""Settings of modules, tried on held-out users alone, so that no test question takes part in a choice.

The base is adapted on the other base users; each held-out user's newest two items and the question are kept for
testing. `--longest N` joins users into users with histories of about N items, where those of one user are too short to
say anything: in a task of labels users of the same most frequent label; of texts any, which have no habit in common, so
that what shows is what a rate destroys. Of them, too, nothing is used that a test user is asked.

`--what rates`: learning rates and epochs; `--what layers`: modules on the upper layers alone, where the frozen layers
below could be computed once per item.

NLL is the mean negative log likelihood of the right label among the task's labels, or of a token of the right text. The
gain kept is that of NLL, relative to modules on the query and value projections of all layers. The cost counts layers:
a forward and a backward of every layer for full modules; for the top N, the layers below once per item and those above
in every epoch. `--ways` tries some of the ways alone, by their numbers in the list.

    python benchmarks/settings.py --what rates --data DATA --task citation --folder runs/out/settings
    python benchmarks/settings.py --what layers --longest 40 --task news_categorize --data DATA --folder runs/out/layers
"""

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from oppu.adapt import AdaptConfig, adapt_into_store
from oppu.data import read_dataset, without_test_questions
from oppu.examples import query_examples, training_examples
from oppu.model.bank import Bank
from oppu.model.base import Base, load_base
from oppu.model.forward import answer_log_probs, rows_of
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
    epochs: int = 3


NONE = Way("no module", 0)
RATES = (
    NONE,
    *(
        Way(f"{rate:g}, {epochs} epoch{'s' * (epochs > 1)}", learning_rate=rate, epochs=epochs)
        for epochs in (3, 1, 6)
        for rate in (3e-3, 1e-3, 3e-4, 1e-2, 3e-2)
    ),
)
LAYERS = (
    NONE,
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
    """A user, or several joined: what is trained on, and what is asked, with the right answers."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def trials_of(task: Task, users: Sequence[User], longest: int | None) -> list[Trial]:
    """Each user; with `longest`, users with a label in common joined until they have so many items."""
    groups: dict[str, list[User]] = defaultdict(list)
    for user in users:
        groups[common_label(task, user) if longest else user.id].append(user)
    found = []
    for label, members in sorted(groups.items()):
        for number, part in enumerate(joined(members, longest or 1)):
            items = [training_examples(task, user) for user in part]
            newest = [e for listed in items for e in listed[-2:] if is_question(task, e)]
            asked = [e for user in part for e in query_examples(task, user) if e.answer is not None]
            test = newest + asked
            train = [e for listed in items for e in listed if e not in newest]
            found.append(Trial(f"{label} {number}", tuple(train), tuple(test)))
    return found


def common_label(task: Task, user: User) -> str:
    """The most frequent answer of what is trained on; of texts nothing is in common."""
    answers = Counter(e.answer for e in training_examples(task, user)[:-2])
    return "texts" if task.kind == "text" else str(answers.most_common(1)[0][0])


def is_question(task: Task, example: Example) -> bool:
    """Whether a history item asks what the task asks; a paper's abstract and a tweet do not."""
    return bool(example.prompt) if task.kind == "text" else example.answer in task.labels


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


def measure(way: Way, base: Base, task: Task, trials: Sequence[Trial]) -> dict[str, float]:
    """Quality and time of one way."""
    layers = base.model.config.num_hidden_layers
    top = layers if way.layers is None else way.layers
    config = replace(
        recipe_for(base.family, task).personal,
        module=LoraConfig(way.rank, way.rank, targets=way.targets),
        top_layers=top if 0 < top < layers else None,
        learning_rate=way.learning_rate,
        epochs=way.epochs,
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
    with bank.attach(), torch.inference_mode():
        quality = token_quality(base, questions) if task.kind == "text" else label_quality(base, task, questions)
    return {
        **quality,
        "seconds": seconds,
        "questions": len(questions),
        "cost": ((layers - top if 0 < top < layers else 0) + 2 * top * way.epochs) / (2 * layers * way.epochs),
    }


def label_quality(base: Base, task: Task, questions: Sequence[Question]) -> dict[str, float]:
    """Accuracy, and NLL of the right label."""
    scores = score_labels(base, task, questions).log_softmax(-1)
    right = [task.labels.index(str(question.example.answer)) for question in questions]
    found = [(int(line.argmax()) == label, float(line[label])) for line, label in zip(scores, right, strict=True)]
    return {
        "accuracy": sum(hit for hit, _ in found) / len(found),
        "nll": -sum(score for _, score in found) / len(found),
    }


def token_quality(base: Base, questions: Sequence[Question]) -> dict[str, float]:
    """NLL of a token of the right texts; there is no accuracy."""
    log_probs = []
    for question in questions:
        (encoded,) = encode(base.tokenizer, [question.example], 2048)
        log_probs.append(answer_log_probs(base.model, list(rows_of(question.slot, [encoded], 2048))))
    return {"accuracy": math.nan, "nll": -float(torch.cat(log_probs).mean())}


def finished_ways(file: Path, inputs: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """Lines of the file by the way's name, of those that were measured with these very inputs."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    return {line["name"]: line for line in lines if inputs.items() <= line.items()}


def main() -> None:
    """Adapt the base, try every way, print a table; ways that FOLDER has of the same inputs are not measured again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per task")
    parser.add_argument("--task", default="news_categorize")
    parser.add_argument("--folder", type=Path, required=True, help="for the adapted base and the figures")
    parser.add_argument("--held-out", type=int, default=50, help="held-out users: those with the longest histories")
    parser.add_argument("--what", choices=("rates", "layers"), default="rates")
    parser.add_argument("--longest", type=int, help="join users until they have so many items [default: no]")
    parser.add_argument("--pairs", type=int, default=400, help="to adapt the base on")
    parser.add_argument("--ways", help="numbers, separated by commas, beside 0 and 1 [default: all]")
    options = parser.parse_args()
    logging.disable_progress_bar()
    task = find_task(options.task)
    everyone = without_test_questions(task, read_dataset(options.data / task.name, task)).base_users
    held_out = [user for user in longest_histories(everyone, options.held_out) if len(user.history) > 2]  # two to ask
    others = [user for user in everyone if user not in held_out]
    with Store(options.folder) as store:
        plain = load_base()
        config = AdaptConfig(recipe_for(plain.family, task).adapt, pairs=options.pairs)
        base = adapt_into_store(store, plain, task, others, config, machine=Machine(1))
    trials = trials_of(task, held_out, options.longest)
    print(task.name, len(trials), "users with", [len(trial.train) for trial in trials], "items", flush=True)
    ways = RATES if options.what == "rates" else LAYERS
    kept = options.folder / f"{task.name}-{options.what}{options.longest or ''}.jsonl"
    inputs = {"held_out": options.held_out, "pairs": options.pairs, "base": base.fingerprint}
    found = finished_ways(kept, inputs)
    wanted = {0, 1, *map(int, options.ways.split(","))} if options.ways else set(range(len(ways)))
    for way in (way for number, way in enumerate(ways) if number in wanted):
        if way.name not in found:
            found[way.name] = asdict(way) | inputs | measure(way, base, task, trials)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[way.name]) + "\n")
        line = found[way.name]
        none = found[ways[0].name]["nll"]
        full = found.get(ways[1].name, line)["nll"]
        gain = (none - line["nll"]) / (none - full) if none != full else 0.0
        print(
            f"{way.name:32} accuracy {line['accuracy']:.3f}  NLL {line['nll']:.3f}  gain kept {gain:6.0%}  "
            f"cost {line['cost']:4.0%}  {line['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
