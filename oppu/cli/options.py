"""Options that several commands share, and what they stand for."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from oppu.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from oppu.store import Store
    from oppu.train import Machine, TrainConfig

TaskName = Annotated[
    str, typer.Option("--task", help="A task's name (`oppu tasks`), its LaMP id, or a TOML file of one's own.")
]
DataPath = Annotated[Path, typer.Option("--data", help="Folder or file with the users' histories.")]
BaseName = Annotated[
    str,
    typer.Option("--base", help="Base model: a name in the store, the embedded one, a folder, or a name on the hub."),
]
StoreAddress = Annotated[
    str,
    typer.Option(
        "--store",
        help="Folder of the store, or postgresql://USER@HOST/DATABASE for more than one machine.",
        envvar="OPPU_STORE",
    ),
]
Files = Annotated[
    str | None,
    typer.Option(
        "--files",
        help="With a database: where module files lie, s3://BUCKET/PREFIX or file:///FOLDER.",
        envvar="OPPU_FILES",
    ),
]
UserId = Annotated[str, typer.Option("--user", help="A user's id.")]
K = Annotated[int, typer.Option("--k", min=0, help="Number of retrieved history items in the prompt.")]
RetrieverName = Annotated[str, typer.Option("--retriever", help="bm25, random, recent, or one of your own.")]
Profiles = Annotated[
    str | None,
    typer.Option(
        "--profiles",
        help="Textual profiles in the prompts (phi_p): `store` for those of `oppu profile` (`store:MADE` where they "
        "were made in several ways), or a file, JSON {user: profile} or JSONL.",
    ),
]
Newest = Annotated[
    int | None, typer.Option("--newest", min=1, help="Train on the newest so many items of a history. [default: all]")
]
Slots = Annotated[
    int | None,
    typer.Option("--slots", min=1, help="Users at a time; changes no result. [default: from the memory]"),
]
TokensPerPass = Annotated[
    int | None,
    typer.Option("--tokens-per-pass", min=64, help="Tokens under way at a time. [default: from the memory]"),
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over a history. [default: the base's]")]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", min=0.0, help="Highest learning rate. [default: the base's]")
]
Patience = Annotated[
    int | None,
    typer.Option("--patience", min=1, help="Early stop: epochs without gain on a user's newest tenth. [default: none]"),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Examples per optimizer step. [default: the base's]")
]
Rank = Annotated[
    int | None, typer.Option("--rank", min=1, help="Rank of the modules (lora, lora-xs). [default: the base's]")
]
Ranks = Annotated[
    Path | None,
    typer.Option("--ranks", help="A .csv or .jsonl file with 'user' and 'rank', for users with ranks of their own."),
]
KindName = Annotated[
    str | None, typer.Option("--kind", help="Kind of module: lora, lora-xs, ia3 or prompt. [default: lora]")
]
Targets = Annotated[
    str | None,
    typer.Option(
        "--targets", help="Endings of the names of the layers to adapt, separated by commas (all but prompt)."
    ),
]
Layers = Annotated[
    str | None,
    typer.Option("--layers", help="top:N: modules on the top N layers alone; what is below is computed once."),
]
TrunkFolder = Annotated[
    Path | None,
    typer.Option("--trunk", help="Keep what is below --layers here for later runs: it is made of users' texts."),
]
VirtualTokens = Annotated[
    int | None, typer.Option("--virtual-tokens", min=1, help="Length of the soft prompt (prompt). [default: 20]")
]
Device = Annotated[
    str, typer.Option("--device", help="Where the base lies: auto (CUDA where there is one), cpu, cuda, cuda:1 or mps.")
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="Precision of the base: auto (bfloat16 on CUDA), float32, bfloat16 or float16."),
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", help="Round the base's weights as they are loaded: 8bit or 4bit. [default: not]"),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Deal the users out over Ray workers: local (on this machine), auto (on the cluster that it has joined), "
        "or HOST:PORT of the cluster's head.",
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        "--ray-workers",
        min=1,
        help="Number of Ray workers, each with a base of its own. [default: one for each GPU, else for every 8 cores]",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]

T = TypeVar("T")


def changed(config: T, **changes: Any) -> T:
    """The config with those fields that are not None."""
    return dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[type-var]


def changed_training(
    config: "TrainConfig",
    *,
    kind: str | None = None,
    rank: int | None = None,
    targets: str | None = None,
    virtual_tokens: int | None = None,
    layers: str | None = None,
    **changes: Any,
) -> "TrainConfig":
    """The settings with what the options say; a rank brings its alpha, so that the update's scale stays 1.

    ConfigError for an option that the kind of module does not have.
    """
    from oppu.model.kinds import default_config

    module = config.module if kind in (None, config.module.kind) else default_config(str(kind))
    endings = tuple(targets.split(",")) if targets is not None else None
    wanted = {"rank": rank, "alpha": rank, "targets": endings, "virtual_tokens": virtual_tokens}
    given = {name: value for name, value in wanted.items() if value is not None}
    for name in given:
        if name not in {field.name for field in dataclasses.fields(module)}:
            raise ConfigError(f"a module of kind '{module.kind}' has no {name}", where="--" + name.replace("_", "-"))
    return changed(config, module=changed(module, **given), top_layers=_top_layers(layers), **changes)


def changed_machine(
    slots: int | None, tokens_per_pass: int | None, trunk: Path | None, layers: str | None
) -> "Machine":
    """The usual bounds with what the options say; ConfigError for a trunk below modules on all layers."""
    from oppu.train import Machine

    if layers is None:
        refuse_given({"--trunk": trunk}, "modules on all layers have no layers below them", "add --layers top:N")
    return changed(Machine(), slots=slots, tokens_per_pass=tokens_per_pass, trunk_folder=trunk)


def _top_layers(layers: str | None) -> int | None:
    """The number in `top:N`; ConfigError for anything else."""
    if layers is None:
        return None
    word, _, count = layers.partition(":")
    if word != "top" or not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"'{layers}' is not understood", where="--layers", fix="use for example top:10")
    return int(count)


def refuse_given(options: Mapping[str, object], why: str, fix: str) -> None:
    """ConfigError for the first of the options, by name, that was given although it has no effect here."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ConfigError(why, where=given, fix=f"leave out {given}, or {fix}")


def some_of(names: Sequence[str]) -> str:
    """The first three of the names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def open_store(address: str, files: str | None = None) -> "Store":
    """The store at an address. A folder must be one: a mistyped path makes no new store."""
    from oppu.store import Store
    from oppu.store.opening import is_folder

    if is_folder(address) and not Path(address).is_dir():
        raise StoreError("there is no store", where=address, fix="`oppu personalize` makes one")
    return Store(address, files)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and chatter of the libraries underneath."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
