"""The engine's events as OpenAI's answers: whole, or as a stream of server-sent events."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from pydantic import BaseModel

from oppu.serve.asking import Asked
from oppu.serve.engine import Done, Engine, Event, Failed, Piece
from oppu.serve.errors import ApiError, as_api_error, body
from oppu.serve.schema import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatMessage,
    Completion,
    CompletionChoice,
    Finish,
    ModuleInfo,
    OppuInfo,
    Usage,
)


class Answer:
    """The events of one request, in the asyncio loop that asked for them."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        """Submits the request."""
        self._engine = engine
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._ticket = engine.submit(asked.work, put)

    async def next(self) -> Piece | Done:
        """The next event; ApiError when the request failed."""
        event = await self._events.get()
        if isinstance(event, Failed):
            raise as_api_error(event.error)
        return event

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._engine.cancel(self._ticket)

    async def whole(self) -> tuple[str, Done]:
        """The whole text, and how it ended."""
        pieces: list[str] = []
        while isinstance(event := await self.next(), Piece):
            pieces.append(event.text)
        return "".join(pieces), event


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of an answer repeats."""

    id: str
    created: int
    model: str
    oppu: OppuInfo
    prompt_tokens: int

    def usage(self, done: Done) -> Usage:
        """Tokens of the request."""
        total = self.prompt_tokens + done.completion_tokens
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=done.completion_tokens, total_tokens=total)


def head(kind: str, model: str, asked: Asked) -> Head:
    """A new answer's head; `kind` begins its id: `cmpl`, `chatcmpl`."""
    record = asked.work.module
    info = None
    if record is not None:
        info = ModuleInfo(task=record.task, setting=record.setting, version=record.version)
    shown = OppuInfo(module=info, retrieved=list(asked.retrieved))
    return Head(f"{kind}-{uuid.uuid4().hex}", int(time.time()), model, shown, asked.prompt_tokens)


class TextForm:
    """The answers of /v1/completions."""

    kind = "cmpl"

    def whole(self, head: Head, text: str, done: Done) -> BaseModel:
        """The answer as one object."""
        choice = CompletionChoice(text=text, finish_reason=done.reason)
        return Completion(
            id=head.id, created=head.created, model=head.model, oppu=head.oppu, choices=[choice], usage=head.usage(done)
        )

    def first(self, head: Head) -> BaseModel | None:
        """What a stream begins with."""
        return None

    def piece(self, head: Head, text: str, reason: Finish | None) -> BaseModel:
        """One event of a stream."""
        choice = CompletionChoice(text=text, finish_reason=reason)
        return Completion(id=head.id, created=head.created, model=head.model, oppu=head.oppu, choices=[choice])

    def usage(self, head: Head, done: Done) -> BaseModel:
        """The event with the token counts."""
        return Completion(id=head.id, created=head.created, model=head.model, choices=[], usage=head.usage(done))


class ChatForm:
    """The answers of /v1/chat/completions."""

    kind = "chatcmpl"

    def whole(self, head: Head, text: str, done: Done) -> BaseModel:
        """The answer as one object."""
        choice = ChatChoice(message=ChatMessage(content=text), finish_reason=done.reason)
        return ChatCompletion(
            id=head.id, created=head.created, model=head.model, oppu=head.oppu, choices=[choice], usage=head.usage(done)
        )

    def first(self, head: Head) -> BaseModel | None:
        """What a stream begins with: the role."""
        return self._chunk(head, {"role": "assistant", "content": ""}, None)

    def piece(self, head: Head, text: str, reason: Finish | None) -> BaseModel:
        """One event of a stream."""
        return self._chunk(head, {"content": text} if text else {}, reason)

    def usage(self, head: Head, done: Done) -> BaseModel:
        """The event with the token counts."""
        return ChatChunk(id=head.id, created=head.created, model=head.model, choices=[], usage=head.usage(done))

    def _chunk(self, head: Head, delta: dict[str, str], reason: Finish | None) -> BaseModel:
        choice = ChatChunkChoice(delta=delta, finish_reason=reason)
        return ChatChunk(id=head.id, created=head.created, model=head.model, oppu=head.oppu, choices=[choice])


Form = TextForm | ChatForm


async def stream(
    answer: Answer, event: Piece | Done, form: Form, head: Head, *, with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events from the answer's first event on; the engine is told when the listener is gone."""
    try:
        if (first := form.first(head)) is not None:
            yield _sent(first)
        while isinstance(event, Piece):
            yield _sent(form.piece(head, event.text, None))
            event = await answer.next()
        yield _sent(form.piece(head, "", event.reason))
        if with_usage:
            yield _sent(form.usage(head, event))
    except ApiError as error:
        yield f"data: {json.dumps(body(error))}\n\n"
    finally:
        answer.cancel()
    yield "data: [DONE]\n\n"


def _sent(part: BaseModel) -> str:
    return f"data: {part.model_dump_json()}\n\n"
