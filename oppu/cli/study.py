"""`oppu study`: the studies, each a command of its own whose options are the fields of its settings."""

import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from rich.table import Table
from typer.core import TyperGroup

from oppu.cli.options import quiet_libraries
from oppu.cli.progress import meter
from oppu.cli.terminal import console
from oppu.errors import ConfigError
from oppu.evaluate.study import Outcome, Study, all_studies, is_number, run_study, shown, study_in


class _Studies(TyperGroup):
    """The studies by name; and one of one's own by the path of its file."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name or a file; None: there is none."""
        if not cmd_name.endswith(".py"):
            return super().get_command(ctx, cmd_name)
        app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
        _add(app, study_in(Path(cmd_name)))
        return typer.main.get_command(app)


study_app = typer.Typer(
    cls=_Studies,
    help="Studies of the paper, and of what it leaves open: one figure and one table each.",
    invoke_without_command=True,
)

_OUT = Annotated[Path, typer.Option("--out", help="Folder for report, figure, table and measurements.")]
_FRESH = Annotated[bool, typer.Option("--fresh", help="Start anew; remove what an earlier run left.")]


def register(app: typer.Typer) -> None:
    """Add a command for each study."""
    app.add_typer(study_app, name="study")
    for study in all_studies():
        _add(study_app, study)


@study_app.callback(invoke_without_command=True)
def study(context: typer.Context) -> None:
    """List the studies; the path of a file with a study of your own stands for a name.

    Example: `oppu study`
    """
    if context.invoked_subcommand is None:
        table = Table(title="Studies", box=None, header_style="bold", title_justify="left")
        for column in ("name", "paper", "what"):
            table.add_column(column)
        for each in all_studies():
            table.add_row(each.name, each.source or "–", each.summary)
        console().print(table)
        typer.echo("\none of them: oppu study NAME --help")


def _add(app: typer.Typer, study: Study) -> None:
    app.command(study.name, help=inspect.cleandoc(study.help))(_command(study))


def _command(study: Study) -> Callable[..., None]:
    """A function that typer reads as a command: an option for each field of the settings, `--out` and `--fresh`."""
    types = get_type_hints(study.settings)

    def command(**given: Any) -> None:
        out, fresh = given.pop("out"), given.pop("fresh")
        settings = study.settings(
            **{
                each.name: _value(each, given[each.name], types[each.name])
                for each in fields(study.settings)
                if given[each.name] is not None
            }
        )
        with quiet_libraries(), meter() as progress:
            outcome = run_study(
                study,
                settings,
                out,
                fresh=fresh,
                command=shlex.join(["oppu", *sys.argv[1:]]),
                on_stage=lambda name, done, total: progress.show(name, done, total),
            )
        _print(study, outcome)
        typer.echo(f"report: {out / 'report.html'}")

    parameters = [_parameter(each, types[each.name]) for each in fields(study.settings)]
    parameters += [_keyword("out", _OUT, Path("oppu-study") / study.name), _keyword("fresh", _FRESH, False)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _parameter(each: "Field[Any]", kind: Any) -> inspect.Parameter:
    """A setting as an option; several values are one text with commas."""
    default = inspect.Parameter.empty if each.default is MISSING else each.default
    flag, text, least = _flag(each.name), each.metadata["help"], each.metadata["least"]
    if kind is bool:
        return _keyword(each.name, Annotated[kind, typer.Option(f"{flag}/--no-{flag[2:]}", help=text)], default)
    if _items(kind) is None:
        return _keyword(each.name, Annotated[kind, typer.Option(flag, help=text, min=least)], default)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    listed = str | None if default is None else str
    return _keyword(each.name, Annotated[listed, typer.Option(flag, help=text, metavar="A,B,...")], default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _items(kind: Any) -> type | None:
    """The type of a tuple's items; None for what is no tuple."""
    for part in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if part is not NoneType and get_origin(part) is tuple:
            found: type = get_args(part)[0]
            return found
    return None


def _value(each: "Field[Any]", value: Any, kind: Any) -> Any:
    """The value for the settings: a text with commas becomes a tuple; ConfigError where a part is none of its kind."""
    item = _items(kind)
    if item is None:
        return value
    flag, least = _flag(each.name), each.metadata["least"]
    try:
        parts = tuple(item(part.strip()) for part in str(value).split(","))
    except ValueError:
        noun = "whole numbers" if item is int else "numbers"
        raise ConfigError(f"'{value}' is no list of {noun}", where=flag, fix=f"use for example {flag} 1,2,4") from None
    if least is not None and min(parts) < least:
        raise ConfigError(f"{min(parts)} is less than {least}", where=flag, fix=f"use {least} or more")
    return tuple(dict.fromkeys(parts))


def _print(study: Study, outcome: Outcome) -> None:
    table = Table(title=study.title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    places = [place for place, column in enumerate(outcome.table.columns) if column.brief]
    for place in places:
        right = is_number(outcome.table, place)
        table.add_column(outcome.table.columns[place].title, justify="right" if right else "left")
    for row in outcome.table.rows:
        table.add_row(*(shown(row[place], outcome.table.columns[place]) for place in places))
    terminal = console()
    terminal.print(table)
    terminal.print(f"\nThe paper: {study.paper}")
    for sentence in outcome.found:
        terminal.print(f"This run: {sentence}")
