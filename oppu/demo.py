"""The whole job on the simulated sample histories: adapt, personalize everyone at once, compare, report.

Small enough for a few minutes on two CPU cores.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from oppu.data import read_dataset
from oppu.data.sample import sample_tasks
from oppu.evaluate.design import Experiment
from oppu.evaluate.experiment import Stage, run
from oppu.evaluate.results import Cell
from oppu.model.embedded import EMBEDDED
from oppu.recipes import recipe_for
from oppu.records import User
from oppu.tasks import Task, task_from_toml

METHODS = ("base", "rag", "oppu", "oppu+rag")
EPOCHS, BATCH_SIZE, NEWEST = 2, 4, 16
"""Small enough for a few minutes on two cores; the sample exists to show the way, not to prove anything."""
PAIRS = 96
"""Held-out users' items to adapt the base on."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One sample task of the demo and what came of it."""

    task: Task
    task_file: Path
    users: tuple[User, ...]
    cells: tuple[Cell, ...]
    out: Path


def run_demo(
    out: Path, *, base: str = EMBEDDED, fresh: bool = False, on_stage: Callable[[Stage], None] = lambda _: None
) -> list[Shown]:
    """Run both sample tasks, each into its own folder under `out`; what is finished is not computed again."""
    shown = []
    for sample in sample_tasks():
        task = task_from_toml(sample.task)
        dataset = read_dataset(sample.data, task)
        recipe = recipe_for(base, task)
        experiment = Experiment(
            task=task,
            methods=METHODS,
            k=(1,),
            base=base,
            adapt=replace(recipe.adapt, epochs=1, batch_size=BATCH_SIZE),
            personal=replace(recipe.personal, epochs=EPOCHS, batch_size=BATCH_SIZE),
            newest=NEWEST,
            pairs=PAIRS,
        )
        place = out / task.name
        cells = run(experiment, dataset, place, fresh=fresh, command="oppu demo", on_stage=on_stage)
        shown.append(Shown(task, sample.task, dataset.users, cells, place))
    return shown
