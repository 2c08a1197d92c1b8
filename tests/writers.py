"""For the tests of profiles: a task that asks for them, and models that write them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from conftest import tiny_model, tiny_tokenizer
from toys import COLOUR

from oppu.errors import ModelError
from oppu.model.base import Base, make_base

ASKED = COLOUR.model_copy(
    update={"profile_prompt": "Which colours? History: {history} Answer:", "profile_count": "mostly {most_common}"}
)
MARK = re.compile(r"(ann|bob|cid)x(\d+)x")


@dataclass
class Parrot:
    """Answers with all marks of a request, such as annx3x, so that what it saw is found again; a token is a word."""

    answer_tokens: int = 40
    context: int = 10_000
    together: int = 1
    fingerprint: str = "parrot 1"
    made: str = "model:parrot"
    refuses: str = "no such word"
    """A request with this word fails."""
    asked: list[str] = field(default_factory=list)

    def tokens(self, text: str) -> int:
        return len(text.split())

    def at_once(self, tokens: int) -> int:
        return self.together

    def write(self, requests: Sequence[str]) -> list[str]:
        for request in requests:
            assert self.tokens(request) + self.answer_tokens <= self.context
            if self.refuses in request:
                raise ModelError("it would not", where="parrot")
        self.asked += requests
        return ["saw\n" + " ".join(f"{n}x{p}x" for n, p in dict.fromkeys(MARK.findall(r))) for r in requests]


def marks(text: str) -> set[tuple[str, int]]:
    """Whose items, and which, a text tells of."""
    return {(name, int(place)) for name, place in MARK.findall(text)}


def chatting_base() -> Base:
    """A tiny random base with a chat template: `[what is said]>`."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}[{{ message.content }}]{% endfor %}>"
    return make_base("tiny", tiny_model(), tokenizer)
