"""The command line: parse, make a config, one call. Nothing imports it.

An OppuError is printed as it is and ends with exit code 2. Commands import what they need when they run, so that help
is there at once.
"""

import os
import sys

import typer

from oppu import __version__
from oppu.cli import ask, data, demo, experiment, modules, profile, report, serve, study, tasks, train
from oppu.errors import OppuError

app = typer.Typer(
    name="oppu",
    help="A language model of one's own for every user: one PEFT module per user, trained many at once.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def oppu(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    """A language model of one's own for every user."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


for part in (tasks, data, profile, train, ask, modules, experiment, report, study, serve, demo):
    part.register(app)


def main() -> None:
    """The console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except OppuError as error:
        print(f"oppu: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as leaving:
        if leaving.code == 130:  # what typer makes of Ctrl-C
            print(
                "oppu: interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr
            )
        raise
