"""`oppu profile`: textual profiles of the users, counted or written by a model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from oppu.cli.options import (
    DataPath,
    Device,
    Dtype,
    Files,
    Quantize,
    StoreAddress,
    TaskName,
    quiet_libraries,
    refuse_given,
)
from oppu.cli.progress import Tally, meter
from oppu.errors import ConfigError

if TYPE_CHECKING:
    from oppu.describe.writer import Writer
    from oppu.store import Store
    from oppu.tasks import Task

By = Annotated[
    str | None,
    typer.Option("--by", help="count or model. [default: count where the task says what to count, else model]"),
]
Writes = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="The instruction-tuned model that writes them: a name in the store, the embedded one, a folder, or a "
        "name on the hub. [default: the embedded one]",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="A server with OpenAI's protocol writes them, for example http://HOST:8000/v1. Histories are sent "
        "there. Its key is read from OPENAI_API_KEY.",
    ),
]
ModelThere = Annotated[str | None, typer.Option("--model", help="With --url: the model's name there.")]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, help="Profiles that a model writes along a history, each for later items. [default: 4]"
    ),
]
Newest = Annotated[
    int | None,
    typer.Option("--newest", min=1, help="A model's profile tells of the newest so many items. [default: all]"),
]
Tokens = Annotated[
    int | None, typer.Option("--tokens", min=8, help="Length limit of a model's profile. [default: 160]")
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", min=64, help="Tokens of a request with its answer. [default: the base's; with --url 8192]"
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(profile)


def profile(
    task: TaskName,
    data: DataPath,
    store: StoreAddress,
    files: Files = None,
    by: By = None,
    base: Writes = None,
    url: Url = None,
    model: ModelThere = None,
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="The users with the longest histories. [default: all]")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Of the held-out users as well, for `oppu adapt --profiles store`.")
    ] = False,
    steps: Steps = None,
    newest: Newest = None,
    tokens: Tokens = None,
    context: Context = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Make each user's textual profile and keep it in the store, for `--profiles store` (section 2.2, appendix J).

    An interrupted run goes on with the same command; profiles whose items have not changed are not made again.

    Example: `oppu profile --task movie_tagging --data data/movies --store my-store`
    """
    from oppu.data import read_dataset
    from oppu.describe.users import COUNT, describe
    from oppu.personalize import longest_histories
    from oppu.profiles.timeline import WHOLE, Along
    from oppu.store import Store
    from oppu.store.opening import shown_address
    from oppu.tasks import find_task

    found = find_task(task)
    counting = _is_counted(found, by, base, url, model)
    if counting:
        written: dict[str, object] = {"--steps": steps, "--newest": newest, "--tokens": tokens, "--context": context}
        written["--quantize"] = quantize
        refuse_given(written, "profiles are counted, not written by a model", "add --by model")
    if url is not None:
        refuse_given({"--quantize": quantize}, "a server writes the profiles", "leave out --url")
    dataset = read_dataset(data, found)
    chosen = [*longest_histories(dataset.users, users), *(dataset.base_users if held_out else ())]
    with (
        quiet_libraries(),
        Store(store, files) as opened,
        _writer(opened, counting, base, url, model, tokens, context, (device, dtype, quantize)) as writer,
        meter() as shown,
    ):
        tally = Tally(shown, "profiles", len(chosen))
        for result in describe(opened, found, chosen, writer, Along(steps or WHOLE.steps, newest)):
            tally.add(result.status, result.reason)
        made = COUNT if writer is None else writer.made
    tally.close(f"profiles by {made} in {shown_address(store)}")


def _is_counted(task: "Task", by: str | None, base: str | None, url: str | None, model: str | None) -> bool:
    """Whether profiles are counted; ConfigError for options that do not go together, and tasks that have no such."""
    from oppu.describe.default import is_counted
    from oppu.profiles.count import check_countable
    from oppu.profiles.request import check_askable

    if by not in (None, "count", "model"):
        raise ConfigError(f"'{by}' is no way to make a profile", where="--by", fix="use count or model")
    named = next((name for name, given in (("--base", base), ("--url", url), ("--model", model)) if given), None)
    if by == "count" and named is not None:
        raise ConfigError("counting needs no model", where=named, fix=f"leave out {named}, or use --by model")
    if url is not None and base is not None:
        raise ConfigError("one model writes the profiles, not two", where="--url", fix="leave out --url or --base")
    if (url is None) != (model is None):
        alone = "--model" if url is None else "--url"
        raise ConfigError("--url and --model belong together", where=alone, fix="give both")
    counted = by == "count" or (by is None and named is None and is_counted(task))
    if counted:
        check_countable(task)
    else:
        check_askable(task)
    return counted


@contextmanager
def _writer(
    store: "Store",
    counting: bool,
    base: str | None,
    url: str | None,
    model: str | None,
    tokens: int | None,
    context: int | None,
    placement: tuple[str, str, str | None],
) -> Iterator["Writer | None"]:
    """The model that writes, loaded or connected to; None: profiles are counted."""
    from oppu.describe.writer import ANSWER_TOKENS

    limit = ANSWER_TOKENS if tokens is None else tokens
    if counting:
        yield None
    elif url is not None and model is not None:
        from oppu.describe.remote import RemoteWriter

        key = os.environ.get("OPENAI_API_KEY")
        with RemoteWriter(url, model, key, answer_tokens=limit, context=context) as remote:
            yield remote
    else:
        from oppu.describe.local import LocalWriter
        from oppu.model.embedded import EMBEDDED
        from oppu.personalize import base_of

        device, dtype, quantize = placement
        loaded = base_of(store, base or EMBEDDED, device=device, dtype=dtype, quantize=quantize)
        yield LocalWriter(loaded, limit, context)
