"""Kinds of modules (Figure 6): LoRA, IA3, prompt tuning, and LoRA-XS, which the paper has not.

Kinds want learning rates of different sizes. Each takes the one of the given rates with which the loss on held-out
items of the users' own histories is least; the questions have no part in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any

from oppu.errors import DataError, ModelError
from oppu.evaluate.circumstances import versions
from oppu.evaluate.comparisons import score_cells
from oppu.evaluate.lab.trial import (
    Ran,
    TrainingSettings,
    Trial,
    differences,
    metric_columns,
    metric_values,
    open_trial,
    score_cell_of,
    series,
)
from oppu.evaluate.metrics import primary_metric
from oppu.evaluate.reports.panels import Panel, Series, lines_of, marks_of
from oppu.evaluate.reports.summary import title
from oppu.evaluate.results import Cell
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option

if TYPE_CHECKING:
    from oppu.train import TrainConfig


@dataclass(frozen=True, slots=True)
class Settings(TrainingSettings):
    """Which kinds, and the rates that each may choose from."""

    kinds: tuple[str, ...] = option("Kinds of modules.", ("lora", "ia3", "prompt", "lora-xs"))
    rates: tuple[float, ...] = option(
        "Learning rates that each kind chooses from, on held-out items; --learning-rate gives all the same.",
        (0.003, 0.01, 0.03),
        least=0.0,
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """What came of a kind."""

    kind: str
    rate: float
    held_out: Mapping[float, float]
    """Mean loss on held-out items by rate; empty where there was nothing to choose."""
    parameters: int
    """Of one user's module."""
    bytes: int
    """Of its files."""
    ran: Ran

    @property
    def cell(self) -> Cell:
        return self.ran.cell("oppu")


def _run(settings: Settings, place: Workplace) -> Outcome:
    trial = open_trial(settings, place)
    configs = {kind: _config(trial, settings, kind) for kind in settings.kinds}  # an unknown kind costs nothing
    base = trial.run("base", ("base",))
    made = [_make(trial, settings, kind, config) for kind, config in configs.items()]
    size = _parameters_of_base(trial, place)
    return Outcome(
        found=_found(trial, base.cell("base"), made),
        panels=_panels(trial, base.cell("base"), made),
        table=_table(trial, base, made, size),
        facts=trial.facts(),
        notes=_notes(made),
        numbers={
            "held_out_losses": {
                each.kind: {str(rate): loss if isfinite(loss) else None for rate, loss in each.held_out.items()}
                for each in made
            }
        },
    )


def _config(trial: Trial, settings: Settings, kind: str) -> "TrainConfig":
    """The trial's training with modules of this kind."""
    from oppu.model.kinds import default_config

    own = trial.recipe.personal.module
    module = own if own.kind == kind else default_config(kind)
    if settings.rank is not None and "rank" in {each.name for each in fields(module)}:
        changes: dict[str, Any] = {"rank": settings.rank, "alpha": settings.rank}
        module = replace(module, **changes)
    return replace(trial.recipe.personal, module=module)


def _make(trial: Trial, settings: Settings, kind: str, config: "TrainConfig") -> _Made:
    held_out: dict[float, float] = {}
    rates = (settings.learning_rate,) if settings.learning_rate is not None else settings.rates
    if len(rates) > 1:
        # patience of all epochs: never stops, but keeps the newest items apart and takes their loss after each epoch
        watched = replace(config, patience=config.epochs)
        for rate in rates:
            try:
                ran = trial.run(f"{kind}-{rate:g}-held-out", ("oppu",), personal=replace(watched, learning_rate=rate))
                loss = _held_out_loss(trial, ran)
            except ModelError:  # somebody's training diverged
                loss = inf
            held_out[rate] = loss if isfinite(loss) else inf
        if not any(map(isfinite, held_out.values())):
            what = f"training of {kind} diverged at every rate"
            raise ModelError(what, where="--rates", fix="give lower rates")
    rate = min(held_out, key=lambda each: held_out[each]) if held_out else rates[0]
    ran = trial.run(f"{kind}-{rate:g}", ("oppu",), personal=replace(config, learning_rate=rate))
    parameters, size = _size(trial, ran)
    return _Made(kind, rate, held_out, parameters, size, ran)


def _held_out_loss(trial: Trial, ran: Ran) -> float:
    """After the last epoch, as the modules of all items will be taken, on average; users of one item have none."""
    from oppu.store import Store

    with Store(ran.stores["oppu-k0"]) as store:
        losses = [
            record.training["held_out_losses"] for record in store.modules(task=trial.task.name, newest_only=True)
        ]
    last = [each[-1] for each in losses if each]
    if not last:
        raise DataError(
            ["nobody has an item to hold out"], where="--rates", fix="use longer histories, or one --learning-rate"
        )
    return fmean(last)


