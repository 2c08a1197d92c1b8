"""Answers for questions of different users in one batch: labels by scoring them, text by greedy decoding."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from oppu.model.base import Base
from oppu.model.decode import Decoder, Prompt, without_repeats
from oppu.model.forward import SlotRow, answer_log_probs, passes, rows_of
from oppu.model.memory import useful_tokens
from oppu.model.tokens import Encoded, answer_text, encode, encode_answers
from oppu.model.workers import workers_for
from oppu.records import Example
from oppu.tasks import Task


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the bank slot of the module that shall answer it; slot -1 is the plain base."""

    slot: int
    example: Example


def answer(
    base: Base,
    task: Task,
    questions: Sequence[Question],
    *,
    max_tokens: int = 2048,
    tokens_per_pass: int | None = None,
    batch_size: int = 16,
    virtual_tokens: int = 0,
    on_answer: Callable[[int, str], None] = lambda place, text: None,
) -> list[str]:
    """Answer each question in the task's way, in order. The bank with the modules must be attached.

    `tokens_per_pass`: None: as many as are useful. `virtual_tokens`: of the modules, where they are soft prompts.
    `on_answer(place, text)`: called as questions are answered, in any order, by one thread at a time.
    """
    if task.kind == "text":
        return generate(
            base,
            task,
            questions,
            max_tokens=max_tokens,
            batch_size=batch_size,
            virtual_tokens=virtual_tokens,
            on_answer=on_answer,
        )
    scores = score_labels(base, task, questions, max_tokens, tokens_per_pass, virtual_tokens, on_answer)
    return [task.labels[int(line.argmax())] for line in scores]


def score_labels(
    base: Base,
    task: Task,
    questions: Sequence[Question],
    max_tokens: int = 2048,
    tokens_per_pass: int | None = None,
    virtual_tokens: int = 0,
    on_answer: Callable[[int, str], None] = lambda place, label: None,
) -> torch.Tensor:
    """log p(label | prompt) of each allowed label with its end, [questions, labels].

    Where labels stand for texts of the question's own (`Task.options`), the mean over a text's tokens, less that after
    `Task.options_premise`. All labels of all questions of a user are branches of one packed row: a prompt is computed
    once.
    """
    branches = _branches(base, task, questions, max_tokens, virtual_tokens)
    needed = branches
    if task.options_premise:
        without = [replace(q, example=replace(q.example, prompt=task.options_premise)) for q in questions]
        priors = _branches(base, task, without, max_tokens, virtual_tokens)
        needed = [[*labels, *same] for labels, same in zip(branches, priors, strict=True)]
    unanswered = dict(enumerate(needed))
    found: dict[tuple[int, Encoded], float] = {}

    def scores_of(place: int) -> list[float]:
        question = questions[place]
        if not question.example.options:
            return [found[question.slot, branch] for branch in branches[place]]
        means = [found[question.slot, branch] / branch.answer_tokens for branch in needed[place]]
        asked, premised = means[: len(task.labels)], means[len(task.labels) :]
        return [mean - prior for mean, prior in zip(asked, premised, strict=True)] if premised else asked

    def tell(rows: Sequence[SlotRow]) -> None:
        slots = {row.slot for row in rows}
        for place, labels in list(unanswered.items()):
            slot = questions[place].slot
            if slot in slots and all((slot, branch) in found for branch in labels):
                del unanswered[place]
                on_answer(place, task.labels[int(torch.tensor(scores_of(place)).argmax())])

    listed = [(question.slot, each) for question, texts in zip(questions, needed, strict=True) for each in texts]
    _log_probs(base, list(dict.fromkeys(listed)), found, tokens_per_pass, tell)
    return torch.tensor([scores_of(place) for place in range(len(questions))])


