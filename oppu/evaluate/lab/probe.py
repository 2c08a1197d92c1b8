"""Modules of chosen items, asked chosen questions.

`Trial.run` compares methods on users as they are. A study that decides item by item what a module learns and what it is
asked gives lessons instead; what comes of them is kept in the study's folder.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from oppu import __version__
from oppu.errors import ModelError
from oppu.evaluate.circumstances import versions
from oppu.evaluate.lab.answers import Answer, ask, check_alike
from oppu.evaluate.lab.kept import Kept
from oppu.evaluate.lab.trial import AdaptedBase, Trial
from oppu.records import Example
from oppu.tasks import Task

if TYPE_CHECKING:
    from oppu.examples import Setting
    from oppu.model.base import Base
    from oppu.model.checkpoint import Checkpoint
    from oppu.model.module import Module
    from oppu.train import Machine, TrainConfig

_TOGETHER = 16
"""Lessons that are measured, and kept, at a time."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one module learns, and what it is asked."""

    name: str
    """A user's id, or that of a group; the module's random beginning depends on it."""
    learnt: tuple[Example, ...]
    """Empty: there is no module, the base answers."""
    asked: tuple[Example, ...]
    """Each with its right answer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of lessons."""

    listed: tuple[Answer, ...]
    """Of the lessons in order, each one's questions in order."""
    seconds: float
    """Of training, as they were when it was done."""


