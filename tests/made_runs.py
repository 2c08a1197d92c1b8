"""Folders of finished experiments with made-up answers, for the tests of what is reported of them."""

import csv
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oppu.evaluate.columns import TABLE_1
from oppu.evaluate.comparisons import is_personal
from oppu.evaluate.results import Cell, Prediction, write_cell, write_results
from oppu.tasks import BUILT_IN, Task

NEWS, RATING, TITLES = (BUILT_IN[name] for name in ("news_categorize", "product_rating", "scholarly_title"))
ALL_COLUMNS = tuple((column.method, column.k) for column in TABLE_1)
SOME = (("base", 0), ("rag", 1), ("rag", 2), ("oppu", 0), ("oppu+rag", 1))
WORDS = ("deep", "open", "learning", "of", "models", "for", "a", "new", "task", "with", "data")


def answers(
    task: Task, method: str, k: int, seed: int, users: int, queries: int, share: float | None = None
) -> list[Prediction]:
    """Made-up answers: better with a module, at other places for each method and seed; `share`: of right ones."""
    golds, drawn = random.Random(f"{task.name} golds"), random.Random(f"{task.name} {method} {k} {seed}")
    if share is None:
        share = 0.45 + 0.25 * is_personal(method) + 0.05 * k * (not is_personal(method))
    found = []
    for user in range(users):
        for query in range(queries):
            gold = golds.choice(task.labels) if task.labels else " ".join(golds.choices(WORDS, k=6))
            other = drawn.choice(task.labels) if task.labels else " ".join(drawn.choices(WORDS, k=6))
            found.append(Prediction(f"u{user}", f"u{user}q{query}", gold, gold if drawn.random() < share else other))
    return found


def made_run(
    folder: Path,
    task: Task = NEWS,
    seed: int = 0,
    columns: Sequence[tuple[str, int]] = SOME,
    users: int = 8,
    queries: int = 5,
    without_model: Mapping[str, float] | None = None,
    **config: Any,
) -> Path:
    """A finished experiment's folder with made-up answers; `without_model`: baselines with shares of right ones."""
    cells = [Cell(method, k, tuple(answers(task, method, k, seed, users, queries)), 1.5 + k) for method, k in columns]
    made = {"command": f"oppu experiment --seed {seed}", "base": "tiny", "seed": seed, "versions": {"oppu": "1"}}
    shares = (without_model or {}).items()
    simple = [Cell(name, 0, tuple(answers(task, name, 0, 0, users, queries, share)), 0.0) for name, share in shares]
    write_results(folder, task, made | config, [*simple, *cells])
    for cell in cells:
        write_cell(folder, cell)
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))
