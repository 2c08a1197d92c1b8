"""Training time against history items and words per item (Figure 8), and time and memory against users and slots.

Times are taken in one process, all points in turn, forth and back, because a machine's speed drifts; peak memory in a
process for each point, because a process keeps what it once held.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from oppu.errors import ConfigError, DataError
from oppu.evaluate.circumstances import machine as machine_facts
from oppu.evaluate.circumstances import versions
from oppu.evaluate.lab.training_cost import Case, Clock, Point, memory_of
from oppu.evaluate.reports.fit import Line, fit_line
from oppu.evaluate.reports.panels import Panel, Series, lines_of
from oppu.evaluate.study import Column, Outcome, Study, Table, Workplace, option


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes that are measured."""

    items: tuple[int, ...]
    words: tuple[int, ...]
    items_words: int
    """Words of an item where the number of items varies."""
    words_items: int
    """Items where the number of words varies."""
    users: tuple[int, ...]
    slots: tuple[int, ...]
    epochs: int | None
    """None: the base's own."""


_SCALES = {
    "small": Scale((5, 10, 20, 30), (10, 20, 40, 60), 30, 10, (1, 2, 4, 8), (1, 2, 4, 8), 1),
    "paper": Scale(
        tuple(range(10, 101, 10)), tuple(range(10, 101, 10)), 100, 10, (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32), None
    ),
}
_USERS_ITEMS, _USERS_WORDS = 4, 20
"""Size of a history where the number of users or slots varies."""
_CORPUS = 2000
"""Items whose text is used; more than this no scale needs."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on what."""

    task: str | None = option("A task's name or TOML file. [default: the two simulated sample tasks]", None)
    data: Path | None = option("Folder or file with the users' histories; with --task.", None)
    base: str | None = option("Base model: the embedded one, a folder, or a name on the hub. [default: embedded]", None)
    scale: str = option("small: for two cores; paper: the sizes of Figure 8.", "small")
    items: tuple[int, ...] | None = option("Numbers of history items. [default: the scale's]", None, least=1)
    tokens: tuple[int, ...] | None = option(
        "Numbers of tokens per item, counted as the paper does, between spaces. [default: the scale's]", None, least=1
    )
    users: tuple[int, ...] | None = option("Numbers of users. [default: the scale's]", None, least=1)
    slots: tuple[int, ...] | None = option(
        "Numbers of slots, each with the most users. [default: the scale's]", None, least=1
    )
    epochs: int | None = option("Passes over a history. [default: the scale's]", None, least=1)
    tokens_per_pass: int | None = option(
        "Tokens in one pass; more needs more memory. [default: as many as are useful]", None, least=64
    )
    repeats: int = option("Measurements of each time; the median counts.", 3, least=1)


@dataclass(frozen=True, slots=True)
class _Axis:
    """One thing that varies, on one task."""

    name: str
    case: Case
    points: tuple[Point, ...]
    with_memory: bool = False

    def x(self, point: Point) -> int:
        return int(getattr(point, self.name))


def _run(settings: Settings, place: Workplace) -> Outcome:
    scale = _scale(settings)
    cases = _cases(settings, scale)
    axes = _axes(cases, scale)
    context = _context(cases[0].base)
    memory = _memories(axes, context, place)
    times = _times(axes, context, settings.repeats, place)
    rows, panels, found = [], [], []
    fits: dict[str, Line | None] = {}
    for axis in axes:
        for point in axis.points:
            rows.append(_row(axis, point, times[axis.case.task.name, point], memory.get((axis.case.task.name, point))))
    for name in ("items", "words", "users", "slots"):
        these = [axis for axis in axes if axis.name == name]
        series = [_time_series(axis, times) for axis in these]
        panels.append(Panel(f"Time against {_AXES[name]}", lines_of(series, _AXES[name], "seconds"), _CAPTIONS[name]))
        for axis, each in zip(these, series, strict=True):
            cpu = _time_series(axis, times, "cpu_seconds").fit
            found.append(_time_sentence(axis, each, cpu))
            fits |= {
                f"{what} by {name}, {each.label}": fit for what, fit in (("seconds", each.fit), ("cpu_seconds", cpu))
            }
    for axis in (axis for axis in axes if axis.with_memory):
        each = _memory_series(axis, memory)
        panels.append(Panel(f"Memory against {_AXES[axis.name]}", lines_of([each], _AXES[axis.name], "peak MiB")))
        found.append(_memory_sentence(axis, each))
        fits[f"peak_mib by {axis.name}, {axis.case.task.name}"] = each.fit
    return Outcome(
        found=tuple(found),
        panels=tuple(panels),
        table=Table(_COLUMNS, tuple(rows)),
        facts=_facts(cases, scale, settings),
        notes=_NOTES,
        numbers={"fits": {name: asdict(fit) if fit else None for name, fit in fits.items()}},
    )


