"""Tasks as values: the seven of the paper and any of one's own from a TOML file."""

from pathlib import Path

from oppu.errors import ConfigError
from oppu.tasks.lamp import LAMP_TASKS
from oppu.tasks.task import HistoryForm, Hyperparameters, Task, task_from_toml, task_to_toml

BUILT_IN: dict[str, Task] = {task.name: task for task in LAMP_TASKS}

_BY_LAMP_ID = {task.lamp_id.lower(): task for task in LAMP_TASKS}


def find_task(name: str) -> Task:
    """A task by its name, by its LaMP id (`LaMP_2N`, `lamp-2n`), or by the path of a TOML file; else a ConfigError."""
    built_in = BUILT_IN.get(name) or _BY_LAMP_ID.get(name.lower().replace("-", "_"))
    if built_in is not None:
        return built_in
    if name.endswith(".toml"):
        return task_from_toml(Path(name))
    raise ConfigError(f"unknown task '{name}'", fix=f"use a path to a .toml file or one of: {', '.join(BUILT_IN)}")


__all__ = ["BUILT_IN", "HistoryForm", "Hyperparameters", "Task", "find_task", "task_from_toml", "task_to_toml"]
