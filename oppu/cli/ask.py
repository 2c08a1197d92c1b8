"""`oppu ask` and `oppu predict`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from oppu.cli.options import (
    BaseName,
    DataPath,
    Device,
    Dtype,
    Files,
    K,
    Profiles,
    Quantize,
    RetrieverName,
    Seed,
    StoreAddress,
    TaskName,
    TokensPerPass,
    UserId,
    changed,
    open_store,
    quiet_libraries,
    some_of,
)
from oppu.cli.progress import meter
from oppu.model.embedded import EMBEDDED


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(ask)
    app.command()(predict)


def ask(
    question: Annotated[str, typer.Argument(help="The question: the text that the task asks about.")],
    user: UserId,
    store: StoreAddress,
    files: Files = None,
    task: Annotated[
        str | None, typer.Option("--task", help="A task's name or TOML file. [default: that of the newest module]")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=0, help="Use the module trained with so many items. [default: the newest]")
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="A textual profile, for modules with one.")] = None,
    profiles: Profiles = None,
    plain: Annotated[bool, typer.Option("--plain", help="Ask the base without the user's module.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="8bit or 4bit. [default: as the base was for the module]")
    ] = None,
) -> None:
    """Ask a question as a user: the user's module, with retrieved history if it was trained so.

    Example: `oppu ask --store my-store --user u17 "A hacker learns that his world is a simulation."`
    """
    from oppu.answering import ask as answered
    from oppu.describe.stored import profiles_from
    from oppu.tasks import find_task

    with quiet_libraries(), open_store(store, files) as opened:
        found = find_task(task) if task is not None else None
        typer.echo(
            answered(
                opened,
                user,
                question,
                task=found,
                k=k,
                profile=profile,
                profiles=profiles_from(profiles) if profiles is not None else None,
                use_module=not plain,
                device=device,
                dtype=dtype,
                quantize=quantize,
            )
        )


def predict(
    task: TaskName,
    data: DataPath,
    store: StoreAddress,
    out: Annotated[Path, typer.Option("--out", help="File for the answers, in LaMP's format.")],
    files: Files = None,
    base: BaseName = EMBEDDED,
    k: K = 0,
    retriever: RetrieverName = "bm25",
    profiles: Profiles = None,
    plain: Annotated[bool, typer.Option("--plain", help="Answer with the base, without modules.")] = False,
    seed: Seed = 0,
    tokens_per_pass: TokensPerPass = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Answer every question in the data with each user's own module, and write the answers in LaMP's format.

    Example: `oppu predict --task LaMP_2M --data data/movies --store my-store --base movies --out answers.json`
    """
    from oppu.answering import answer_users
    from oppu.data import read_dataset
    from oppu.describe.stored import profiles_from
    from oppu.examples import Setting
    from oppu.personalize import Plan, base_of, find_module
    from oppu.recipes import recipe_for
    from oppu.store.files import make_folders, os_errors, write_atomically
    from oppu.tasks import find_task
    from oppu.train import Machine

    found = find_task(task)
    users = read_dataset(data, found).users
    profiles_of = profiles_from(profiles)
    with os_errors(out.parent):
        make_folders(out.parent)
    total, done = sum(len(user.queries) for user in users), 0
    with quiet_libraries(), open_store(store, files) as opened, meter() as shown:
        given = profiles_of(opened, found, users)
        loaded = base_of(opened, base, device=device, dtype=dtype, quantize=quantize)
        setting = Setting(k=k, retriever=retriever, profile=profiles is not None, seed=seed)
        plan = Plan(found, recipe_for(loaded.family, found).personal, setting)

        def count(*_: str) -> None:
            nonlocal done
            done += 1
            shown.show("answers", done, total)

        machine = changed(Machine(), tokens_per_pass=tokens_per_pass)
        answers = answer_users(loaded, plan, users, None if plain else opened, given, machine, count)
        without = [] if plain else [user.id for user in users if find_module(opened, loaded, plan, user.id) is None]
    golds = [
        {"id": query.id, "output": output}
        for user in users
        for query, output in zip(user.queries, answers[user.id], strict=True)
    ]
    write_atomically(out, json.dumps({"task": found.benchmark_name, "golds": golds}, indent=1).encode())
    if without:
        said = f"answered by the base, for want of a module: {len(without)} users ({some_of(without)})"
        typer.echo(said, err=True)
    typer.echo(f"{len(golds)} answers in {out}")