@dataclass
class Probe:
    """Answers lessons on the adapted bases of a trial; holds one base, and the modules of the last lessons."""

    trial: Trial
    machine: "Machine | None" = None
    """None: as `train` takes it."""
    _loaded: "tuple[AdaptedBase, Base] | None" = None
    _modules: "dict[str, Module]" = field(default_factory=dict)

    def answers(
        self,
        name: str,
        lessons: Sequence[Lesson],
        setting: "Setting",
        *,
        task: Task | None = None,
        base: AdaptedBase | None = None,
        personal: "TrainConfig | None" = None,
        write: bool = True,
    ) -> Answers:
        """Train each lesson's module and ask it; what was measured before is read.

        `name`: for the progress. `base`: None: the trial's own, adapted under `setting`. `write`: whether a text task's
        answers are written, too, and not their likelihood alone taken.
        """
        from oppu.model.devices import AUTO, dtype_name, find_device

        task = task if task is not None else self.trial.task
        check_alike(task, [example for lesson in lessons for example in lesson.asked])
        adapted = base if base is not None else self.trial.adapted(setting)
        config = personal if personal is not None else self.trial.recipe.personal
        listed: list[Answer] = []
        seconds = 0.0
        for first in range(0, len(lessons), _TOGETHER):
            group = lessons[first : first + _TOGETHER]
            inputs = {
                "what": "answers",
                "base": adapted.fingerprint,
                "task": task.model_dump(mode="json"),
                "training": asdict(config) if any(lesson.learnt for lesson in group) else config.max_tokens,
                "lessons": [fingerprint(lesson.learnt) + fingerprint(lesson.asked) for lesson in group],
                "names": [lesson.name for lesson in group],
                "write": write,
                "dtype": dtype_name(AUTO, find_device(self.trial.settings.device)),
                "versions": versions(),
            }
            measure = partial(self._measure, name, task, adapted, config, group, write, json.dumps(inputs))
            found = self.trial.place.measured(inputs, measure, f"{name}: answers")
            listed += [Answer(**{**each, "labels": tuple(each["labels"])}) for each in found["answers"]]
            seconds += found["seconds"]
        return Answers(tuple(listed), seconds)

    def base(self, adapted: AdaptedBase) -> "Base":
        """An adapted base, loaded when it is first wanted."""
        from oppu.model.base import load_base

        if self._loaded is None or self._loaded[0] != adapted:
            self._loaded = None  # lets go of the other base's memory first
            self._loaded = adapted, load_base(adapted.name, device=self.trial.settings.device)
        return self._loaded[1]

    def let_go(self) -> None:
        """Forget base and modules, so that another base has their memory."""
        self._loaded = None
        self._modules = {}

    def parameters(self, setting: "Setting") -> int:
        """Of one user's module."""
        base = self.base(self.trial.adapted(setting))
        return self.trial.recipe.personal.module_for(base).lay_out(base.model).size

    def _measure(
        self,
        name: str,
        task: Task,
        adapted: AdaptedBase,
        config: "TrainConfig",
        lessons: Sequence[Lesson],
        write: bool,
        of: str,
    ) -> Mapping[str, Any]:
        from oppu.model.bank import Bank
        from oppu.predict import Question

        base = self.base(adapted)
        modules, seconds = self._trained(name, base, config, lessons, of)
        bank = Bank(base.model, config.module_for(base), len(lessons))
        for slot, module in enumerate(modules):
            if module is not None:
                bank.load(slot, module)
        questions = [
            Question(slot if lesson.learnt else -1, example)
            for slot, lesson in enumerate(lessons)
            for example in lesson.asked
        ]
        answered = 0

        def count(more: int) -> None:
            nonlocal answered
            answered += more
            self.trial.place.on_stage(f"{name}: answers", answered, len(questions))

        with bank.attach():
            found = ask(
                base,
                task,
                questions,
                write=write,
                max_tokens=min(config.max_tokens, base.max_tokens),
                virtual_tokens=config.module.virtual_tokens,
                on_done=count,
            )
        return {"answers": [asdict(answer) for answer in found], "seconds": seconds}

    def _trained(
        self, name: str, base: "Base", config: "TrainConfig", lessons: Sequence[Lesson], of: str
    ) -> "tuple[list[Module | None], float]":
        """A module for each lesson that teaches something, and the seconds that it took, in all runs.

        Those of the last lessons are not trained again; those of an interrupted run are gone on with. `of`: the
        measurement that wants them.
        """
        from oppu.model.engine import Progress
        from oppu.model.tokens import encode
        from oppu.train import Job, train

        started, kept = time.perf_counter(), Kept(self.trial.place.out)
        earlier = kept.seconds(of)
        training = json.dumps([__version__, base.fingerprint, str(base.model.dtype), asdict(config)])
        keys = [f"{training} {lesson.name} {fingerprint(lesson.learnt)}" for lesson in lessons]
        kept.forget_others(keys)
        known = dict(zip((lesson.name for lesson in lessons), keys, strict=True))
        found = {key: self._modules.get(key) or kept.module(key) for key in keys}
        self._modules = {key: module for key, module in found.items() if module is not None}
        limit = config.tokens_for(base)
        jobs = [
            Job(lesson.name, tuple(encode(base.tokenizer, lesson.learnt, limit)), begun=kept.begun(key))
            for lesson, key in zip(lessons, keys, strict=True)
            if lesson.learnt and key not in self._modules
        ]
        total = sum(len(job.examples) for job in jobs) * config.epochs
        done = 0

        def keep(under_way: "Iterator[tuple[str, Checkpoint]]") -> None:
            for learner, checkpoint in under_way:
                kept.put_checkpoint(known[learner], checkpoint)
            kept.put_seconds(of, earlier + time.perf_counter() - started)

        def count(news: Progress) -> None:
            nonlocal done
            done += news.examples
            self.trial.place.on_stage(f"{name}: training", done, total)

        for trained in train(base, jobs, config, self.machine, count, keep) if jobs else ():
            if not all(bool(tensor.isfinite().all()) for tensor in trained.module.tensors.values()):
                raise ModelError(
                    f"user {trained.user_id}: the training diverged", where=name, fix="lower the learning rate"
                )
            self._modules[known[trained.user_id]] = trained.module
            kept.put_module(known[trained.user_id], trained.module)
            kept.put_seconds(of, earlier + time.perf_counter() - started)
        modules = [self._modules[key] if lesson.learnt else None for lesson, key in zip(lessons, keys, strict=True)]
        return modules, earlier + time.perf_counter() - started


def fingerprint(examples: Sequence[Example]) -> str:
    """Over all that is learnt or asked, word by word."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"\0{example.user_id}\0{example.item_id}\0{example.prompt}\0{example.answer}".encode())
        digest.update(json.dumps(example.options).encode() if example.options else b"")
    return digest.hexdigest()[:24]
