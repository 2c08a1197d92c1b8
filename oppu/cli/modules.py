"""`oppu modules`: whose there are, one in full, out, in, and away."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oppu.cli.options import (
    Device,
    Dtype,
    Files,
    Quantize,
    StoreAddress,
    UserId,
    open_store,
    quiet_libraries,
    refuse_given,
)
from oppu.cli.terminal import console

if TYPE_CHECKING:
    from oppu.store import ModuleRecord, Store

modules_app = typer.Typer(help="The users' modules: list, show, export, import, delete.", no_args_is_help=True)

Task = Annotated[str | None, typer.Option("--task", help="Only of this task.")]
SettingName = Annotated[str | None, typer.Option("--setting", help="As `oppu modules list` names it, e.g. bm25-k1.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="[default: the newest]")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(modules_app, name="modules")


@modules_app.command(name="list")
def list_modules(
    store: StoreAddress,
    files: Files = None,
    user: Annotated[str | None, typer.Option("--user", help="Only of this user.")] = None,
    task: Task = None,
    all_versions: Annotated[bool, typer.Option("--all", help="Older versions, too.")] = False,
) -> None:
    """List the modules.

    Example: `oppu modules list --store my-store`
    """
    with open_store(store, files) as opened:
        records = opened.modules(user, task, newest_only=not all_versions)
    table = Table(box=None, header_style="bold")
    for column in ("user", "task", "setting", "base", "version", "created", "KiB"):
        table.add_column(column, justify="right" if column in ("version", "KiB") else "left")
    for record in records:
        size = f"{record.size_bytes / 1024:,.0f}"
        row = (record.user_id, record.task, record.setting, record.base_name, str(record.version), record.created, size)
        table.add_row(*row)
    console().print(table)
    typer.echo(f"{len(records)} modules of {len({record.user_id for record in records})} users")


@modules_app.command()
def show(
    user: UserId,
    store: StoreAddress,
    files: Files = None,
    task: Task = None,
    setting: SettingName = None,
    version: Version = None,
) -> None:
    """Show how a module was made, as JSON.

    Example: `oppu modules show --store my-store --user u17`
    """
    with open_store(store, files) as opened:
        record = _find(opened, user, task, setting, version)
    shown = {name: getattr(record, name) for name in record.__slots__}
    typer.echo(json.dumps(shown, indent=2, default=str))


@modules_app.command()
def export(
    user: UserId,
    store: StoreAddress,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    files: Files = None,
    task: Task = None,
    setting: SettingName = None,
    version: Version = None,
) -> None:
    """Write a module as a folder that `PeftModel.from_pretrained` loads.

    Example: `oppu modules export --store my-store --user u17 --out u17-module`
    """
    from oppu.answering import export_module

    with quiet_libraries(), open_store(store, files) as opened:
        record = _find(opened, user, task, setting, version)
        typer.echo(export_module(opened, record, out))


@modules_app.command(name="import")
def import_module(
    folder: Annotated[Path, typer.Argument(help="An export, or a folder that PEFT wrote.")],
    store: StoreAddress,
    files: Files = None,
    user: Annotated[str | None, typer.Option("--user", help="[default: as exported]")] = None,
    task: Annotated[str | None, typer.Option("--task", help="[default: as exported]")] = None,
    setting: SettingName = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The base that it belongs to. [default: as exported]")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Take in a module, after checking names, shapes, sizes and values.

    Example: `oppu modules import u17-module --store other-store`
    """
    from oppu.model.bank import check_fits
    from oppu.model.module import read_module
    from oppu.personalize import base_of
    from oppu.store import Store

    if base is None:
        refuse_given({"--quantize": quantize}, "no base is named that could be rounded", "add --base")
    module = read_module(folder)
    with quiet_libraries(), Store(store, files) as opened:
        loaded = None
        if base is not None:
            loaded = base_of(opened, base, device=device, dtype=dtype, quantize=quantize)
        if loaded is not None:
            check_fits(loaded.model, module)
        record = opened.import_module(
            folder,
            user_id=user,
            task=task,
            setting=setting,
            base_name=loaded.name if loaded is not None else None,
            base_fingerprint=loaded.fingerprint if loaded is not None else None,
            quantize=quantize,
        )
    typer.echo(f"user {record.user_id}, task {record.task}, setting {record.setting}, version {record.version}")


@modules_app.command()
def delete(
    user: UserId,
    store: StoreAddress,
    files: Files = None,
    task: Task = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a user: all modules and their versions, profiles, the history and what was made from it.

    Example: `oppu modules delete --store my-store --user u17 --yes`
    """
    with open_store(store, files) as opened:
        if not yes:
            typer.confirm(f"Delete modules, profiles and history of user {user}? There is no way back", abort=True)
        gone = opened.delete_user(user, task)
    typer.echo(
        f"deleted user {gone.user_id}: {gone.modules} modules ({gone.size_bytes:,} bytes), {gone.profiles} profiles, "
        f"{gone.history_items} history items, and the retrieval index (kept in memory only)"
    )


def _find(store: "Store", user: str, task: str | None, setting: str | None, version: int | None) -> "ModuleRecord":
    from oppu.answering import stored_module

    return stored_module(store, user, task, setting, version)
