"""Personal modules against full fine-tuning of the base on everybody's histories, and against retrieval alone.

The paper calls modules comparable with full fine-tuning and does not compare. Full fine-tuning trains all parameters
(`oppu/evaluate/lab/whole.py`) of the base that was adapted to the task, on which modules stand, too; then everybody is
answered by the same model, without and with retrieved items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from oppu.evaluate.circumstances import versions
from oppu.evaluate.lab.answers import (
    NLL,
    Answer,
    ask,
    gain,
    gain_columns,
    gain_values,
    measure_columns,
    measures_of,
    name_of,
    questions_of,
    scores_of,
)
from oppu.evaluate.lab.kept import Kept
from oppu.evaluate.lab.probe import Lesson, Probe, fingerprint
from oppu.evaluate.lab.trial import Trial, TrialSettings, count, open_trial
from oppu.evaluate.reports.panels import Panel, Series, marks_of
from oppu.evaluate.reports.summary import number
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option

if TYPE_CHECKING:
    from oppu.examples import Setting
    from oppu.records import Example
    from oppu.train import TrainConfig

PROMPTS = ("plain", "retrieval")


@dataclass(frozen=True, slots=True)
class Settings(TrialSettings):
    """How everything is trained."""

    rates: tuple[float, ...] = option(
        "Highest learning rates of full fine-tuning, each tried.", (1e-5, 5e-5), least=0.0
    )
    full_epochs: int | None = option(
        "Passes of full fine-tuning over everybody's items. [default: a module's]", None, least=1
    )
    full_batch: int = option("Examples per step of full fine-tuning.", 16, least=1)


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to answer everybody."""

    name: str
    prompt: str
    answers: tuple[Answer, ...]
    seconds: float
    """Of training, for all users."""
    trained: int
    """Parameters that are trained, of all users together."""


def _run(settings: Settings, place: Workplace) -> Outcome:
    trial = open_trial(settings, place)
    ways = _measured(trial, settings)
    measures = measures_of(trial.task, ways[0].answers)
    epochs = _epochs(trial, settings)
    passes = "one pass" if epochs == 1 else f"{epochs} passes"
    without = {way.prompt: way for way in ways if not way.trained}
    best = {
        prompt: min((way for way in ways if _is_full(way) and way.prompt == prompt), key=lambda way: _nll(trial, way))
        for prompt in PROMPTS
    }
    rows: list[tuple[Value, ...]] = []
    for way in ways:
        scores = scores_of(trial.task, way.answers)
        over_base = gain(way.answers, without["plain"].answers) if way is not ways[0] else None
        over_full = gain(way.answers, best[way.prompt].answers) if way is not best[way.prompt] else None
        rows.append(
            (
                way.name,
                way.prompt,
                *(scores[measure] for measure in measures),
                *gain_values(over_base),
                *gain_values(over_full),
                way.trained / 1e6,
                way.seconds,
            )
        )
    return Outcome(
        found=tuple(_sentence(trial, ways, best, prompt) for prompt in PROMPTS),
        panels=tuple(_panel(trial, ways, best, measure) for measure in dict.fromkeys((measures[0], NLL))),
        table=Table(
            (
                Column("way", "Way"),
                Column("prompt", "Prompt"),
                *measure_columns(measures),
                *gain_columns("base", "base"),
                *gain_columns("full", "full fine-tuning"),
                Column("trained_millions", "Parameters trained, millions", 2),
                Column("seconds", "Seconds of training", 0),
            ),
            tuple(rows),
        ),
        facts=trial.facts(f", full fine-tuning on those of all users together; retrieval k = {settings.k}"),
        notes=(
            "Full fine-tuning: all parameters, embeddings among them, by AdamW with the schedule, clipping and loss of "
            f"modules, {passes} in batches of {settings.full_batch}; it begins where modules "
            f"begin, with the base. {trial.base_note('to the task on held-out users')} Of its learning rates, the one "
            "with the best NLL on the questions themselves is the one compared with, which favours it.",
            "Parameters of modules are those of all users together; full fine-tuning yields one model for everybody. "
            "Seconds are as they were on this machine, other work included.",
        ),
    )


def _measured(trial: Trial, settings: Settings) -> list[_Way]:
    """Base or retrieval, full fine-tuning and modules, first without retrieved items and then with them."""
    from oppu.data import without_questions_of_others
    from oppu.examples import PLAIN, Setting, training_examples

    probe, users = Probe(trial), trial.dataset.users
    shared = without_questions_of_others(trial.task, users)
    retrieval = Setting(k=settings.k, retriever=settings.retriever, seed=settings.seed)
    ways = []
    for prompt, setting in zip(PROMPTS, (PLAIN, retrieval), strict=True):
        asked = questions_of(trial.task, users, setting)
        learnt = {u.id: tuple(training_examples(trial.task, u, setting, newest=settings.newest)) for u in users}
        lessons = [Lesson(user.id, (), asked[user.id]) for user in users]
        ways.append(_Way("base", prompt, probe.answers(f"base, {prompt}", lessons, setting).listed, 0.0, 0))
        everybody = [e for u in shared for e in training_examples(trial.task, u, setting, newest=settings.newest)]
        questions = [example for user in users for example in asked[user.id]]
        for rate in settings.rates:
            config = _full(trial, settings, rate)
            ways.append(_full_way(probe, f"full, {rate:g}", prompt, setting, config, everybody, questions))
        lessons = [Lesson(user.id, learnt[user.id], asked[user.id]) for user in users]
        found = probe.answers(f"modules, {prompt}", lessons, setting)
        size = probe.parameters(setting) * sum(bool(lesson.learnt) for lesson in lessons)
        ways.append(_Way("modules", prompt, found.listed, found.seconds, size))
    return ways


