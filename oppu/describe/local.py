"""Profiles by a base on this machine: requests go through its chat template, answers are decoded greedily."""

from collections.abc import Sequence

from jinja2 import TemplateError

from oppu.describe.writer import ANSWER_TOKENS
from oppu.errors import ModelError
from oppu.model.base import Base
from oppu.model.decode import Prompt
from oppu.predict import continue_prompts

_BATCH, _BATCH_TOKENS = 16, 16_384
"""Requests, and their tokens, that are under way together."""
_SEAMS = 8
"""Tokens that there may be more where template, request and lines meet than in each by itself."""


class LocalWriter:
    """A loaded base as a `Writer`. One without a chat template gets the request as it is."""

    def __init__(self, base: Base, answer_tokens: int = ANSWER_TOKENS, context: int | None = None) -> None:
        """`context`: at most so many tokens for a request and its answer; None: as many as the base takes."""
        self.answer_tokens = answer_tokens
        self._base = base
        self._most = base.max_tokens if context is None else min(context, base.max_tokens)
        self.context = self._most - len(self._encoded("")) - _SEAMS

    @property
    def made(self) -> str:
        """`model:` and the base's name."""
        return f"model:{self._base.name}"

    @property
    def fingerprint(self) -> str:
        """The base's."""
        return self._base.fingerprint

    def tokens(self, text: str) -> int:
        """By the base's tokenizer."""
        return len(self._base.tokenizer(text, add_special_tokens=False).input_ids)

    def at_once(self, tokens: int) -> int:
        """As many as fill a batch."""
        return max(1, min(_BATCH, _BATCH_TOKENS // max(1, tokens)))

    def write(self, requests: Sequence[str]) -> list[str]:
        """See `Writer`; what the requests have in common at their beginning is computed once."""
        encoded = [self._encoded(request) for request in requests]
        longest = max(map(len, encoded), default=0)
        if longest + self.answer_tokens > self._most:
            what = f"a request has {longest} tokens, which with {self.answer_tokens} to write is more than {self._most}"
            raise ModelError(what, where=self.made, fix="use a model that takes longer texts, or shorter profiles")
        written = continue_prompts(
            self._base,
            [Prompt(key, -1, tokens) for key, tokens in enumerate(encoded)],
            self._is_finished,
            batch_size=self.at_once(longest),
        )
        return [str(self._base.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in written]

    def _is_finished(self, tokens: Sequence[int]) -> bool:
        return tokens[-1] in self._ends() or len(tokens) >= self.answer_tokens

    def _ends(self) -> set[int]:
        """The tokens that end an answer; some models have one for a turn besides that of a text."""
        given = getattr(self._base.model.generation_config, "eos_token_id", None)
        listed = given if isinstance(given, list) else [given]
        return {int(token) for token in (*listed, self._base.tokenizer.eos_token_id) if token is not None}

    def _encoded(self, request: str) -> tuple[int, ...]:
        tokenizer = self._base.tokenizer
        if tokenizer.chat_template is None:
            return tuple(tokenizer(request).input_ids)
        turn = [{"role": "user", "content": request}]
        try:
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ModelError(f"its chat template fails: {error}", where=self.made, fix="use another model") from None
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)
