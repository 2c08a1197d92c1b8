"""Examples as token ids. Where a sequence is too long the prompt gives way, from its start, never the answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from oppu.errors import ModelError
from oppu.records import Example


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and an answer as one sequence of token ids; the loss counts tokens[answer_start:]."""

    tokens: tuple[int, ...]
    answer_start: int
    """At least 1: the first answer token needs one before it."""

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss counts."""
        return len(self.tokens) - self.answer_start

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the answer."""
        return self.tokens[: self.answer_start]

    def after_virtual(self, count: int) -> "Encoded":
        """The same behind `count` virtual tokens of a soft prompt, whose ids are -count .. -1."""
        return Encoded((*range(-count, 0), *self.tokens), count + self.answer_start) if count else self


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_tokens: int, *, answers: bool = True
) -> list[Encoded]:
    """Encode prompts with their answers and the end-of-sequence token; `answers=False`: the prompts alone.

    ModelError when an answer alone is longer than `max_tokens`.
    """
    listed = list(examples)
    if not listed:
        return []
    prompts = tokenizer([e.prompt for e in listed]).input_ids
    texts = [answer_text(e.prompt, e.written or "") for e in listed]
    ends = encode_answers(tokenizer, texts) if answers else [[] for _ in listed]
    return [_join(tokenizer, p, a, max_tokens, e) for p, a, e in zip(prompts, ends, listed, strict=True)]


def encode_answers(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Answers as token ids, each closed by the end-of-sequence token, so that a score is a probability of the whole."""
    ids = tokenizer(list(texts), add_special_tokens=False).input_ids
    return [[*answer, _end(tokenizer)] for answer in ids]


def answer_text(prompt: str, answer: str) -> str:
    """The answer as it continues the prompt: after a space, unless a new line or nothing stands before it."""
    return f" {answer}" if prompt and not prompt[-1].isspace() else answer


def _join(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], answer: list[int], max_tokens: int, example: Example
) -> Encoded:
    room = max_tokens - len(answer)
    if room < 1:
        raise ModelError(
            f"the answer has {len(answer)} tokens, more than fit into {max_tokens}",
            where=f"user {example.user_id}, item {example.item_id}",
            fix="raise max_tokens or shorten the item",
        )
    kept = (prompt or [_start(tokenizer)])[-room:]
    return Encoded((*kept, *answer), len(kept))


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.eos_token_id)


def _start(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)