_LINEAR, _CLOSE = 0.98, 0.9
"""R² from which growth is called linear, and close to linear."""
_AXES = {"items": "history items", "words": "tokens per item", "users": "users", "slots": "slots"}
_CAPTIONS = {
    "items": "One user.",
    "words": "One user.",
    "users": "All users at once, as many slots as users.",
    "slots": "The same users each time, so many of them at once.",
}
_NOTES = (
    "Dots are medians of the repeats, upright lines reach from the least to the greatest, dashed lines are "
    f"least-squares fits; linear: R² from {_LINEAR}, close to linear: from {_CLOSE}. Tokens of an item are counted as "
    "the paper does, between spaces, over the fields of its prompt and answer; model tokens are those that the base "
    "sees, with the prompt's fixed words. CPU seconds are those of all cores together, which other work on the machine "
    "disturbs less.",
    "Packed tokens: what one training computes, shared beginnings of a user's batch counted once. Memory is that of "
    "the whole process, at its peak, with torch and the base in it; it grows with users until their batches fill a "
    "pass, and then with each slot's module alone.",
)
_COLUMNS = (
    Column("varied", "Varied"),
    Column("task", "Task"),
    Column("users", "Users"),
    Column("slots", "Slots"),
    Column("items", "Items"),
    Column("tokens_per_item", "Tokens"),
    Column("model_tokens_per_item", "Model tokens", 1, brief=False),
    Column("packed_tokens", "Packed tokens", brief=False),
    Column("seconds", "Seconds", 2),
    Column("least_seconds", "Least", 2, brief=False),
    Column("greatest_seconds", "Greatest", 2, brief=False),
    Column("seconds_per_user", "Per user", 2),
    Column("cpu_seconds", "CPU seconds", 2, brief=False),
    Column("peak_mib", "Peak MiB", 0),
    Column("training_mib", "of it training", 0, brief=False),
    Column("cuda_peak_mib", "CUDA peak MiB", 0, brief=False),
)


def _scale(settings: Settings) -> Scale:
    if settings.scale not in _SCALES:
        raise ConfigError(f"unknown scale '{settings.scale}'", where="--scale", fix=f"use one of: {', '.join(_SCALES)}")
    given: dict[str, Any] = {
        "items": settings.items,
        "words": settings.tokens,
        "users": settings.users,
        "slots": settings.slots,
        "epochs": settings.epochs,
    }
    return replace(_SCALES[settings.scale], **{name: value for name, value in given.items() if value is not None})


def _cases(settings: Settings, scale: Scale) -> list[Case]:
    """The given task, or the two sample tasks; one that is wanted with longer items than it takes is refused."""
    import torch

    from oppu.data import read_dataset
    from oppu.data.sample import sample_tasks
    from oppu.model.devices import find_device
    from oppu.model.embedded import EMBEDDED
    from oppu.model.memory import useful_tokens
    from oppu.tasks import find_task

    if (settings.task is None) != (settings.data is None):
        given, missing = ("--task", "--data") if settings.data is None else ("--data", "--task")
        raise ConfigError(f"{given} needs {missing}", fix="give both, or neither for the sample tasks")
    if settings.task is not None and settings.data is not None:
        found = [(find_task(settings.task), settings.data)]
    else:
        found = [(find_task(str(sample.task)), sample.data) for sample in sample_tasks()]
    # not what fits just now: a point measured later would have other passes
    tokens = settings.tokens_per_pass or useful_tokens(find_device(), torch.get_num_threads())
    cases = []
    for task, data in found:
        dataset = read_dataset(data, task)
        corpus = [item for user in (*dataset.users, *dataset.base_users) for item in user.history][:_CORPUS]
        if not corpus:
            raise DataError(["nobody has a history"], where=str(data), fix="use data with histories")
        longest = max(*scale.words, scale.items_words)
        if longest > task.max_item_words:
            raise ConfigError(
                f"task {task.name} cuts items at {task.max_item_words} words, which is less than {longest}",
                where="--tokens",
            )
        items = json.dumps([dict(item.fields) for item in corpus])
        fingerprint = hashlib.sha256(f"{task.model_dump_json()}\n{items}".encode()).hexdigest()
        cases.append(Case(task, tuple(corpus), settings.base or EMBEDDED, scale.epochs, tokens, fingerprint))
    return cases


