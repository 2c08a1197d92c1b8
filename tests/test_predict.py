"""Answers of many users in one batch are those of transformers + PEFT for each question alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, set_peft_model_state_dict

from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.decode import Decoder, Prompt
from oppu.model.kinds import LoraConfig
from oppu.predict import Question, answer, generate, score_answers, score_labels
from oppu.records import Example
from oppu.tasks import HistoryForm, Task

LORA = LoraConfig(rank=4, alpha=8)
FORM = HistoryForm(prompt="", answer="{text}", shown="{text}")
LABELS = Task(
    name="toy",
    title="toy",
    kind="label",
    labels=("a", "ab", "sad", "glad"),
    prompt="{text}",
    history=(FORM,),
    search_fields=("text",),
)
TEXT = Task(
    name="toy-text",
    title="toy",
    kind="text",
    prompt="{text}",
    history=(FORM,),
    search_fields=("text",),
    max_answer_tokens=12,
)
PROMPTS = ("how is it?", "how is she, then?", "x", "a much longer question, told at length", "how", "it ends\n")
SLOTS = (0, 2, -1, 1, 2, 2)
QUESTIONS = [
    Question(slot, Example(f"u{slot}", str(i), p, None)) for i, (p, slot) in enumerate(zip(PROMPTS, SLOTS, strict=True))
]


def random_bank(base: Base, slots: int = 3) -> Bank:
    """Modules with non-zero b, so that they change the answers."""
    bank = Bank(base.model, LORA, slots)
    bank.values.copy_(torch.randn(bank.values.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
    return bank


@pytest.fixture
def bank(base: Base) -> Iterator[Bank]:
    bank = random_bank(base)
    with bank.attach():
        yield bank


def alone(bank: Bank, slot: int) -> torch.nn.Module:
    """The reference: the same base with one module, loaded by PEFT."""
    if slot < 0:
        return tiny_model()
    config = PeftLoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny_model(), config)
    set_peft_model_state_dict(model, dict(bank.module(slot).tensors))
    return model.eval()


def written_without_repeats(bank: Bank, question: Question, limit: int, length: int) -> list[int]:
    """A token after the other, each the likeliest of those that repeat no `length` tokens in a row."""
    tokenizer = tiny_tokenizer()
    ids: list[int] = tokenizer(question.example.prompt).input_ids
    model = alone(bank, question.slot)
    written: list[int] = []
    while len(written) < limit and tokenizer.eos_token_id not in written:
        with torch.inference_mode():
            order = model(input_ids=torch.tensor([ids + written])).logits[0, -1].argsort(descending=True)
        runs = {tuple(written[i : i + length]) for i in range(len(written) - length + 1)}
        written.append(next(t for t in order.tolist() if (*written, t)[-length:] not in runs))
    return written


def reference_text(bank: Bank, question: Question, limit: int, stop: str = "\n") -> str:
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer(question.example.prompt).input_ids])
    model = alone(bank, question.slot)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=2
        )[0, ids.shape[1] :]
    return str(tokenizer.decode(output, skip_special_tokens=True)).strip().split(stop)[0].strip()


def test_packed_label_scores_equal_each_sequence_by_itself(base: Base, bank: Bank) -> None:
    scores = score_labels(base, LABELS, QUESTIONS, tokens_per_pass=60)
    for line, question in zip(scores, QUESTIONS, strict=True):
        model = alone(bank, question.slot)
        prompt = question.example.prompt
        start = base.tokenizer(prompt).input_ids
        for score, label in zip(line, LABELS.labels, strict=True):
            text = label if prompt[-1].isspace() else f" {label}"
            end = [*base.tokenizer(text, add_special_tokens=False).input_ids, base.tokenizer.eos_token_id]
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([start + end])).logits[0, len(start) - 1 : -1]
            expected = logits.log_softmax(-1)[torch.arange(len(end)), torch.tensor(end)].sum()
            assert float(score) == pytest.approx(float(expected), rel=1e-4)


def test_a_label_that_stands_for_a_text_is_scored_by_its_mean_token(base: Base, bank: Bank) -> None:
    texts = ("a red one", "b", "ab ab ab", "sad")
    assert len(texts) == len(LABELS.labels)
    options = tuple(zip(LABELS.labels, texts, strict=True))
    asked = [replace(q, example=replace(q.example, options=options)) for q in QUESTIONS]
    scores = score_labels(base, LABELS, asked, tokens_per_pass=60)
    for place, text in enumerate(texts):
        written = [replace(q, example=replace(q.example, answer=text)) for q in QUESTIONS]
        assert scores[:, place].tolist() == pytest.approx(score_answers(base, written), rel=1e-4)


def test_what_a_text_is_worth_without_the_question_is_subtracted(base: Base, bank: Bank) -> None:
    texts = ("a red one", "b", "ab ab ab", "sad")
    task = LABELS.model_copy(update={"options": texts, "options_premise": "colour:"})
    options = tuple(zip(LABELS.labels, texts, strict=True))
    asked = [replace(q, example=replace(q.example, options=options)) for q in QUESTIONS]
    scores = score_labels(base, task, asked, tokens_per_pass=60)
    for place, text in enumerate(texts):
        given = score_answers(base, [replace(q, example=replace(q.example, answer=text)) for q in QUESTIONS])
        alone = [replace(q, example=replace(q.example, prompt="colour:", answer=text)) for q in QUESTIONS]
        expected = [a - b for a, b in zip(given, score_answers(base, alone), strict=True)]
        assert scores[:, place].tolist() == pytest.approx(expected, abs=1e-4)
    told: dict[int, str] = {}
    assert answer(base, task, asked, on_answer=told.__setitem__) == [told[place] for place in range(len(asked))]


def test_an_answer_is_the_label_of_the_highest_score(base: Base, bank: Bank) -> None:
    scores = score_labels(base, LABELS, QUESTIONS)
    assert answer(base, LABELS, QUESTIONS) == [LABELS.labels[int(line.argmax())] for line in scores]


@pytest.mark.parametrize("cores", [1, 2])
def test_an_answer_is_told_once_as_soon_as_its_labels_are_scored(base: Base, bank: Bank, cores: int) -> None:
    questions = [*QUESTIONS, *QUESTIONS[:2]]  # two are asked twice, by the same users
    told: list[tuple[int, str]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        answers = answer(base, LABELS, questions, tokens_per_pass=60, on_answer=lambda *news: told.append(news))
    finally:
        torch.set_num_threads(before)
    assert sorted(told) == list(enumerate(answers))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_answer_does_not_run_in_circles(base: Base, bank: Bank, length: int) -> None:
    task = TEXT.model_copy(update={"no_repeat_ngram": length, "max_answer_tokens": 20})
    texts = generate(base, task, QUESTIONS, batch_size=4)
    for text, question in zip(texts, QUESTIONS, strict=True):
        tokens = written_without_repeats(bank, question, 20, length)
        expected = tiny_tokenizer().decode(tokens, skip_special_tokens=True).strip().split("\n")[0].strip()
        assert text == expected
    assert texts != generate(base, task.model_copy(update={"no_repeat_ngram": 0}), QUESTIONS)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_mixed_batch_writes_what_each_user_gets_alone(base: Base, bank: Bank, batch_size: int) -> None:
    told: dict[int, str] = {}
    texts = generate(base, TEXT, QUESTIONS, batch_size=batch_size, on_answer=told.__setitem__)
    assert texts == [reference_text(bank, question, TEXT.max_answer_tokens) for question in QUESTIONS]
    assert [told[place] for place in range(len(QUESTIONS))] == texts
    assert len(set(texts)) > 3


def test_prompts_join_together_once_a_quarter_of_the_batch_is_free(
    base: Base, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[int] = []
    admit = Decoder.admit

    def counting(self: Decoder, prompts: Sequence[Prompt]) -> torch.Tensor:
        joined.append(len(prompts))
        return admit(self, prompts)

    monkeypatch.setattr(Decoder, "admit", counting)
    texts = generate(base, TEXT, QUESTIONS * 4, batch_size=8, stop=" ")  # answers of different lengths
    assert texts == [reference_text(bank, question, TEXT.max_answer_tokens, " ") for question in QUESTIONS] * 4
    assert joined[0] == 8
    assert min(joined[1:-1]) >= 2
    assert sum(joined) == len(QUESTIONS) * 4


def test_a_stop_string_of_several_tokens_ends_an_answer(base: Base, bank: Bank) -> None:
    whole = generate(base, TEXT, QUESTIONS, stop="\0")
    stop = whole[0][3:6]
    texts = generate(base, TEXT, QUESTIONS, stop=stop)
    assert texts == [reference_text(bank, question, TEXT.max_answer_tokens, stop) for question in QUESTIONS]
    assert texts[0] == whole[0].split(stop)[0].strip()


def test_a_limit_of_one_token_needs_no_step(base: Base, bank: Bank) -> None:
    task = TEXT.model_copy(update={"max_answer_tokens": 1})
    assert generate(base, task, QUESTIONS) == [reference_text(bank, question, 1) for question in QUESTIONS]


def test_no_questions_have_no_answers(base: Base, bank: Bank) -> None:
    assert generate(base, TEXT, []) == []


def test_sequences_that_come_and_go_between_steps_keep_their_logits(base: Base, bank: Bank) -> None:
    """Holes are filled from the end, the cache grows, and slots come, go and come again."""
    prompts = {i: Prompt(i, SLOTS[i], tuple(base.tokenizer(text).input_ids)) for i, text in enumerate(PROMPTS)}
    written: dict[int, list[int]] = {}
    decoder = Decoder(base.model)

    def write(keys: tuple[int, ...], logits: torch.Tensor) -> None:
        for key, line in zip(keys, logits, strict=True):
            sequence = [*prompts[key].tokens, *written.setdefault(key, [])]
            with torch.inference_mode():
                expected = alone(bank, SLOTS[key])(input_ids=torch.tensor([sequence])).logits[0, -1]
            torch.testing.assert_close(line, expected, rtol=1e-4, atol=1e-4)
            written[key].append(int(line.argmax()))

    def step() -> None:
        write(decoder.active, decoder.step([written[key][-1] for key in decoder.active]))

    write((2, 0, 1), decoder.admit([prompts[i] for i in (2, 0, 1)]))
    step()
    decoder.drop([2])
    step()
    write((3, 4), decoder.admit([prompts[3], prompts[4]]))
    for _ in range(20):
        step()
    decoder.drop([0, 3])
    step()
    decoder.drop([1, 4])
    assert decoder.active == ()
    write((5,), decoder.admit([prompts[5]]))
    step()


def test_a_module_loaded_between_steps_counts_at_once(base: Base, bank: Bank) -> None:
    """What is prepared for a decoding step is made anew when a slot changes."""
    decoder = Decoder(base.model)
    tokens = tuple(base.tokenizer(PROMPTS[0]).input_ids)
    decoder.admit([Prompt(0, 0, tokens), Prompt(1, 1, tokens)])
    decoder.step([10, 10])
    decoder.drop([0])
    bank.load(0, bank.module(2))
    first = decoder.admit([Prompt(2, 0, tokens), Prompt(3, 2, tokens)])
    after = decoder.step([10, 10, 10])
    torch.testing.assert_close(first[0], first[1])
    torch.testing.assert_close(after[1], after[2])
    assert not torch.allclose(after[0], after[1])


def test_a_batch_of_plain_base_rows_is_the_base(base: Base, bank: Bank) -> None:
    questions = [Question(-1, question.example) for question in QUESTIONS]
    assert generate(base, TEXT, questions) == [reference_text(bank, q, TEXT.max_answer_tokens) for q in questions]


def test_a_question_is_asked_the_same_beside_one_with_longer_answers_to_choose_from(base: Base, bank: Bank) -> None:
    def asking(prompt: str, *texts: str) -> Question:
        return Question(0, Example("u", prompt, prompt, "a", options=tuple(zip(LABELS.labels, texts, strict=True))))

    own = asking("a question that is longer than what is left of it", "a", "b", "c", "d")
    beside = asking("short", "a" * 30, "b", "c", "d")
    (alone,) = score_labels(base, LABELS, [own], 36)
    assert score_labels(base, LABELS, [own, beside], 36)[0].tolist() == pytest.approx(alone.tolist(), abs=1e-4)


def test_keys_and_values_are_as_many_as_the_active_sequences_need(base: Base) -> None:
    decoder = Decoder(base.model)
    decoder.admit([Prompt(n, -1, (5, 6, 7)) for n in range(16)])
    decoder.drop(range(1, 16))
    decoder.admit([Prompt(99, -1, tuple(5 + n % 50 for n in range(300)))])
    decoder.step([5, 6])
    lines, _, tokens, _ = decoder._cache._layers[0][0].shape
    assert (lines, tokens <= 301 + 256) == (2, True)
    decoder.drop([99])
    decoder.admit([Prompt(n, -1, (5, 6, 7)) for n in range(100, 115)])
    lines, _, tokens, _ = decoder._cache._layers[0][0].shape
    assert (lines, tokens < 20) == (16, True)
