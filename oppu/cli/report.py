"""`oppu report`: Table 1 and studies from finished runs, in one page."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oppu.cli.terminal import console

if TYPE_CHECKING:
    from oppu.evaluate.reports.joint import Joint


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_STUDY...", help="Folders of finished experiments and studies.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page, and the tables as CSV and LaTeX.")],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="TOML file of a task of one's own, for runs that do not hold it; may be repeated."),
    ] = None,
) -> None:
    """Join finished experiments (of several tasks and seeds) and studies into Table 1 with its comparisons.

    Example: `oppu report runs/out/all/*/seed-* runs/out/efficiency --out runs/out/report`
    """
    from oppu.evaluate.reports.joint import write_joint_report

    command = shlex.join(["oppu", *sys.argv[1:]])
    say(write_joint_report(folders, out, task_files=task or (), command=command))


def say(joint: "Joint") -> None:
    """Findings, warnings and the page's place, in the terminal."""
    for sentence in [*joint.found, *(f"Mind: {sentence}" for sentence in joint.warnings)]:
        console().print(sentence, soft_wrap=True)
    typer.echo(f"report: {joint.report}")