def _axes(cases: Sequence[Case], scale: Scale) -> list[_Axis]:
    """Items and words on every task, users and slots on the first."""
    axes = [_Axis("items", case, tuple(Point(1, n, scale.items_words, 1) for n in scale.items)) for case in cases]
    axes += [_Axis("words", case, tuple(Point(1, scale.words_items, n, 1) for n in scale.words)) for case in cases]
    by_users = tuple(Point(n, _USERS_ITEMS, _USERS_WORDS, n) for n in scale.users)
    by_slots = tuple(Point(max(scale.users), _USERS_ITEMS, _USERS_WORDS, n) for n in scale.slots)
    return [*axes, _Axis("users", cases[0], by_users, True), _Axis("slots", cases[0], by_slots, True)]


def _context(base: str) -> dict[str, Any]:
    """What a measurement depends on besides its case and point."""
    from oppu.model.embedded import EMBEDDED, embedded_folder
    from oppu.model.fingerprint import folder_fingerprint

    folder = embedded_folder() if base == EMBEDDED else Path(base)
    fingerprint = folder_fingerprint(folder) if folder.is_dir() else base
    return {"base": fingerprint, "versions": versions(), "machine": machine_facts()}


def _inputs(what: str, case: Case, point: Point, context: Mapping[str, Any], repeat: int) -> dict[str, Any]:
    return {
        "what": what,
        "made": 2,  # how items of a size are made; a change measures anew
        "task": case.task.name,
        "case": case.fingerprint,
        "epochs": case.epochs,
        "tokens_per_pass": case.tokens_per_pass,
        **asdict(point),
        "repeat": repeat,
        **context,
    }


def _what(what: str, task: str, point: Point) -> str:
    return f"{task}, {what}: " + ", ".join(f"{name} {value}" for name, value in asdict(point).items())


_Key = tuple[str, Point]
"""A task's name and a training of it; one that lies on two axes is measured once."""


def _memories(axes: Sequence[_Axis], context: Mapping[str, Any], place: Workplace) -> dict[_Key, dict[str, Any]]:
    """Memory of the points of the axes that ask for it."""
    import torch

    from oppu.evaluate.lab.own_process import in_own_process

    wanted = {(axis.case.task.name, point): axis.case for axis in axes if axis.with_memory for point in axis.points}
    found: dict[_Key, dict[str, Any]] = {}
    for (task, point), case in wanted.items():
        place.on_stage("memory", len(found), len(wanted))
        measure = partial(in_own_process, memory_of, (case, point, torch.get_num_threads()))
        found[task, point] = place.measured(
            _inputs("memory", case, point, context, 0), measure, _what("memory", task, point)
        )
    place.on_stage("memory", len(wanted), len(wanted))
    return found


def _times(
    axes: Sequence[_Axis], context: Mapping[str, Any], repeats: int, place: Workplace
) -> dict[_Key, list[dict[str, Any]]]:
    """Every repeat's time of all points: all in turn, then all again the other way round."""
    wanted = {(axis.case.task.name, point): axis.case for axis in axes for point in axis.points}
    found: dict[_Key, list[dict[str, Any]]] = {key: [] for key in wanted}
    clock, done = Clock(axes[0].case.base), 0
    for repeat in range(repeats):
        for task, point in list(wanted)[:: 1 if repeat % 2 == 0 else -1]:
            place.on_stage("time", done, repeats * len(wanted))
            case = wanted[task, point]
            measure = partial(clock.time, case, point)
            inputs = _inputs("time", case, point, context, repeat)
            found[task, point].append(place.measured(inputs, measure, _what("time", task, point)))
            done += 1
    place.on_stage("time", done, done)
    return found


def _row(
    axis: _Axis, point: Point, times: Sequence[Mapping[str, Any]], memory: Mapping[str, Any] | None
) -> tuple[str | int | float | None, ...]:
    seconds = [each["seconds"] for each in times]
    held = memory if memory is not None and axis.with_memory else {}
    training = held["peak_mib"] - held["before_training_mib"] if held else None
    return (
        "tokens" if axis.name == "words" else axis.name,
        axis.case.task.name,
        point.users,
        point.slots,
        point.items,
        point.words,
        times[0]["tokens_per_item"],
        times[0]["packed_tokens"],
        median(seconds),
        min(seconds),
        max(seconds),
        median(seconds) / point.users,
        median(each["cpu_seconds"] for each in times),
        held.get("peak_mib"),
        training,
        held.get("cuda_peak_mib"),
    )


