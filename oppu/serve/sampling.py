"""The next token of each sequence of a batch, by its own rule and from its own random stream."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oppu.model.decode import without_repeats

_GREEDY_BELOW = 1e-4


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a sequence's tokens are drawn."""

    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int | None = None
    """None: a new stream each time."""
    no_repeat: int = 0
    """So many tokens in a row are not written twice; 0: no limit."""

    def generator(self) -> torch.Generator:
        """The sequence's random stream."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


GREEDY = Sampling()


def next_tokens(
    logits: torch.Tensor,
    rules: Sequence[Sampling],
    generators: Sequence[torch.Generator],
    written: Sequence[Sequence[int]],
) -> list[int | None]:
    """One token for each line of logits [n, V] after what it has `written`; what a neighbour draws changes nothing.

    None where the logits are no numbers, for a module that makes the model overflow: there is nothing to choose from.
    """
    logits = without_repeats(logits, written, [rule.no_repeat for rule in rules])
    best = logits.argmax(-1, keepdim=True)  # NaN, where there is one
    likeliest = torch.where(logits.gather(-1, best).isfinite(), best, -1)[:, 0].tolist()
    tokens: list[int | None] = [token if token >= 0 else None for token in likeliest]
    for line, (rule, generator) in enumerate(zip(rules, generators, strict=True)):
        if tokens[line] is not None and rule.temperature >= _GREEDY_BELOW:
            tokens[line] = _draw(logits[line].float().cpu(), rule, generator)
    return tokens


def _draw(logits: torch.Tensor, rule: Sampling, generator: torch.Generator) -> int:
    below = logits - logits.max()  # so that no quotient is infinite
    probabilities, order = (below / rule.temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    nucleus = probabilities.masked_fill(before >= rule.top_p, 0)
    return int(order[torch.multinomial(nucleus, 1, generator=generator)])
