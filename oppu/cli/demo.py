"""`oppu demo`: the main job on the sample histories, from nothing to a personal model for each of eight people."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oppu.cli.options import quiet_libraries
from oppu.cli.progress import meter
from oppu.cli.terminal import console

if TYPE_CHECKING:
    from oppu.demo import Shown


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, reports, bases and modules.")] = Path(
        "oppu-demo"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew.")] = False,
) -> None:
    """Adapt, personalize and compare on simulated sample histories of eight people; a few minutes on two cores.

    Example: `oppu demo`
    """
    from oppu.demo import run_demo
    from oppu.evaluate.reports.summary import summary_table

    started = time.perf_counter()
    terminal = console()
    terminal.print(
        "Eight simulated people, two tasks: which folder a note goes into, and the subject line of a message."
    )
    with quiet_libraries(), meter() as progress:
        shown = run_demo(
            out,
            fresh=fresh,
            on_stage=lambda stage: progress.show(stage.name, stage.done, stage.total, stage.tokens),
        )
    for each in shown:
        terminal.print()
        terminal.print(summary_table(each.task, each.cells))
        terminal.print(_lifts(each))
    terminal.print(f"\n{time.perf_counter() - started:.0f} s. Reports:")
    for each in shown:
        terminal.print(f"  {each.out / 'report.html'}")
    terminal.print(_next_steps(shown[0]), soft_wrap=True)


def _lifts(shown: "Shown") -> Table:
    """What each user gains by the module, against the same prompts without it."""
    from oppu.evaluate.comparisons import counterpart, gain_by_user, is_personal
    from oppu.evaluate.metrics import primary_metric
    from oppu.evaluate.reports.summary import signed

    table = Table(
        title=f"Gain by the personal module for each user ({primary_metric(shown.task)})", box=None, header_style="bold"
    )
    table.add_column("method")
    for user in shown.users:
        table.add_column(user.id, justify="right")
    for cell in shown.cells:
        other = counterpart(cell, shown.cells)
        if is_personal(cell.method) and other is not None:
            gains = gain_by_user(shown.task, cell, other)
            table.add_row(f"{cell.method} - {other.method}", *(signed(gains[user.id]) for user in shown.users))
    return table


def _next_steps(shown: "Shown") -> str:
    first, second = shown.users[:2]
    note = first.queries[0].input
    store = shown.out / "store"
    return f"""
Ask the same question as two people:
  oppu ask --store {store} --user {first.id} "{note}"
  oppu ask --store {store} --user {second.id} "{note}"
Serve everybody (OpenAI's API, model "user:{first.id}", "user:{second.id}", ...):
  oppu serve --store {store} --base {shown.task.name}-plain --task {shown.task_file}
Run it on your own data (JSONL or CSV with user, time, input, output):
  oppu data check my.jsonl --task {shown.task_file}
  oppu experiment --task {shown.task_file} --data my.jsonl --out my-run
"""
