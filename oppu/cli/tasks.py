"""`oppu tasks`: what there is, and one of them in full."""

from typing import Annotated

import typer
from rich.table import Table

from oppu.cli.terminal import console

tasks_app = typer.Typer(help="The built-in tasks; a task of one's own is a TOML file.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(tasks_app, name="tasks")


@tasks_app.callback(invoke_without_command=True)
def tasks(context: typer.Context) -> None:
    """List the tasks.

    Example: `oppu tasks`
    """
    if context.invoked_subcommand is None:
        _list()


def _list() -> None:
    from oppu.tasks import BUILT_IN

    table = Table(title="Tasks", box=None, header_style="bold", title_justify="left")
    for column in ("name", "LaMP", "kind", "labels", "what"):
        table.add_column(column, justify="right" if column == "labels" else "left")
    for task in BUILT_IN.values():
        table.add_row(task.name, task.lamp_id, task.kind, str(len(task.labels) or ""), task.title)
    console().print(table)
    typer.echo("\none in full: oppu tasks show NAME")


@tasks_app.command()
def show(name: Annotated[str, typer.Argument(help="A task's name, its LaMP id, or a TOML file.")]) -> None:
    """Print a task as a TOML file: a pattern for one's own.

    Example: `oppu tasks show movie_tagging > my_task.toml`
    """
    from oppu.tasks import find_task, task_to_toml

    typer.echo(task_to_toml(find_task(name)), nl=False)
