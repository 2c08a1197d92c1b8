"""`oppu adapt` and `oppu personalize`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from oppu.cli.options import (
    BaseName,
    BatchSize,
    DataPath,
    Device,
    Dtype,
    Epochs,
    Files,
    K,
    KindName,
    Layers,
    LearningRate,
    Newest,
    Patience,
    Profiles,
    Quantize,
    Rank,
    Ranks,
    RayAddress,
    RayWorkers,
    RetrieverName,
    Seed,
    Slots,
    StoreAddress,
    Targets,
    TaskName,
    TokensPerPass,
    TrunkFolder,
    VirtualTokens,
    changed,
    changed_machine,
    changed_training,
    quiet_libraries,
    some_of,
)
from oppu.cli.progress import Meter, Tally, meter
from oppu.errors import ConfigError
from oppu.model.embedded import EMBEDDED

if TYPE_CHECKING:
    from oppu.model.engine import Progress
    from oppu.records import User
    from oppu.scale.ray import Work
    from oppu.store import Store


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(adapt)
    app.command()(personalize)


def adapt(
    task: TaskName,
    data: DataPath,
    store: StoreAddress,
    files: Files = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the new base. [default: TASK-SETTING]")] = None,
    base: BaseName = EMBEDDED,
    k: K = 0,
    retriever: RetrieverName = "bm25",
    profiles: Profiles = None,
    histories: Annotated[bool, typer.Option(help="Use the held-out users' histories as pairs, too.")] = True,
    pairs: Annotated[int | None, typer.Option("--pairs", min=1, help="Pairs, drawn at random. [default: all]")] = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    rank: Rank = None,
    seed: Seed = 0,
    tokens_per_pass: TokensPerPass = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Annotated[str | None, typer.Option("--quantize", hidden=True)] = None,  # refused in words
) -> None:
    """Adapt a base model to a task on held-out users (section 2.2), merged, with a name and a record.

    Example: `oppu adapt --task movie_tagging --data data/movies --store my-store --name movies`
    """
    from oppu.adapt import AdaptConfig, adapt_into_store
    from oppu.data import read_dataset, without_test_questions
    from oppu.describe.stored import profiles_from
    from oppu.examples import Setting
    from oppu.model.quantize import cannot_merge
    from oppu.personalize import base_of
    from oppu.recipes import recipe_for
    from oppu.store import Store
    from oppu.store.opening import shown_address
    from oppu.tasks import find_task
    from oppu.train import Machine

    if quantize is not None:
        raise cannot_merge("--quantize")
    found = find_task(task)
    dataset = read_dataset(data, found)
    users = without_test_questions(found, dataset).base_users
    profiles_of = profiles_from(profiles)
    with quiet_libraries(), Store(store, files) as opened, meter() as shown:
        given = profiles_of(opened, found, dataset.base_users)  # whole histories, of which profiles are made
        loaded = base_of(opened, base, device=device, dtype=dtype)
        train = changed_training(
            recipe_for(loaded.family, found).adapt,
            rank=rank,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
        )
        config = AdaptConfig(
            train,
            Setting(k=k, retriever=retriever, profile=profiles is not None, seed=seed),
            histories,
            pairs,
        )
        adapted = adapt_into_store(
            opened,
            loaded,
            found,
            users,
            config,
            name=name,
            profiles=given,
            machine=changed(Machine(1), tokens_per_pass=tokens_per_pass),
            on_progress=lambda done, total, tokens: shown.show("adapting the base", done, total, tokens),
        )
    typer.echo(f"base {adapted.name}, fingerprint {adapted.fingerprint[:12]}, in {shown_address(store)}")


def personalize(
    task: TaskName,
    data: DataPath,
    store: StoreAddress,
    files: Files = None,
    base: BaseName = EMBEDDED,
    k: K = 0,
    retriever: RetrieverName = "bm25",
    profiles: Profiles = None,
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="The users with the longest histories. [default: all]")
    ] = None,
    newest: Newest = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    kind: KindName = None,
    rank: Rank = None,
    ranks: Ranks = None,
    targets: Targets = None,
    virtual_tokens: VirtualTokens = None,
    layers: Layers = None,
    trunk: TrunkFolder = None,
    patience: Patience = None,
    seed: Seed = 0,
    slots: Slots = None,
    tokens_per_pass: TokensPerPass = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    ray: RayAddress = None,
    ray_workers: RayWorkers = None,
) -> None:
    """Train a module for every user, many at once, and store each as it is finished (section 3).

    An interrupted run goes on with the same command; users whose history has not changed are not trained again.

    Example: `oppu personalize --task movie_tagging --data data/movies --store my-store --base movies`
    """
    from oppu.data import read_dataset, read_ranks
    from oppu.describe.stored import profiles_from
    from oppu.examples import Setting
    from oppu.personalize import Plan, family_in, longest_histories
    from oppu.recipes import recipe_for
    from oppu.scale.ray import StorePlace, Work
    from oppu.store import Store
    from oppu.store.opening import shown_address
    from oppu.tasks import find_task

    if ray_workers is not None and ray is None:
        raise ConfigError("there are no workers without Ray", where="--ray-workers", fix="add --ray local")
    machine = changed_machine(slots, tokens_per_pass, trunk, layers)
    found = find_task(task)
    chosen = longest_histories(read_dataset(data, found).users, users)
    profiles_of = profiles_from(profiles)
    listed = read_ranks(ranks) if ranks is not None else {}
    own_ranks = {user.id: listed[user.id] for user in chosen if user.id in listed}
    with quiet_libraries(), Store(store, files) as opened, meter() as shown:
        train = changed_training(
            recipe_for(family_in(opened, base), found).personal,
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
        setting = Setting(k=k, retriever=retriever, profile=profiles is not None, seed=seed)
        if strangers := [user_id for user_id in listed if user_id not in own_ranks]:
            shown.say(f"with a rank, but not among the users: {len(strangers)} ({some_of(strangers)})")
        plan, place = Plan(found, train, setting, newest, own_ranks), StorePlace(store, files)
        given = profiles_of(opened, found, chosen)
        work = Work(place, base, plan, given, machine, device, dtype, quantize)
        tally = _personalized(opened, work, chosen, (ray, ray_workers), shown)
    tally.close(f"modules in {shown_address(store)}")


def _personalized(
    store: "Store", work: "Work", users: Sequence["User"], ray: tuple[str | None, int | None], shown: Meter
) -> Tally:
    """Everybody trained, here or on the workers of Ray (address, number), and what became of them."""
    from oppu.personalize import base_of, personalize
    from oppu.scale.cluster import Cluster
    from oppu.scale.ray import personalize_on_ray

    profiles, (address, workers) = work.profiles, ray
    if profiles is not None and (without := [user.id for user in users if user.id not in profiles]):
        shown.say(f"without a profile, and trained on prompts without one: {len(without)} users ({some_of(without)})")
    tally = Tally(shown, "training users", len(users))

    def progress(news: "Progress") -> None:
        tally.work(news.tokens)

    if address is None:
        base = base_of(store, work.base, device=work.device, dtype=work.dtype, quantize=work.quantize)
        results = personalize(store, base, work.plan, users, profiles, work.machine, progress)
    else:
        results = personalize_on_ray(work, users, Cluster(address, workers), progress, shown.say)
    for result in results:
        without_history = f"user {result.user_id} has no history and gets the base model"
        tally.add(result.status, without_history if result.status == "no history" else result.reason)
    return tally
