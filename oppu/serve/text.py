"""Tokens to text as they come: what is certain is given out at once, what may begin a stop string is held back."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TextStream:
    """The text of one answer. The pieces of `push` and `close`, joined, are the answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], *, strip: bool) -> None:
        """`strip`: drop white space around the answer; stop strings count after its first letter only."""
        self.stopped = False
        """Whether a stop string was met; the text ends before it."""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._strip = strip
        self._tokens: list[int] = []
        self._shown = 0  # tokens whose text was taken
        self._context = 0  # a token's text can depend on those before it: decoding begins here
        self._begun = not strip
        self._held = ""

    def push(self, token: int) -> str:
        """Take one more token; the text that has become certain."""
        self._tokens.append(token)
        new = self._new_text()
        if not new or new.endswith("\ufffd"):  # a letter of several tokens is not whole yet
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return self._released(new)

    def close(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._released(self._new_text()) + self._held
        self._held = ""
        return text.rstrip() if self._strip else text

    def _new_text(self) -> str:
        before = self._decode(self._tokens[self._context : self._shown])
        return self._decode(self._tokens[self._context :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""

    def _released(self, new: str) -> str:
        self._held += new
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        ends = [at for stop in self._stops if self._begun and (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text.rstrip() if self._strip else text
        certain = len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0)
        if self._strip:
            certain = len(self._held[:certain].rstrip())
        text, self._held = self._held[:certain], self._held[certain:]
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
