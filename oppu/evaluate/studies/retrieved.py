"""Number of retrieved items (Figure 4): retrieval with and without modules.

Each number has its own prompts, and so a base of its own, adapted with so many items, and modules of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from oppu.errors import ConfigError
from oppu.evaluate.comparisons import score_cells
from oppu.evaluate.lab.trial import (
    Ran,
    TrainingSettings,
    Trial,
    differences,
    gains_of,
    metric_columns,
    metric_values,
    open_trial,
    series,
)
from oppu.evaluate.metrics import primary_metric
from oppu.evaluate.reports.panels import Panel, lines_of
from oppu.evaluate.reports.summary import TITLES, title
from oppu.evaluate.results import Cell
from oppu.evaluate.study import Column, Outcome, Study, Table, Workplace, option


@dataclass(frozen=True, slots=True)
class Settings(TrainingSettings):
    """Which numbers are compared."""

    k: tuple[int, ...] = option("Numbers of retrieved items; 0: without retrieval.", (0, 1, 2, 4), least=0)


def _run(settings: Settings, place: Workplace) -> Outcome:
    ks = sorted(set(settings.k))
    if not any(ks):
        raise ConfigError("nothing is retrieved with k = 0 alone", where="--k", fix="use for example --k 0,1,2,4")
    trial = open_trial(settings, place)
    methods = ("base", "rag", "oppu", "oppu+rag") if 0 in ks else ("rag", "oppu+rag")
    ran = trial.run("k", methods, k=[k for k in ks if k])
    return Outcome(
        found=_found(trial, ran, ks),
        panels=_panels(trial, ran, ks),
        table=_table(trial, ran),
        facts=trial.facts(),
        notes=(
            "k = 0: the question alone, to the base and to a module. Every k has modules trained with so many items in "
            f"their prompts. {trial.base_note('anew for every k, with so many in its prompts')}",
        ),
    )


def _pair(ran: Ran, k: int) -> tuple[Cell, Cell]:
    """With and without module at this k."""
    return (ran.cell("oppu+rag", k), ran.cell("rag", k)) if k else (ran.cell("oppu", 0), ran.cell("base", 0))


def _panels(trial: Trial, ran: Ran, ks: Sequence[int]) -> tuple[Panel, ...]:
    metric, pairs = primary_metric(trial.task), [_pair(ran, k) for k in ks]
    with_module = series(trial.task, "with module", ks, [a for a, _ in pairs])
    without = series(trial.task, "without", ks, [b for _, b in pairs])
    gain = gains_of(trial.task, "", ks, pairs)
    return (
        Panel(
            "By number of retrieved items",
            lines_of([with_module, without], "retrieved items k", title(metric)),
            "Upright lines: 95 % intervals.",
        ),
        Panel(
            "What the module adds",
            lines_of([gain], "retrieved items k", f"gain in {TITLES[metric]}", level=0.0),
            "Above the thin line the module helps.",
        ),
    )


def _table(trial: Trial, ran: Ran) -> Table:
    columns = (Column("method", "Method"), Column("k", "k"), *metric_columns(trial.task))
    scored = score_cells(trial.task, ran.cells)
    return Table(columns, tuple((each.cell.method, each.cell.k, *metric_values(trial.task, each)) for each in scored))


def _found(trial: Trial, ran: Ran, ks: Sequence[int]) -> tuple[str, ...]:
    task, least, most = trial.task, ks[0], ks[-1]
    added = {f"at k = {k}": _pair(ran, k) for k in ks}
    found = [f"The module adds {differences(task, added)}."]
    if len(ks) > 1:
        (with_most, plain_most), (with_least, plain_least) = _pair(ran, most), _pair(ran, least)
        grown = {"without module": (plain_most, plain_least), "with module": (with_most, with_least)}
        found.append(f"From k = {least} to {most}: {differences(task, grown)}.")
    return tuple(found)


STUDY = Study(
    name="retrieved",
    title="Number of retrieved items",
    summary="retrieval with and without modules by the number of items k",
    help="""Compare retrieval with and without modules by the number k of retrieved items (Figure 4). Every k takes an
    adaption of the base of its own.

    Example: `oppu study retrieved --out runs/out/retrieved --k 0,1,4`""",
    source="Figure 4",
    paper="Both retrieval alone and retrieval with modules become better with more retrieved items, and the difference "
    "between the two becomes smaller, since a longer log in the prompt tells more of what a module knows.",
    settings=Settings,
    run=_run,
)
