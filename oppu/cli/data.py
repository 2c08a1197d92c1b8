"""`oppu data check` and `oppu data download`."""

from pathlib import Path
from typing import Annotated

import typer

from oppu.cli.options import TaskName
from oppu.cli.terminal import console

data_app = typer.Typer(help="Check data, and fetch LaMP's.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(data_app, name="data")


@data_app.command()
def check(
    path: Annotated[Path, typer.Argument(help="Folder or file: OPPU release, LaMP's own, or one's own JSONL or CSV.")],
    task: Annotated[
        str | None, typer.Option("--task", help="A task's name or TOML file. [default: as the benchmark's files say]")
    ] = None,
) -> None:
    """Check everything and print statistics as in Table 5; list every problem, with file, user and item.

    Example: `oppu data check data/movie_tagging`
    """
    from oppu.data import check as checked
    from oppu.data import named_task, statistics, statistics_table
    from oppu.tasks import find_task

    found = find_task(task) if task is not None else named_task(path)
    result = checked(path, found)
    console().print(statistics_table(statistics(result.dataset, found)))
    for note in result.notes:
        typer.echo(f"note: {note}")


@data_app.command()
def download(
    source: Annotated[str, typer.Argument(help="What to fetch: lamp.")],
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    split: Annotated[list[str] | None, typer.Option("--split", help="train, dev or test; may be repeated.")] = None,
    user_based: Annotated[bool, typer.Option("--user-based", help="LaMP's user-based split, not time-based.")] = False,
    url: Annotated[str | None, typer.Option("--url", help="Another server with the same folders.")] = None,
) -> None:
    """Fetch a task's official files; a download that was cut off goes on where it stopped.

    Example: `oppu data download lamp --task LaMP_2M --out data/lamp_2m`
    """
    from oppu.data import download_lamp, progress_bar
    from oppu.data.download import BASE_URL
    from oppu.errors import ConfigError
    from oppu.tasks import find_task

    if source != "lamp":
        raise ConfigError(f"nothing is known of '{source}'", fix="use `oppu data download lamp`")
    with progress_bar() as progress:
        files = download_lamp(
            find_task(task),
            out,
            splits=split or ("train", "dev"),
            time_based=not user_based,
            base_url=url or BASE_URL,
            progress=progress,
        )
    for file in files:
        typer.echo(file)