def _time_series(axis: _Axis, times: Mapping[_Key, Sequence[Mapping[str, Any]]], what: str = "seconds") -> Series:
    measured = [[each[what] for each in times[axis.case.task.name, point]] for point in axis.points]
    x, y = [axis.x(point) for point in axis.points], [median(each) for each in measured]
    fit = fit_line(x, y) if axis.name != "slots" else None  # slots change the way, not the work: no line is expected
    return Series(axis.case.task.name, tuple(x), tuple(y), tuple((min(each), max(each)) for each in measured), fit)


def _memory_series(axis: _Axis, memory: Mapping[_Key, Mapping[str, Any]]) -> Series:
    x = [axis.x(point) for point in axis.points]
    y = [_peak_mib(memory[axis.case.task.name, point]) for point in axis.points]
    return Series(axis.case.task.name, tuple(x), tuple(y), (), fit_line(x, y))


def _peak_mib(held: Mapping[str, Any]) -> float:
    """On a GPU the GPU's, where the training is; else the process's."""
    on_gpu = held["cuda_peak_mib"]
    return float(held["peak_mib"] if on_gpu is None else on_gpu)


def _time_sentence(axis: _Axis, series: Series, cpu: Line | None) -> str:
    x, y = series.x, series.y
    span = f"from {x[0]:g} to {x[-1]:g} {_AXES[axis.name]} the time goes from {y[0]:.2f} s to {y[-1]:.2f} s"
    if axis.name == "slots":
        return f"{series.label}: {span}."
    if axis.name == "users":
        span += f", from {y[0] / x[0]:.2f} s to {y[-1] / x[-1]:.2f} s for each user"
    of_cpu = f" CPU time: R² {cpu.r_squared:.3f}." if cpu is not None else ""
    return f"{series.label}: {_line(series.fit, 's', axis.name)}; {span}.{of_cpu}"


def _memory_sentence(axis: _Axis, series: Series) -> str:
    x, y = series.x, series.y
    span = (
        f"from {x[0]:g} to {x[-1]:g} {_AXES[axis.name]} the peak memory goes from {y[0]:,.0f} MiB to {y[-1]:,.0f} MiB"
    )
    return f"{series.label}: {_line(series.fit, 'MiB', axis.name)}; {span}."


_ONE = {"items": "item", "words": "token of each item", "users": "user", "slots": "slot"}


def _line(fit: Line | None, unit: str, axis: str) -> str:
    """How straight the growth is, and how steep."""
    if fit is None:
        return "fewer than three sizes show no line"
    shape = "linear" if fit.r_squared >= _LINEAR else "close to linear" if fit.r_squared >= _CLOSE else "not linear"
    return f"{shape} in {_AXES[axis]}, R² {fit.r_squared:.3f}, {_number(fit.slope)} {unit} for each {_ONE[axis]} more"


def _number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def _facts(cases: Sequence[Case], scale: Scale, settings: Settings) -> str:
    names = " and ".join(case.task.name for case in cases)
    epochs = "epochs of the base's settings" if scale.epochs is None else f"epochs: {scale.epochs}"
    return (
        f"Base {cases[0].base}; histories made of the text of {names}; {epochs}; repeats of a time: {settings.repeats}."
    )


STUDY = Study(
    name="efficiency",
    title="Training time and memory",
    summary="time against items, tokens per item, users and slots; memory against users and slots",
    help="""Measure how training time grows with history items and with tokens per item (Figure 8), and what the paper
    leaves out: time and memory against the number of users and of slots.

    What was measured in the folder before is kept; more repeats or sizes cost their own time alone. Users and slots are
    varied on the first task.

    Example: `oppu study efficiency --out runs/out/efficiency --items 10,20,40 --repeats 5`""",
    source="Figure 8, appendix C",
    paper="With Llama-2-7B, one user, movie tagging and tweet paraphrasing: the time grows linearly from 10 to 100 "
    "items of 100 tokens, and close to linearly from 10 to 100 tokens per item with 10 items, although attention is "
    "quadratic. Users are not varied, since each can be trained by itself.",
    settings=Settings,
    run=_run,
)
