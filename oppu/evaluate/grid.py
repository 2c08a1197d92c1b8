"""Several tasks and training seeds with one command: which run reads what, and where it lies.

One task with one seed reads the data as they are named and lies in the folder itself. Else each run lies in
OUT/TASK/seed-N, and where there are several tasks each reads the folder of its name, DATA/TASK.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oppu.errors import ConfigError
from oppu.evaluate.reports.joint import check_free
from oppu.tasks import BUILT_IN, Task, find_task

ALL_TASKS = "all"


@dataclass(frozen=True, slots=True)
class Planned:
    """A run to be made or gone on with."""

    task: Task
    seed: int
    data: Path
    base_data: Path | None
    """Data whose held-out users adapt the base; None: those of `data`."""
    out: Path


def plan_runs(tasks: str, seeds: Sequence[int], data: Path, base_data: Path | None, out: Path) -> tuple[Planned, ...]:
    """A run for each task and seed, task by task.

    `tasks`: names as for `find_task`, separated by commas, or ALL_TASKS. ConfigError for a task or a seed that is named
    twice, for data without a folder for a task, and where the joint report's folder holds a run.
    """
    found = list(BUILT_IN.values()) if tasks == ALL_TASKS else [find_task(name.strip()) for name in tasks.split(",")]
    for what, values, option in (("task", [task.name for task in found], "--task"), ("seed", seeds, "--seeds")):
        if twice := [value for value in dict.fromkeys(values) if list(values).count(value) > 1]:
            raise ConfigError(f"{what} {twice[0]} is named twice", where=option, fix="name it once")
    if len(found) == len(seeds) == 1:
        return (Planned(found[0], seeds[0], data, base_data, out),)
    check_free(out)
    if len(found) > 1:
        _check_folders(found, data)
        if base_data is not None:
            _check_folders(found, base_data)
    return tuple(
        Planned(
            task,
            seed,
            _of_task(data, task, found),
            None if base_data is None else _of_task(base_data, task, found),
            out / task.name / f"seed-{seed}",
        )
        for task in found
        for seed in seeds
    )


def _of_task(data: Path, task: Task, tasks: Sequence[Task]) -> Path:
    return data / task.name if len(tasks) > 1 else data


def _check_folders(tasks: Sequence[Task], data: Path) -> None:
    missing = [task.name for task in tasks if not (data / task.name).exists()]
    if missing:
        there = [task.name for task in tasks if task.name not in missing]
        raise ConfigError(
            f"has no folder for {', '.join(missing)}",
            where=str(data),
            fix=f"use --task {','.join(there)}" if there else "give the folder that holds one folder for each task",
        )
