"""`oppu experiment`: several methods on the same users, one table."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oppu.cli.options import (
    BaseName,
    BatchSize,
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
    RetrieverName,
    Seed,
    Slots,
    Targets,
    TokensPerPass,
    TrunkFolder,
    VirtualTokens,
    changed,
    changed_machine,
    changed_training,
    open_store,
    quiet_libraries,
    refuse_given,
)
from oppu.cli.progress import Meter, meter
from oppu.cli.report import say
from oppu.cli.terminal import console
from oppu.model.embedded import EMBEDDED

if TYPE_CHECKING:
    from oppu.evaluate.experiment import Stage
    from oppu.evaluate.grid import Planned
    from oppu.records import Dataset, User, UserProfile
    from oppu.tasks import Task


TaskNames = Annotated[
    str,
    typer.Option(
        "--task",
        help="A task's name (`oppu tasks`), its LaMP id, or a TOML file of one's own; several with commas, or all.",
    ),
]
DataFolder = Annotated[
    Path,
    typer.Option("--data", help="Folder or file with the users' histories; with several tasks a folder for each."),
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for tables, predictions, report, bases and modules.")]
Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        help="Some of base, random, rag, oppu, oppu+rag, separated by commas; with --profiles also pag, pag+rag, "
        "oppu+pag, oppu+pag+rag. `all`: the thirteen columns of Table 1; profiles are made where none are given.",
    ),
]
Numbers = Annotated[
    str | None,
    typer.Option("--k", help="Numbers of retrieved items, separated by commas. [default: 1; with all Table 1's]"),
]
UsersAsked = Annotated[
    int | None,
    typer.Option("--users", min=1, help="Of those asked, the users with the longest histories. [default: all]"),
]
Develop = Annotated[
    int | None,
    typer.Option(
        "--develop",
        min=1,
        help="To choose settings: ask so many held-out users, adapt on the others, and leave the test users alone.",
    ),
]
ProfileStore = Annotated[
    str | None, typer.Option("--store", help="Where `oppu profile` put the profiles, for --profiles store.")
]
ProfileSteps = Annotated[
    int | None,
    typer.Option(
        "--profile-steps",
        min=1,
        help="Of profiles that a model writes for `all`: so many along a history. [default: 4]",
    ),
]
ProfileNewest = Annotated[
    int | None,
    typer.Option("--profile-newest", min=1, help="Of the same: each tells of the newest so many items."),
]
ProfileTokens = Annotated[
    int | None, typer.Option("--profile-tokens", min=8, help="Of the same: their length limit. [default: 160]")
]
Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="A,B,...", help="In place of --seed: a run for each of several.")
]
BaseData = Annotated[
    Path | None, typer.Option("--base-data", help="Data whose held-out users adapt the base. [default: --data]")
]
Adapts = Annotated[bool, typer.Option(help="Adapt the base to the task first (section 2.2).")]
AdaptHistories = Annotated[bool, typer.Option(help="Use held-out users' histories as pairs, too.")]
AdaptPairs = Annotated[
    int | None, typer.Option("--adapt-pairs", min=1, help="Pairs to adapt on, drawn at random. [default: all]")
]
AdaptK = Annotated[
    int | None,
    typer.Option(
        "--adapt-k",
        min=1,
        help="One retrieval base and one profile base for all k, adapted with so many retrieved items. [default: a "
        "base for each k]",
    ),
]
AdaptEpochs = Annotated[int | None, typer.Option("--adapt-epochs", min=1, help="[default: the base's]")]
Bases = Annotated[
    Path | None,
    typer.Option(
        "--bases",
        help="Folder of another run or a study, or a store: bases that it adapted on the same are taken over.",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew; remove what an earlier run left.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(experiment)


def experiment(
    task: TaskNames,
    data: DataFolder,
    out: OutFolder,
    methods: Methods = "base,random,rag,oppu,oppu+rag",
    k: Numbers = None,
    retriever: RetrieverName = "bm25",
    users: UsersAsked = None,
    develop: Develop = None,
    profiles: Profiles = None,
    store: ProfileStore = None,
    files: Files = None,
    profile_steps: ProfileSteps = None,
    profile_newest: ProfileNewest = None,
    profile_tokens: ProfileTokens = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    base: BaseName = EMBEDDED,
    base_data: BaseData = None,
    adapt: Adapts = True,
    adapt_histories: AdaptHistories = True,
    adapt_pairs: AdaptPairs = None,
    adapt_k: AdaptK = None,
    adapt_epochs: AdaptEpochs = None,
    bases: Bases = None,
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
    fresh: Fresh = False,
) -> None:
    """Compare methods on the same users and write table, predictions and report to one folder.

    Running the same command again goes on where it was interrupted. With several tasks or seeds each run has its
    folder, OUT/TASK/seed-N, and OUT gets the joint report (`oppu report`).

    Example: `oppu experiment --task news_categorize --data data/news --users 20 --k 1 --out runs/out/news`

    Example: `oppu experiment --task all --data data --methods all --seeds 0,1,2 --out runs/out/all`
    """
    from oppu.describe.default import is_counted
    from oppu.describe.stored import is_stored
    from oppu.describe.writer import ANSWER_TOKENS
    from oppu.errors import ConfigError
    from oppu.evaluate.design import ALL, Experiment
    from oppu.evaluate.experiment import check, run
    from oppu.evaluate.grid import plan_runs
    from oppu.evaluate.reports.joint import write_joint_report
    from oppu.evaluate.reports.summary import summary_table
    from oppu.model.base import family_of
    from oppu.profiles.timeline import WHOLE, Along
    from oppu.recipes import recipe_for

    is_table_1 = methods == ALL
    if not adapt:
        of_bases = {
            "--adapt-k": adapt_k,
            "--adapt-pairs": adapt_pairs,
            "--adapt-epochs": adapt_epochs,
            "--base-data": base_data,
            "--bases": bases,
        }
        refuse_given(of_bases, "no base is adapted", "leave out --no-adapt")
    machine = changed_machine(slots, tokens_per_pass, trunk, layers)
    if profiles is None or not is_stored(profiles):
        refuse_given(
            {"--store": store, "--files": files}, "only profiles are read from a store", "add --profiles store"
        )
    numbers = _numbers(k, is_table_1)
    planned = plan_runs(task, _seeds(seed, seeds), data, base_data, out)
    if profiles is not None and not is_stored(profiles) and len({each.task.name for each in planned}) > 1:
        raise ConfigError("a file holds the profiles of one task", where="--profiles", fix="use --profiles store")
    profiles_of = partial(_profiles, profiles, store, files)
    # all before the first training, so that no mistake costs hours
    own_profiles = is_table_1 and profiles is None
    if not own_profiles or all(is_counted(each.task) for each in planned):
        of_profiles = {
            "--profile-steps": profile_steps,
            "--profile-newest": profile_newest,
            "--profile-tokens": profile_tokens,
        }
        refuse_given(of_profiles, "no model writes profiles in this run", "see `oppu profile`")
    along = Along(profile_steps or WHOLE.steps, profile_newest)
    inputs = _inputs(planned, develop, profiles_of, own_profiles=own_profiles)
    runs = []
    for each in planned:
        recipe = recipe_for(family_of(base), each.task)
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
            seed=each.seed,
        )
        wanted = Experiment(
            task=each.task,
            methods=tuple(methods.split(",")),
            k=numbers,
            base=base,
            adapt=changed(recipe.adapt, epochs=adapt_epochs, seed=each.seed) if adapt else None,
            personal=personal,
            users=users,
            newest=newest,
            pairs=adapt_pairs,
            histories=adapt_histories,
            seed=each.seed,
            dtype=dtype,
            quantize=quantize,
            adapt_k=adapt_k,
            retriever=retriever,
            own_profiles=along,
            profile_tokens=profile_tokens or ANSWER_TOKENS,
        )
        runs.append((each, wanted, *inputs[each.task.name]))
    for each, wanted, dataset, given in runs:
        with quiet_libraries():
            check(wanted, dataset, each.out, profiles=given, fresh=fresh, device=device, bases=bases)
    for each, wanted, dataset, given in runs:
        if len(planned) > 1:
            typer.echo(f"{each.task.name}, seed {each.seed}")
        with quiet_libraries(), meter() as shown:
            cells = run(
                wanted,
                dataset,
                each.out,
                profiles=given,
                fresh=fresh,
                command=shlex.join(["oppu", *sys.argv[1:]]),
                machine=machine,
                device=device,
                bases=bases,
                on_stage=partial(_show, shown),
            )
        console().print(summary_table(each.task, cells))
        typer.echo(f"report: {each.out / 'report.html'}")
    if len(planned) > 1:
        command = shlex.join(["oppu", *sys.argv[1:]])
        say(write_joint_report([each.out for each in planned], out, command=command))


def _inputs(
    planned: "Sequence[Planned]",
    develop: int | None,
    profiles_of: "Callable[[Task, Sequence[User]], Mapping[str, UserProfile] | None]",
    own_profiles: bool,
) -> "dict[str, tuple[Dataset, Mapping[str, UserProfile] | None]]":
    """Data and given profiles of each task, by its name. `own_profiles`: the runs make them, which is said here."""
    from oppu.data import development_set, read_dataset, without_test_questions
    from oppu.describe.default import default_way

    found = {}
    tasks = {each.task.name: each for each in planned}
    for name, each in tasks.items():
        dataset = read_dataset(each.data, each.task, each.base_data)
        taking_part = dataset.base_users if develop is not None else (*dataset.users, *dataset.base_users)
        given = profiles_of(each.task, taking_part)  # whole histories, of which profiles are made
        if develop is not None:
            dataset = development_set(without_test_questions(each.task, dataset), develop)
        found[name] = dataset, given
        if own_profiles:
            typer.echo(f"{name}: no profiles are given; they are made as by `oppu profile`: {default_way(each.task)}")
    return found


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


def _show(shown: Meter, stage: "Stage") -> None:
    shown.show(stage.name, stage.done, stage.total, stage.tokens)


def _seeds(seed: int, seeds: str | None) -> list[int]:
    """Those of --seeds, or the one of --seed."""
    from oppu.errors import ConfigError

    if seeds is None:
        return [seed]
    if seed:
        raise ConfigError("--seed and --seeds are given", where="--seeds", fix="use one of them")
    if not all(text.strip().isdecimal() for text in seeds.split(",")):
        raise ConfigError(f"'{seeds}' is no list of seeds", where="--seeds", fix="use for example --seeds 0,1,2")
    return [int(text) for text in seeds.split(",")]


def _numbers(k: str | None, is_table_1: bool) -> tuple[int, ...]:
    """Those of --k; with the columns of Table 1 none."""
    from oppu.errors import ConfigError

    if is_table_1:
        if k is not None:
            fix = "leave out --k"
            raise ConfigError("the columns of Table 1 have their own numbers of items", where="--k", fix=fix)
        return ()
    listed = ("1" if k is None else k).split(",")
    if wrong := [text for text in listed if not text.strip().isdigit()]:
        fix = "use for example --k 1 or --k 1,2,4"
        raise ConfigError(f"'{wrong[0]}' is no number of items", where="--k", fix=fix)
    return tuple(map(int, listed))