def _size(trial: Trial, ran: Ran) -> tuple[int, int]:
    """Parameters of a module, and bytes of its files; all users' are alike."""
    from oppu.store import Store

    with Store(ran.stores["oppu-k0"]) as store:
        record = store.modules(task=trial.task.name, newest_only=True)[0]
        module = store.load_module(record)
    return sum(tensor.numel() for tensor in module.tensors.values()), record.size_bytes


def _parameters_of_base(trial: Trial, place: Workplace) -> int:
    from oppu.examples import PLAIN
    from oppu.model.base import load_base

    adapted = trial.adapted(PLAIN)
    inputs = {"what": "parameters", "base": adapted.fingerprint, "versions": versions()}
    counted = place.measured(
        inputs, lambda: {"parameters": load_base(adapted.name).model.num_parameters()}, "base: parameters"
    )
    return int(counted["parameters"])


def _panels(trial: Trial, base: Cell, made: Sequence[_Made]) -> tuple[Panel, ...]:
    metric = primary_metric(trial.task)
    level = score_cell_of(trial.task, base).metrics[metric]
    marks = series(trial.task, "", range(len(made)), [each.cell for each in made])
    by_size = [
        Series(each.kind, (float(each.parameters),), (value,), (ends,))
        for each, value, ends in zip(made, marks.y, marks.ranges, strict=True)
    ]
    return (
        Panel(
            "By kind of module",
            marks_of([marks], [each.kind for each in made], title(metric), level=level, level_name="base"),
            "Upright lines: 95 % intervals.",
        ),
        Panel(
            "By size",
            lines_of(by_size, "parameters of a module", title(metric), log_x=True, level=level, level_name="base"),
            "The same numbers; the paper finds that more parameters help.",
        ),
    )


def _table(trial: Trial, base: Ran, made: Sequence[_Made], size: int) -> Table:
    columns = (
        Column("kind", "Kind"),
        Column("parameters", "Parameters"),
        Column("percent_of_base", "% of the base", 4),
        Column("bytes", "Bytes", brief=False),
        Column("learning_rate", "Learning rate"),
        Column("held_out_loss", "Held-out loss", 3, brief=False),
        *metric_columns(trial.task),
        Column("seconds", "Seconds", 1, brief=False),
    )
    rows: list[tuple[Value, ...]] = []
    for scored in score_cells(trial.task, base.cells):
        name = "no module" if scored.cell.method == "base" else scored.cell.method
        values = metric_values(trial.task, scored)
        rows.append((name, None, None, None, None, None, *values, scored.cell.seconds or None))
    for each in made:
        values = metric_values(trial.task, score_cell_of(trial.task, each.cell))
        share, loss = 100 * each.parameters / size, each.held_out.get(each.rate)
        rows.append(
            (each.kind, each.parameters, share, each.bytes, each.rate, loss, *values, round(each.cell.seconds, 1))
        )
    return Table(columns, tuple(rows))


def _found(trial: Trial, base: Cell, made: Sequence[_Made]) -> tuple[str, ...]:
    largest_first = sorted(made, key=lambda each: -each.parameters)
    sizes = {f"{each.kind} ({each.parameters:,} parameters)": (each.cell, base) for each in largest_first}
    found = [f"Against the base: {differences(trial.task, sizes)}."]
    if len(made) > 1:
        first = largest_first[0]
        others = {each.kind: (first.cell, each.cell) for each in largest_first[1:]}
        found.append(f"The largest, {first.kind}, against the others: {differences(trial.task, others)}.")
    return tuple(found)


def _notes(made: Sequence[_Made]) -> tuple[str, ...]:
    """How rates were chosen, and whose rate lies at an end, so that one beyond it may be better."""
    ends = [each.kind for each in made if each.held_out and each.rate in (min(each.held_out), max(each.held_out))]
    if not any(each.held_out for each in made):
        return ()
    warning = f"The least or the greatest of the rates was taken by {', '.join(ends)}: try others with --rates."
    return (_NOTE, warning) if ends else (_NOTE,)


_NOTE = (
    "Held-out loss: of the users' newest items (a tenth, at least one), which were kept from this training, "
    "after its last epoch. The rate with the least held-out loss was then used on all items."
)

STUDY = Study(
    name="kinds",
    title="Kinds of modules",
    summary="LoRA, IA3, prompt tuning and LoRA-XS on the same users",
    help="""Train modules of several kinds for the same users and compare them by size (Figure 6). Each kind chooses its
    learning rate on held-out items.

    Example: `oppu study kinds --out runs/out/kinds --kinds lora,ia3`""",
    source="Figure 6",
    paper="All three kinds are better than no module, in movie tagging and scholarly titles; LoRA is usually the best, "
    "then IA3, then prompt tuning. The paper explains it by their sizes (it gives .01 %, .06 % and .001 % of the "
    "base's parameters, which is not that order for the first two).",
    settings=Settings,
    run=_run,
)
