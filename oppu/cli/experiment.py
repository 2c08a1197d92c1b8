"""`oppu experiment`: several methods on the same users, one table."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from oppu.cli.options import (
    BaseName,
    BatchSize,
    DataPath,
    Device,
    Dtype,
    Epochs,
    Files,
    KindName,
    Layers,
    LearningRate,
    Newest,
    Patience,
    Profiles,
    Quantize,
    Rank,
    Seed,
    Slots,
    Targets,
    TaskName,
    TokensPerPass,
    TrunkFolder,
    VirtualTokens,
    changed,
    changed_training,
    open_store,
    quiet_libraries,
)
from oppu.cli.progress import meter
from oppu.model.embedded import EMBEDDED

if TYPE_CHECKING:
    from oppu.records import User, UserProfile
    from oppu.tasks import Task


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(experiment)


def experiment(
    task: TaskName,
    data: DataPath,
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, predictions, report, bases and modules.")],
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Some of base, random, rag, oppu, oppu+rag, separated by commas; with --profiles also pag, pag+rag, "
            "oppu+pag, oppu+pag+rag.",
        ),
    ] = "base,random,rag,oppu,oppu+rag",
    k: Annotated[str, typer.Option("--k", help="Numbers of retrieved items, separated by commas.")] = "1",
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="The users with the longest histories. [default: all]")
    ] = None,
    develop: Annotated[
        int | None,
        typer.Option(
            "--develop",
            min=1,
            help="To choose settings: ask so many held-out users, adapt on the others, and leave the test users alone.",
        ),
    ] = None,
    profiles: Profiles = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Where `oppu profile` put the profiles, for --profiles store.")
    ] = None,
    files: Files = None,
    seed: Seed = 0,
    base: BaseName = EMBEDDED,
    base_data: Annotated[
        Path | None, typer.Option("--base-data", help="Data whose held-out users adapt the base. [default: --data]")
    ] = None,
    adapt: Annotated[bool, typer.Option(help="Adapt the base to the task first (section 2.2).")] = True,
    adapt_histories: Annotated[bool, typer.Option(help="Use held-out users' histories as pairs, too.")] = True,
    adapt_pairs: Annotated[
        int | None, typer.Option("--adapt-pairs", min=1, help="Pairs to adapt on, drawn at random. [default: all]")
    ] = None,
    adapt_epochs: Annotated[int | None, typer.Option("--adapt-epochs", min=1, help="[default: the base's]")] = None,
    newest: Newest = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    kind: KindName = None,
    rank: Rank = None,
    targets: Targets = None,
    virtual_tokens: VirtualTokens = None,
    layers: Layers = None,
    trunk: TrunkFolder = None,
    patience: Patience = None,
    slots: Slots = None,
    tokens_per_pass: TokensPerPass = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; remove what an earlier run left.")] = False,
) -> None:
    """Compare methods on the same users and write table, predictions and report to one folder.

    Running the same command again goes on where it was interrupted.

    Example: `oppu experiment --task news_categorize --data data/news --users 20 --k 1 --out runs/out/news`
    """
    from oppu.data import development_set, read_dataset
    from oppu.evaluate.experiment import Experiment, run
    from oppu.evaluate.summary import summary_table
    from oppu.model.base import family_of
    from oppu.recipes import recipe_for
    from oppu.records import Dataset
    from oppu.tasks import find_task
    from oppu.train import Machine

    found = find_task(task)
    dataset = read_dataset(data, found)
    if base_data is not None:
        dataset = Dataset(dataset.users, read_dataset(base_data, found).base_users)
    if develop is not None:
        dataset = development_set(dataset, develop)
    given = _profiles(profiles, store, files, found, [*dataset.users, *dataset.base_users])
    recipe = recipe_for(family_of(base), found)
    personal = changed_training(
        recipe.personal,
        kind=kind,
        rank=rank,
        targets=targets,
        virtual_tokens=virtual_tokens,
        layers=layers,
        patience=patience,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
    )
    wanted = Experiment(
        task=found,
        methods=tuple(methods.split(",")),
        k=tuple(_number(text) for text in k.split(",")),
        base=base,
        adapt=changed(recipe.adapt, epochs=adapt_epochs, seed=seed) if adapt else None,
        personal=personal,
        users=users,
        newest=newest,
        pairs=adapt_pairs,
        histories=adapt_histories,
        seed=seed,
        dtype=dtype,
        quantize=quantize,
    )
    with quiet_libraries(), meter() as shown:
        cells = run(
            wanted,
            dataset,
            out,
            profiles=given,
            fresh=fresh,
            command=shlex.join(["oppu", *sys.argv[1:]]),
            machine=changed(Machine(), slots=slots, tokens_per_pass=tokens_per_pass, trunk_folder=trunk),
            device=device,
            on_stage=lambda stage: shown.show(stage.name, stage.done, stage.total, stage.tokens),
        )
    Console().print(summary_table(found, cells))
    typer.echo(f"report: {out / 'report.html'}")


def _profiles(
    source: str | None, store: str | None, files: str | None, task: "Task", users: "Sequence[User]"
) -> "Mapping[str, UserProfile] | None":
    """What --profiles stands for. A run has a store of its own, so that with the profiles is named apart."""
    from oppu.describe.stored import is_stored, profiles_from
    from oppu.errors import ConfigError
    from oppu.profiles import read_profiles

    if source is None:
        return None
    if not is_stored(source):
        return read_profiles(Path(source))
    if store is None:
        raise ConfigError("no store is named", where="--profiles", fix="add --store, as it was for `oppu profile`")
    with open_store(store, files) as opened:
        return profiles_from(source)(opened, task, users)


def _number(text: str) -> int:
    from oppu.errors import ConfigError

    if not text.strip().isdigit():
        raise ConfigError(f"'{text}' is no number of items", where="--k", fix="use for example --k 1 or --k 1,2,4")
    return int(text)
