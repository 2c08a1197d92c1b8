"""The engine: one thread that answers the requests of all users together.

Between two decoding steps waiting requests join and finished ones leave; questions with allowed answers are scored
together as they come. A request is given with a function that is called, from the engine's thread, with each Event.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from oppu.errors import ModelError, OppuError
from oppu.model.base import Base
from oppu.model.decode import Decoder, Prompt
from oppu.model.module import Module
from oppu.model.tokens import encode_answers
from oppu.predict import Question, score_labels
from oppu.records import Example
from oppu.serve.errors import ApiError
from oppu.serve.sampling import GREEDY, Sampling, next_tokens
from oppu.serve.schema import Finish
from oppu.serve.slots import Slots
from oppu.serve.text import TextStream
from oppu.store import ModuleRecord
from oppu.tasks import Task

_LOG = logging.getLogger("oppu.serve")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How much the engine does at a time."""

    batch_size: int = 16
    """Sequences that decode together, and questions scored together."""
    slots: int = 32
    """Modules kept in memory."""
    tokens_per_pass: int = 2048
    """Prompt tokens in one forward."""
    cache_tokens: int = 65536
    """Room for keys and values: sequences that decode together times the longest of them; one sequence always fits."""
    max_waiting: int = 256
    """Requests that may wait; more are refused."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Text to be written after a prompt."""

    module: ModuleRecord | None
    """None: the plain base."""
    tokens: tuple[int, ...]
    limit: int
    """The most tokens to write."""
    sampling: Sampling = GREEDY
    stops: tuple[str, ...] = ()
    strip: bool = False
    """Drop white space around the answer."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with allowed answers."""

    module: ModuleRecord | None
    task: Task
    example: Example
    max_tokens: int
    """Of prompt and answer; a longer prompt is cut as in training."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of an answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer."""

    reason: Finish
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that could not be answered."""

    error: OppuError


Event = Piece | Done | Failed
OnEvent = Callable[[Event], None]


@dataclass(slots=True)
class Statistics:
    """What the engine did since it began."""

    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    steps: int = 0
    tokens: int = 0
    """Written in decoding."""
    max_active: int = 0
    """The most sequences that decoded together."""
    max_scored: int = 0
    """The most questions that were scored together."""


@dataclass(slots=True)
class _Request:
    work: Generation | Choice
    on_event: OnEvent
    slot: int = -1


@dataclass(slots=True)
class _Writing:
    """An active sequence."""

    request: _Request
    work: Generation
    text: TextStream
    generator: torch.Generator
    written: list[int] = field(default_factory=list)


_Queue = dict[int, _Request]  # by ticket, in the order of arrival


class Engine:
    """Answers requests until it is closed."""

    def __init__(self, base: Base, load: Callable[[ModuleRecord], Module], config: EngineConfig | None = None) -> None:
        """`load` reads and checks a module, such as `Store.load_module`."""
        self.config = config or EngineConfig()
        self.statistics = Statistics()
        self._base = base
        self._ends = _end_tokens(base)
        self._slots = Slots(base, load, self.config.slots)
        self._decoder = Decoder(base.model)
        self._writing: dict[int, _Writing] = {}
        self._tickets = itertools.count()
        self._changed = threading.Condition()  # guards the five below
        self._generations: _Queue = {}
        self._choices: _Queue = {}
        self._gone: set[int] = set()
        self._deleted: list[ModuleRecord] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="oppu-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._generations) + len(self._choices)

    @property
    def active(self) -> int:
        """Sequences that are being written."""
        return len(self._writing)

    def submit(self, work: Generation | Choice, on_event: OnEvent) -> int:
        """Put a request into the queue; a ticket for `cancel`. ApiError 429 when the queue is full."""
        with self._changed:
            if self._closing:
                raise ApiError(503, "the server is shutting down", fix="try again later")
            if self.waiting >= self.config.max_waiting:
                raise ApiError(429, f"{self.waiting} requests are waiting", code="queue_full", fix="try again later")
            ticket = next(self._tickets)
            queue = self._generations if isinstance(work, Generation) else self._choices
            queue[ticket] = _Request(work, on_event)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: int) -> None:
        """Nobody waits for this answer any more. No effect on one that has ended."""
        with self._changed:
            self._gone.add(ticket)

    @property
    def modules(self) -> list[ModuleRecord]:
        """Records of the modules that are in memory."""
        return self._slots.records

    def forget(self, records: Collection[ModuleRecord]) -> None:
        """Overwrite these modules in memory soon; those that are answering are left, and listed in `modules` still."""
        with self._changed:
            self._deleted.extend(records)
            self._changed.notify()

    def close(self) -> None:
        """Answer what is waiting and under way, then end the thread; new requests are refused."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._has_work():
            self._let_go()
            if self._score():
                self._admit()
            self._step()
        self._slots.close()

    def _has_work(self) -> bool:
        """Wait for something to do; False at the end."""
        with self._changed:
            while not (self._writing or self.waiting or self._deleted or self._closing):
                self._gone.clear()
                self._changed.wait()
            return bool(self._writing or self.waiting or self._deleted)

    def _let_go(self) -> None:
        """Forget the requests that nobody waits for, and the modules that are no more."""
        with self._changed:
            gone, self._gone = self._gone, set()
            deleted, self._deleted = self._deleted, []
            waiting = [queue.pop(t) for queue in (self._generations, self._choices) for t in gone & queue.keys()]
        active = gone & self._writing.keys()
        self._drop(active)
        self._slots.wipe(deleted)
        self.statistics.cancelled += len(waiting) + len(active)

    def _score(self) -> bool:
        """Answer the waiting questions of one task; False where they wait for a slot, which nothing new may take."""
        taken = list(self._take(self._choices, self._fits_scoring).values())
        works = [request.work for request in taken if isinstance(request.work, Choice)]
        if not works:
            return not self._choices
        task = works[0].task
        questions = [Question(request.slot, work.example) for request, work in zip(taken, works, strict=True)]
        with self._failing(taken):
            scores = score_labels(
                self._base,
                task,
                questions,
                works[0].max_tokens,
                self.config.tokens_per_pass,
                self._slots.virtual_tokens,
            )
            for request, line in zip(taken, scores, strict=True):
                best = int(line.argmax())  # NaN, where there is one
                if not line[best].isfinite():
                    self._fail([request], _no_numbers())
                    continue
                written = encode_answers(self._base.tokenizer, [task.labels[best]])[0]
                request.on_event(Piece(task.labels[best]))
                request.on_event(Done("stop", len(written)))
                self.statistics.answered += 1
            self.statistics.max_scored = max(self.statistics.max_scored, len(taken))
        for request in taken:
            self._slots.give_back(request.slot)
        return True

    def _admit(self) -> None:
        """Let waiting generations join the batch."""
        joining = self._take(self._generations, self._fits_batch)
        new = {ticket: self._begun(request) for ticket, request in joining.items()}
        if not new:
            return
        with self._failing(joining.values()):
            prompts = [self._prompt(ticket, w.request.slot, w.work.tokens) for ticket, w in new.items()]
            logits = self._decoder.admit(prompts)
            self._writing |= new
            self.statistics.max_active = max(self.statistics.max_active, len(self._writing))
            self._write(tuple(new), logits)
            return
        for ticket, request in joining.items():
            if ticket in self._writing:
                self._drop([ticket])
            else:
                self._slots.give_back(request.slot)

    def _prompt(self, ticket: int, slot: int, tokens: tuple[int, ...]) -> Prompt:
        """The text behind the user's soft prompt, where the module is one."""
        virtual = range(-self._slots.virtual_tokens, 0) if slot >= 0 else ()
        return Prompt(ticket, slot, (*virtual, *tokens))

    def _step(self) -> None:
        """One more token for every active sequence."""
        tickets = self._decoder.active
        if not tickets:
            return
        with self._failing([w.request for w in self._writing.values()]):
            logits = self._decoder.step([self._writing[ticket].written[-1] for ticket in tickets])
            self.statistics.steps += 1
            self._write(tickets, logits)
            return
        self._decoder = Decoder(self._base.model)
        self._drop(self._writing.keys())

    def _write(self, tickets: Sequence[int], logits: torch.Tensor) -> None:
        lines = [self._writing[ticket] for ticket in tickets]
        rules, generators = [w.work.sampling for w in lines], [w.generator for w in lines]
        tokens = next_tokens(logits, rules, generators, [w.written for w in lines])
        failed = [ticket for ticket, token in zip(tickets, tokens, strict=True) if token is None]
        self._fail([self._writing[ticket].request for ticket in failed], _no_numbers())
        self.statistics.tokens += len(tokens) - len(failed)
        going = [(t, w, token) for t, w, token in zip(tickets, lines, tokens, strict=True) if token is not None]
        ended = [ticket for ticket, line, token in going if self._ends_with(line, token)]
        self.statistics.answered += len(ended)
        self._drop([*failed, *ended])

    def _ends_with(self, line: _Writing, token: int) -> bool:
        """Add a token to a sequence and tell what became of it; whether it was the last."""
        line.written.append(token)
        is_end = token in self._ends
        text = line.text.close() if is_end else line.text.push(token)
        is_full = len(line.written) >= line.work.limit
        if is_full and not is_end:
            text += line.text.close()
        if text:
            line.request.on_event(Piece(text))
        ended = is_end or is_full or line.text.stopped
        if ended:
            line.request.on_event(Done("stop" if is_end or line.text.stopped else "length", len(line.written)))
        return ended

    def _begun(self, request: _Request) -> _Writing:
        assert isinstance(request.work, Generation)
        work = request.work
        text = TextStream(self._base.tokenizer, work.stops, strip=work.strip)
        return _Writing(request, work, text, work.sampling.generator())

    def _drop(self, tickets: Collection[int]) -> None:
        """Take sequences out of the batch."""
        listed = list(tickets)
        self._decoder.drop(listed)
        for ticket in listed:
            self._slots.give_back(self._writing.pop(ticket).request.slot)

    def _take(self, queue: _Queue, fits: Callable[[list[_Request], _Request], bool]) -> _Queue:
        """The requests at the head of a queue that can begin now, each with its slot."""
        taken: _Queue = {}
        while True:
            with self._changed:
                ticket, request = next(iter(queue.items()), (-1, None))
            if request is None or not fits(list(taken.values()), request):
                return taken
            slot = None
            with self._failing([request]):
                slot = self._slots.take(request.work.module)
                if slot is None:
                    return taken
                request.slot = slot
                taken[ticket] = request
            with self._changed:
                del queue[ticket]

    def _fits_scoring(self, taken: list[_Request], request: _Request) -> bool:
        """Whether it can be scored with the others: the same task."""
        assert isinstance(request.work, Choice)
        work, first = request.work, taken[0].work if taken else request.work
        assert isinstance(first, Choice)
        same = work.task == first.task and work.max_tokens == first.max_tokens
        return same and len(taken) < self.config.batch_size

    def _fits_batch(self, taken: list[_Request], request: _Request) -> bool:
        """Whether there is room for one more sequence."""
        joining = [r.work for r in (*taken, request) if isinstance(r.work, Generation)]
        together = [*(w.work for w in self._writing.values()), *joining]
        if len(joining) > 1 and sum(len(work.tokens) for work in joining) > self.config.tokens_per_pass:
            return False
        size = len(together) * max(len(work.tokens) + work.limit for work in together)
        return len(together) == 1 or (len(together) <= self.config.batch_size and size <= self.config.cache_tokens)

    @contextmanager
    def _failing(self, requests: Iterable[_Request]) -> Iterator[None]:
        """What goes wrong within fails these requests, and the engine goes on."""
        listed = list(requests)
        try:
            yield
        except Exception as error:
            known = error if isinstance(error, OppuError) else OppuError("the server failed; its log says why")
            if known is not error:
                _LOG.exception("a fault of the server")
            self._fail(listed, known)

    def _fail(self, requests: Sequence[_Request], error: OppuError) -> None:
        """End these requests with an error."""
        if not requests:
            return
        _LOG.warning("%d requests failed: %s", len(requests), error)
        self.statistics.failed += len(requests)
        for request in requests:
            request.on_event(Failed(error))


def _no_numbers() -> ModelError:
    """What a user is told whose module makes the model overflow; the neighbours do not notice."""
    return ModelError("what the model gives is NaN or infinite, so there is no answer", fix="train the module again")


def _end_tokens(base: Base) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model's generation settings add."""
    more = getattr(base.model.generation_config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [] if more is None else [more]
    return frozenset([int(base.tokenizer.eos_token_id), *listed])
