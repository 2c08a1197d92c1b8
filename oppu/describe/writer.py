"""A history -> profiles written by a model: s_u = LLM(H_u) (section 2.2), also where H_u does not fit into it.

A history that is too long is taken in parts: a profile of each part, then a profile of these, until there is one.
"""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Protocol

from oppu.errors import ConfigError, ModelError
from oppu.profiles.request import cut_to, history_lines, parts, profile_request
from oppu.records import HistoryItem
from oppu.tasks import Task

ANSWER_TOKENS = 160
"""Length limit of a profile."""


class Writer(Protocol):
    """An instruction-tuned model that answers requests."""

    answer_tokens: int
    """Length limit of an answer."""
    context: int
    """Tokens that a request and its answer may have together."""

    @property
    def made(self) -> str:
        """What the store calls profiles that were made so."""

    @property
    def fingerprint(self) -> str:
        """Over what decides an answer besides the request."""

    def tokens(self, text: str) -> int:
        """How many tokens a text takes, or somewhat more."""

    def at_once(self, tokens: int) -> int:
        """How many requests are answered at once, the longest of so many tokens."""

    def write(self, requests: Sequence[str]) -> list[str]:
        """An answer to each request, in order; ModelError where one cannot be had and others could."""


def write_profiles(
    task: Task, histories: Sequence[tuple[Sequence[HistoryItem], Sequence[range]]], writer: Writer
) -> list[list[str]]:
    """Of each history, oldest item first, with spans of its places: a profile of the items of each span, a line each.

    All of them are asked for at once, so that a model can answer them together and share what their requests have in
    common, and a part that several of them share is asked for once. ModelError where the model writes nothing,
    ConfigError where it has too little room for any history.
    """
    tokens = cache(writer.tokens)
    room = _room(task, writer)
    lines = [history_lines(task, ordered) for ordered, _ in histories]
    waiting = {
        (place, span): lines[place][span.start : span.stop]
        for place, (_, spans) in enumerate(histories)
        for span in spans
    }
    written: dict[str, str] = {}
    found: dict[tuple[int, range], str] = {}
    while waiting:
        requests = {
            key: [profile_request(task, part) for part in parts(texts, room, tokens)] for key, texts in waiting.items()
        }
        new = [request for request in dict.fromkeys(chain(*requests.values())) if request not in written]
        written |= zip(new, map(_one_line, writer.write(new)), strict=True)
        for key, asked in requests.items():
            if len(asked) == 1:
                found[key] = written[asked[0]]
                del waiting[key]
            else:  # two of them fit into one request, so each round has at most half as many
                waiting[key] = [cut_to(written[request], writer.answer_tokens + 1, tokens) for request in asked]
    return [[found[place, span] for span in spans] for place, (_, spans) in enumerate(histories)]


def first_requests(task: Task, ordered: Sequence[HistoryItem], spans: Sequence[range], writer: Writer) -> list[str]:
    """What `write_profiles` asks first for one history."""
    tokens = cache(writer.tokens)
    room = _room(task, writer)
    lines = history_lines(task, ordered)
    told = (lines[span.start : span.stop] for span in spans)
    return list(dict.fromkeys(profile_request(task, part) for texts in told for part in parts(texts, room, tokens)))


def _room(task: Task, writer: Writer) -> int:
    """Tokens that are left for a history beside the request's own words and the answer."""
    room = writer.context - writer.answer_tokens - writer.tokens(profile_request(task, [""]))
    least = 2 * (writer.answer_tokens + 1)
    if room < least:
        left = f"{max(0, room)} of the model's {writer.context} tokens for the history"
        what = f"a request and its answer leave {left}, and {least} are needed"
        raise ConfigError(what, where=writer.made, fix="use a model that takes longer texts, or shorter profiles")
    return room


def _one_line(text: str) -> str:
    """A profile stands on a line of its own in a prompt."""
    line = " ".join(text.split())
    if not line:
        raise ModelError("the model wrote nothing", fix="use another model")
    return line