def _full(trial: Trial, settings: Settings, rate: float) -> "TrainConfig":
    config = replace(trial.recipe.personal, learning_rate=rate, batch_size=settings.full_batch)
    return replace(config, epochs=_epochs(trial, settings))


def _epochs(trial: Trial, settings: Settings) -> int:
    return settings.full_epochs if settings.full_epochs is not None else trial.recipe.personal.epochs


def _full_way(
    probe: Probe,
    name: str,
    prompt: str,
    setting: "Setting",
    config: "TrainConfig",
    learnt: "Sequence[Example]",
    asked: "Sequence[Example]",
) -> _Way:
    trial = probe.trial
    inputs = {
        "what": "full fine-tuning",
        "base": trial.adapted(setting).fingerprint,
        "task": trial.task.model_dump(mode="json"),
        "training": asdict(config),
        "learnt": fingerprint(learnt),
        "asked": fingerprint(asked),
        "versions": versions(),
    }
    measure = partial(_train_and_ask, probe, f"{name}, {prompt}", setting, config, learnt, asked, json.dumps(inputs))
    found = trial.place.measured(inputs, measure, f"{name}, {prompt}: answers")
    answers = tuple(Answer(**{**each, "labels": tuple(each["labels"])}) for each in found["answers"])
    return _Way(name, prompt, answers, found["seconds"], found["parameters"])


def _train_and_ask(
    probe: Probe,
    name: str,
    setting: "Setting",
    config: "TrainConfig",
    learnt: "Sequence[Example]",
    asked: "Sequence[Example]",
    key: str,
) -> Mapping[str, Any]:
    """`key`: over everything that decides the answers; what is under way is kept by it."""
    from oppu.evaluate.lab.whole import train_whole
    from oppu.model.base import load_base
    from oppu.model.engine import Progress
    from oppu.model.tokens import encode
    from oppu.predict import Question

    trial, on_stage = probe.trial, probe.trial.place.on_stage
    probe.let_go()
    base = load_base(trial.adapted(setting).name, device=trial.settings.device, dtype="float32")
    limit = min(config.max_tokens, base.max_tokens)
    kept = Kept(trial.place.out)
    kept.forget_others([key])
    done = 0

    def count_(news: Progress) -> None:
        nonlocal done
        done += news.examples
        on_stage(f"{name}: training", done, len(learnt) * config.epochs)

    _, seconds = train_whole(
        base,
        encode(base.tokenizer, learnt, limit),
        config,
        on_progress=count_,
        begun=partial(kept.begun, key),
        on_checkpoint=partial(kept.put_checkpoint, key),
    )
    found = ask(base, trial.task, [Question(-1, example) for example in asked], max_tokens=limit)
    parameters = sum(weight.numel() for weight in base.model.parameters())
    return {"answers": [asdict(answer) for answer in found], "seconds": seconds, "parameters": parameters}


def _is_full(way: _Way) -> bool:
    return way.name.startswith("full")


def _nll(trial: Trial, way: _Way) -> float:
    return scores_of(trial.task, way.answers)[NLL]


def _panel(trial: Trial, ways: Sequence[_Way], best: Mapping[str, _Way], measure: str) -> Panel:
    names = ("base", "full fine-tuning", "modules")
    series = []
    for prompt in PROMPTS:
        these = [way for way in ways if way.prompt == prompt and (not _is_full(way) or way is best[prompt])]
        y = tuple(scores_of(trial.task, way.answers)[measure] for way in these)
        series.append(Series(prompt, tuple(map(float, range(len(these)))), y))
    return Panel(
        f"{name_of(measure)} of everybody's questions",
        marks_of(series, names, name_of(measure, arrow=True)),
        "Full fine-tuning at its best learning rate.",
    )


def _sentence(trial: Trial, ways: Sequence[_Way], best: Mapping[str, _Way], prompt: str) -> str:
    these = {way.name: way for way in ways if way.prompt == prompt}
    modules, full, base = these["modules"], best[prompt], these["base"]
    over_full = gain(modules.answers, full.answers)
    over_base = gain(full.answers, base.answers)
    what = "Without retrieval" if prompt == "plain" else "With retrieval"
    rate = full.name.partition(", ")[2]
    share = modules.trained / full.trained
    return (
        f"{what}: NLL {number(_nll(trial, base))} of the base, {number(_nll(trial, full))} after full fine-tuning "
        f"(rate {rate}), {number(_nll(trial, modules))} with {count(len(trial.dataset.users), 'module')}, which have "
        f"{share:.1%} of its parameters in all. Full fine-tuning gains {over_base.text} over the base. "
        f"Modules over full fine-tuning: {over_full.told}."
    )


STUDY = Study(
    name="finetuning",
    title="Modules against full fine-tuning",
    summary="personal modules, full fine-tuning on everybody's histories, and retrieval alone",
    help="""Compare personal modules with full fine-tuning of the base on everybody's histories, and with retrieval
    alone. Full fine-tuning takes much memory, about 5 GB for the embedded base.

    Example: `oppu study finetuning --task movie_tagging --data data/movies --rates 1e-5,1e-4 --out runs/out/full`""",
    source="Section 7.2",
    paper="Parameter-efficient methods are said to perform as full fine-tuning does, with less than 1 % of the "
    "parameters; OPPU itself is not compared with it.",
    settings=Settings,
    run=_run,
)
