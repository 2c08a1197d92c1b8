"""The HTTP side: routes in OpenAI's protocol over the engine, and the process that serves them.

/v1/models  /v1/models/{id}  /v1/completions  /v1/chat/completions  /health
"""

import asyncio
import errno
import hmac
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from oppu import __version__
from oppu.describe.stored import ProfilesOf
from oppu.errors import ConfigError, OppuError
from oppu.model.devices import AUTO
from oppu.personalize import base_of
from oppu.serve.answers import Answer, ChatForm, Form, TextForm, head, stream
from oppu.serve.asking import Asked, Asker
from oppu.serve.engine import Engine, EngineConfig
from oppu.serve.errors import ApiError, as_api_error, body, invalid_request
from oppu.serve.schema import ChatRequest, CompletionRequest, ModelCard, ModelList
from oppu.store import Store
from oppu.tasks import BUILT_IN, Task

FORGET_S = 60.0
"""How long histories and modules of deleted users may stay in the server's memory."""
_CLIENT_IS_GONE = 499  # nobody reads it
_LOG = logging.getLogger("oppu.serve")

T = TypeVar("T")


def create_app(engine: Engine, asker: Asker, *, api_key: str | None = None) -> FastAPI:
    """The application; the engine is closed when it ends. `api_key`: what clients must send as bearer token."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        forgetting = asyncio.create_task(_forget_deleted(engine, asker))
        yield
        forgetting.cancel()
        await run_in_threadpool(engine.close)

    async def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    app = FastAPI(title="oppu", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    started = int(time.time())
    _answer_errors(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": asker.base.name,
            "waiting": engine.waiting,
            "active": engine.active,
            **asdict(engine.statistics),
        }

    @app.get("/v1/models", dependencies=[Depends(check_key)])
    def models() -> ModelList:
        return ModelList(data=[ModelCard(id=name, created=started) for name in asker.models()])

    @app.get("/v1/models/{model:path}", dependencies=[Depends(check_key)])
    def model(model: str) -> ModelCard:
        asker.check_model(model)
        return ModelCard(id=model, created=started)

    @app.post("/v1/completions", dependencies=[Depends(check_key)])
    async def completions(wanted: CompletionRequest, request: Request) -> Response:
        asked = await run_in_threadpool(asker.completion, wanted)
        return await _respond(engine, asked, wanted, request, TextForm())

    @app.post("/v1/chat/completions", dependencies=[Depends(check_key)])
    async def chat(wanted: ChatRequest, request: Request) -> Response:
        asked = await run_in_threadpool(asker.chat, wanted)
        return await _respond(engine, asked, wanted, request, ChatForm())

    return app


async def _forget_deleted(engine: Engine, asker: Asker) -> None:
    """Every minute, for as long as the server runs."""

    def forget() -> None:
        asker.forget_deleted()
        engine.forget(asker.deleted(engine.modules))

    while True:
        await asyncio.sleep(FORGET_S)
        try:
            await run_in_threadpool(forget)
        except OppuError as error:
            _LOG.warning("who has been deleted cannot be told; it is tried again (%s)", error.line())


async def _respond(
    engine: Engine, asked: Asked, wanted: CompletionRequest | ChatRequest, request: Request, form: Form
) -> Response:
    answer = Answer(engine, asked)
    begun = head(form.kind, wanted.model, asked)
    record = asked.work.module
    name = "none" if record is None else quote(f"{record.task}/{record.setting}/v{record.version}")
    headers = {"x-oppu-module": name}
    if wanted.stream:
        event = await _unless_gone(answer, request, answer.next())  # a failure still has a status of its own
        if event is None:
            return Response(status_code=_CLIENT_IS_GONE)
        with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        events = stream(answer, event, form, begun, with_usage=with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    whole = await _unless_gone(answer, request, answer.whole())
    if whole is None:
        return Response(status_code=_CLIENT_IS_GONE)
    return JSONResponse(form.whole(begun, *whole).model_dump(mode="json"), headers=headers)


async def _unless_gone(answer: Answer, request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None, and the answer is cancelled, when the client goes away before."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if working.done():
        return working.result()
    working.cancel()
    answer.cancel()
    return None


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer_errors(app: FastAPI) -> None:
    """All errors in OpenAI's shape."""

    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(body(error), status_code=error.status)

    @app.exception_handler(OppuError)
    async def oppu_error(_: Request, error: OppuError) -> JSONResponse:
        return answer(as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(invalid_request(error.errors()))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return answer(ApiError(500, "the server failed; its log says why"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any free one. ConfigError in one line when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise _cannot_listen(host, port, error) from None
    return listening


def _cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} is in use", where=host, fix="give another with --port, or end the program that listens there"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigError(f"cannot listen on port {port}: {reason}", where=host, fix="give another --host or --port")


def serve(
    store: Path | str,
    base: str,
    *,
    files: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    tasks: Iterable[Task] = (),
    profiles: ProfilesOf | None = None,
    api_key: str | None = None,
    config: EngineConfig | None = None,
    device: str = AUTO,
    dtype: str = AUTO,
    quantize: str | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way and return. Main thread only.

    `store` and `files`: as Store takes them. `base`, `device`, `dtype`, `quantize`: as `base_of` takes them. `tasks`:
    one's own, beside the built-in ones. `on_ready(url)` is called before the first answer. The port is taken before the
    base is loaded.
    """
    with listen(host, port) as listening, Store(store, files, read_only=True) as opened:
        loaded = base_of(opened, base, device=device, dtype=dtype, quantize=quantize)
        asker = Asker(opened, loaded, [*BUILT_IN.values(), *tasks], profiles)
        engine = Engine(loaded, opened.load_module, config)
        server = uvicorn.Server(uvicorn.Config(create_app(engine, asker, api_key=api_key), log_level="warning"))
        name = f"[{host}]" if ":" in host else host
        on_ready(f"http://{name}:{listening.getsockname()[1]}/v1")
        with _signals_end_quietly():
            server.run(sockets=[listening])


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn ends in good order on SIGTERM and SIGINT, and then raises them again, which must not kill the process."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
