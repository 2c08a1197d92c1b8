"""`oppu serve`: OpenAI's API over everybody's modules."""

from typing import Annotated

import typer

from oppu.cli.options import BaseName, Device, Dtype, Files, Profiles, Quantize, StoreAddress, quiet_libraries
from oppu.model.embedded import EMBEDDED


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    store: StoreAddress,
    files: Files = None,
    base: BaseName = EMBEDDED,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="TOML file of a task of one's own; may be repeated.")
    ] = None,
    profiles: Profiles = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="OPPU_API_KEY", help="Ask every request for this key.")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Users' modules in memory at a time.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Serve the base and every user's module through OpenAI's API; the model `user:<id>` is that user's.

    SIGTERM or Ctrl-C finishes what is under way.

    Example: `oppu serve --store my-store --base movies --port 8000`
    """
    from oppu.describe.stored import profiles_from
    from oppu.errors import ConfigError
    from oppu.store.opening import shown_address
    from oppu.tasks import find_task

    try:
        from oppu.serve.app import serve as run
        from oppu.serve.engine import EngineConfig
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"the server needs {missing.name}, which is not installed", fix="run `pip install 'oppu[serve]'`"
        ) from None

    with quiet_libraries():
        run(
            store,
            base,
            files=files,
            host=host,
            port=port,
            tasks=[find_task(name) for name in task or ()],
            profiles=profiles_from(profiles),
            api_key=api_key,
            config=EngineConfig(slots=slots),
            device=device,
            dtype=dtype,
            quantize=quantize,
            on_ready=lambda url: typer.echo(f"serving {base} and the modules in {shown_address(store)} at {url}"),
        )