def score_answers(
    base: Base,
    questions: Sequence[Question],
    max_tokens: int = 2048,
    tokens_per_pass: int | None = None,
    virtual_tokens: int = 0,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Mean log p of the tokens of each question's own answer, its end among them, given its prompt; in nats.

    ModelError when an answer alone is longer than `max_tokens`.
    """
    encoded = _encoded(base, questions, [max_tokens] * len(questions), virtual_tokens)
    listed = [(question.slot, each) for question, each in zip(questions, encoded, strict=True)]
    found: dict[tuple[int, Encoded], float] = {}
    _log_probs(base, listed, found, tokens_per_pass, lambda rows: on_done(sum(len(row.examples) for row in rows)))
    return [found[slot, each] / each.answer_tokens for slot, each in listed]


def _log_probs(
    base: Base,
    listed: Sequence[tuple[int, Encoded]],
    found: dict[tuple[int, Encoded], float],
    tokens_per_pass: int | None,
    on_rows: Callable[[Sequence[SlotRow]], None],
) -> None:
    """log p of each answer as a whole, into `found`, by slot and example; `on_rows(rows)`: these are in it now."""
    by_slot: dict[int, list[Encoded]] = {}
    for slot, example in listed:
        by_slot.setdefault(slot, []).append(example)
    lock = threading.Lock()

    def score(group: Sequence[SlotRow]) -> None:
        with torch.inference_mode():  # of this thread
            log_probs = iter(answer_log_probs(base.model, group).tolist())
        with lock:
            for row in group:
                for example in row.examples:
                    found[row.slot, example] = sum(next(log_probs) for _ in range(example.answer_tokens))
            on_rows(group)

    with workers_for(base.device) as workers:
        limit = tokens_per_pass or useful_tokens(base.device, workers.count)
        rows = [row for slot, each in by_slot.items() for row in rows_of(slot, each, limit)]
        workers.map(score, list(passes(rows, limit // workers.count)))


def generate(
    base: Base,
    task: Task,
    questions: Sequence[Question],
    *,
    max_tokens: int = 2048,
    batch_size: int = 16,
    virtual_tokens: int = 0,
    stop: str = "\n",
    on_answer: Callable[[int, str], None] = lambda place, text: None,
) -> list[str]:
    """Greedy decoding up to the end token, `stop` or the task's length limit; finished rows make room for others."""
    room = max_tokens - task.max_answer_tokens
    encoded = _encoded(base, questions, [room] * len(questions), virtual_tokens, answers=False)
    prompts = [Prompt(i, questions[i].slot, prompt.tokens) for i, prompt in enumerate(encoded)]

    def finished(tokens: Sequence[int]) -> bool:
        return is_finished(base, tokens, stop, task.max_answer_tokens)

    def answered(place: int, tokens: Sequence[int]) -> None:
        on_answer(place, text_of(base, tokens, stop))

    written = continue_prompts(
        base, prompts, finished, batch_size=batch_size, on_finished=answered, no_repeat=task.no_repeat_ngram
    )
    return [text_of(base, tokens, stop) for tokens in written]


def continue_prompts(
    base: Base,
    prompts: Sequence[Prompt],
    finished: Callable[[Sequence[int]], bool],
    *,
    batch_size: int = 16,
    on_finished: Callable[[int, Sequence[int]], None] = lambda key, tokens: None,
    no_repeat: int = 0,
) -> list[list[int]]:
    """Greedy decoding of prompts with the keys 0, 1, 2, ..., each until it is `finished(tokens)`; their new tokens.

    `on_finished(key, tokens)`: called with each, as it is. `no_repeat`: so many tokens in a row are not written twice.
    """
    decoder = Decoder(base.model)
    written: list[list[int]] = [[] for _ in prompts]
    waiting = list(range(len(prompts)))[::-1]

    def write(keys: Sequence[int], logits: torch.Tensor) -> None:
        allowed = without_repeats(logits, [written[key] for key in keys], [no_repeat] * len(keys))
        for key, token in zip(keys, allowed.argmax(-1).tolist(), strict=True):
            written[key].append(token)

    while waiting or decoder.active:
        if decoder.active:
            write(decoder.active, decoder.step([written[key][-1] for key in decoder.active]))
        free = batch_size - len(decoder.active)
        # a forward reads all weights, however few its tokens: prompts wait until some can go together
        if waiting and free >= min(len(waiting), math.ceil(batch_size / 4)):
            joining = [waiting.pop() for _ in range(min(len(waiting), free))]
            write(joining, decoder.admit([prompts[i] for i in joining]))
        done = [key for key in decoder.active if finished(written[key])]
        decoder.drop(done)
        for key in done:
            on_finished(key, written[key])
    return written


def is_finished(base: Base, tokens: Sequence[int], stop: str, limit: int) -> bool:
    """Whether an answer has ended: by the end token, by `stop` (leading white space aside) or by its length."""
    ended = tokens[-1] == base.tokenizer.eos_token_id or len(tokens) >= limit
    # a stop string ends with the token that holds its last character
    return ended or (stop[-1] in base.tokenizer.decode(tokens[-1]) and stop in base.tokenizer.decode(tokens).lstrip())


def text_of(base: Base, tokens: Sequence[int], stop: str) -> str:
    """The answer's text, without what ended it."""
    text: str = base.tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip().split(stop)[0].strip()


def _encoded(
    base: Base, questions: Sequence[Question], rooms: Sequence[int], virtual_tokens: int, *, answers: bool = True
) -> list[Encoded]:
    """As `encode`, each in so many tokens with the virtual ones, which stand before the text where a module answers."""
    found: dict[int, Encoded] = {}
    counts = [virtual_tokens if question.slot >= 0 else 0 for question in questions]
    for room, count in sorted(set(zip(rooms, counts, strict=True))):
        places = [place for place in range(len(questions)) if (rooms[place], counts[place]) == (room, count)]
        encoded = encode(base.tokenizer, [questions[place].example for place in places], room - count, answers=answers)
        found |= {place: each.after_virtual(count) for place, each in zip(places, encoded, strict=True)}
    return [found[place] for place in range(len(questions))]


def prompt_room(base: Base, task: Task, example: Example, max_tokens: int) -> int:
    """Tokens that are left for a question's prompt beside the longest of its allowed answers."""
    return max_tokens - max(map(len, encode_answers(base.tokenizer, _label_texts(task, example))))


def _label_texts(task: Task, example: Example) -> tuple[str, ...]:
    """The labels, or the texts that they stand for, as they continue the prompt."""
    return tuple(answer_text(example.prompt, text) for text in dict(example.options).values() or task.labels)


def _branches(
    base: Base, task: Task, questions: Sequence[Question], max_tokens: int, virtual_tokens: int
) -> list[list[Encoded]]:
    """For each question, the prompt continued by each label, or by the text that the label stands for."""
    texts = [_label_texts(task, question.example) for question in questions]
    answers = {each: encode_answers(base.tokenizer, each) for each in set(texts)}
    rooms = [max_tokens - max(map(len, answers[each])) for each in texts]  # its own: a neighbour's may be longer
    prompts = _encoded(base, questions, rooms, virtual_tokens, answers=False)
    return [
        [Encoded((*prompt.tokens, *label), len(prompt.tokens)) for label in answers[each]]
        for prompt, each in zip(prompts, texts, strict=True)
    ]
