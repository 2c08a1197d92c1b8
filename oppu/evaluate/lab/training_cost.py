"""What a training costs in time and memory, by the size of its histories.

Histories of a given size are made of a data set's own words: all histories one after another, cut into items of so many
words. So sizes vary and everything else stays: the task's prompts, its answers, and how words become tokens.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from oppu.records import HistoryItem, User
from oppu.tasks import Task
from oppu.tasks.task import template_fields

if TYPE_CHECKING:
    from oppu.model.base import Base
    from oppu.train import Job, Machine, TrainConfig


@dataclass(frozen=True, slots=True)
class Point:
    """One training: so many users, each with so many items of so many words."""

    users: int
    items: int
    words: int
    slots: int


@dataclass(frozen=True, slots=True)
class Case:
    """A task with the text that histories are made of."""

    task: Task
    corpus: tuple[HistoryItem, ...]
    base: str
    epochs: int | None
    tokens_per_pass: int
    fingerprint: str
    """Over task and corpus, hexadecimal."""

    def users(self, point: Point) -> list[User]:
        """The point's users; no two items begin alike, as long as there is text."""
        return users_of_size(self.task, self.corpus, point.users, point.items, point.words)

    def training(self, base: "Base", point: Point) -> tuple[list["Job"], "TrainConfig", "Machine"]:
        """What `train` is given."""
        from oppu.examples import training_examples
        from oppu.model.tokens import encode
        from oppu.recipes import recipe_for
        from oppu.train import Job, Machine

        config = recipe_for(base.family, self.task).personal
        if self.epochs is not None:
            config = replace(config, epochs=self.epochs)
        limit = config.tokens_for(base)
        jobs = [
            Job(user.id, tuple(encode(base.tokenizer, training_examples(self.task, user), limit)))
            for user in self.users(point)
        ]
        return jobs, config, Machine(point.slots, self.tokens_per_pass)


def users_of_size(task: Task, corpus: Sequence[HistoryItem], users: int, items: int, words: int) -> list[User]:
    """Users whose items have `words` words each, of the text of the corpus.

    Of the fields of an item's prompt and answer the one with most text is cut anew; the others stay as far as there is
    room, the shortest first and of each a word at least, and are counted.
    """
    varied = _longest_field(task, corpus)
    stream = [word for item in corpus for word in item.fields.get(varied, "").split()]
    made = []
    for user in range(users):
        history = []
        for place in range(items):
            number = user * items + place
            source = corpus[number % len(corpus)]
            others = _cut_to(words - 1, {name: source.fields[name] for name in _fields(task, source) - {varied}})
            length = max(1, words - sum(len(text.split()) for text in others.values()))
            start = number * words + number * words // len(stream)  # after a round, one word further on
            text = " ".join(stream[(start + i) % len(stream)] for i in range(length))
            fields = {**source.fields, **others, varied: text}
            history.append(HistoryItem(f"user{user}-{place}", fields, float(place)))
        made.append(User(f"user{user}", tuple(history)))
    return made


def _cut_to(words: int, texts: Mapping[str, str]) -> dict[str, str]:
    """The texts by name, in so many words together if each has at most its first one."""
    found: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (len(texts[name].split()), name)):
        later = len(texts) - len(found) - 1
        kept = texts[name].split()[: max(1, words - later)]
        found[name] = texts[name] if len(kept) == len(texts[name].split()) else " ".join(kept)
        words -= len(kept)
    return found


def _longest_field(task: Task, corpus: Sequence[HistoryItem]) -> str:
    form = task.form_for(corpus[0].fields)
    assert form is not None  # the data were checked against the task
    names = sorted(template_fields(form.prompt) or template_fields(form.answer))
    return max(names, key=lambda name: sum(len(item.fields.get(name, "").split()) for item in corpus))


def _fields(task: Task, item: HistoryItem) -> frozenset[str]:
    form = task.form_for(item.fields)
    return template_fields(form.prompt) | template_fields(form.answer) if form else frozenset()


@dataclass
class Clock:
    """Takes times of one base, which is loaded, and warmed up, when the first is wanted."""

    name: str
    _is_warm: bool = False

    @cached_property
    def base(self) -> "Base":
        """The base."""
        from oppu.model.base import load_base

        return load_base(self.name)

    def time(self, case: Case, point: Point) -> dict[str, Any]:
        """Seconds of the training, by the clock on the wall and of all cores together, and its tokens."""
        from oppu.model.engine import Progress
        from oppu.train import train

        jobs, config, machine = case.training(self.base, point)
        tokens = 0

        def count(news: Progress) -> None:
            nonlocal tokens
            tokens += news.tokens

        if not self._is_warm:
            list(train(self.base, jobs, replace(config, epochs=1), machine))
            self._is_warm = True
        started, started_cpu = time.perf_counter(), time.process_time()
        for _ in train(self.base, jobs, config, machine, count):
            pass
        return {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - started_cpu,
            "packed_tokens": tokens,
            "tokens_per_item": sum(len(e.tokens) for job in jobs for e in job.examples) / (point.users * point.items),
        }


def memory_of(given: tuple[Case, Point, int]) -> dict[str, Any]:
    """Peak memory of a training, of this whole process and above what it held with the base loaded, in MiB."""
    import torch
    from transformers.utils import logging

    from oppu.evaluate.lab.own_process import peak_memory_mib
    from oppu.model.base import load_base
    from oppu.train import train

    case, point, threads = given
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    base = load_base(case.base)
    before = peak_memory_mib()
    jobs, config, machine = case.training(base, point)
    for _ in train(base, jobs, config, machine):
        pass
    cuda = torch.cuda.max_memory_allocated() / (1 << 20) if base.device.type == "cuda" else None
    return {"peak_mib": peak_memory_mib(), "before_training_mib": before, "cuda_peak_mib": cuda}
