"""Examples as tokens: the prompt gives way from its start, never the answer."""

from typing import Any

import pytest
from conftest import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from oppu.errors import ModelError
from oppu.model.tokens import Encoded, answer_text, encode, encode_answers
from oppu.records import Example

TOKENIZER = tiny_tokenizer()
START, END = 1, 2


def ids(text: str) -> tuple[int, ...]:
    """The tiny tokenizer has a token for each character."""
    return tuple(TOKENIZER(text).input_ids)


def one(prompt: str, answer: str | None, max_tokens: int = 100, **options: Any) -> Encoded:
    (found,) = encode(TOKENIZER, [Example("ann", "i1", prompt, answer)], max_tokens, **options)
    return found


def test_an_answer_follows_its_prompt_after_a_space_and_is_closed() -> None:
    found = one("thing: car colour:", "red")
    assert found.prompt == ids("thing: car colour:")
    assert found.tokens[found.answer_start :] == (*ids(" red"), END)
    assert found.answer_tokens == 5


def test_no_space_is_put_behind_a_new_line_or_nothing() -> None:
    assert [answer_text(prompt, "red") for prompt in ("a:", "a:\n", "a: ", "")] == [" red", "red", "red", "red"]


def test_an_empty_prompt_gets_a_start_token() -> None:
    found = one("", "so late")
    assert found.tokens == (START, *ids("so late"), END)
    assert found.answer_start == 1


def test_without_a_start_token_an_empty_prompt_gets_the_end_token() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="</s>")
    (found,) = encode(tokenizer, [Example("ann", "i1", "", "x")], 100)
    assert found.tokens == (END, *ids("x"), END)


def test_prompts_alone_are_encoded_without_answer_and_end() -> None:
    found = one("thing:", "red", answers=False)
    assert (found.tokens, found.answer_tokens) == (ids("thing:"), 0)


def test_an_answer_that_is_not_known_is_an_empty_one() -> None:
    assert one("a:", None).tokens == (*ids("a: "), END)


@given(st.text("abc ", max_size=12), st.text("xyz", min_size=1, max_size=6), st.integers(9, 24))
def test_the_prompt_gives_way_from_its_start_and_never_the_answer(prompt: str, answer: str, limit: int) -> None:
    found = one(prompt, answer, limit)
    whole = one(prompt, answer, 1000)
    assert found.tokens == whole.tokens[-limit:]
    assert found.tokens[found.answer_start :] == whole.tokens[whole.answer_start :]
    assert len(found.prompt) == min(len(whole.prompt), limit - whole.answer_tokens) >= 1


def test_an_answer_that_leaves_no_room_is_refused_with_user_and_item() -> None:
    assert len(one("a:", "12345", max_tokens=8).tokens) == 8
    with pytest.raises(ModelError) as caught:
        one("a:", "12345", max_tokens=7)
    expected = "the answer has 7 tokens, more than fit into 7; raise max_tokens or shorten the item"
    assert caught.value.line() == f"user ann, item i1: {expected}"


def test_several_examples_keep_their_order_and_none_gives_none() -> None:
    found = encode(TOKENIZER, [Example("u", str(n), "a" * n, "x") for n in (3, 1, 2)], 100)
    assert [len(e.prompt) for e in found] == [3, 1, 2]
    assert encode(TOKENIZER, [], 100) == []


def test_answers_are_closed_so_that_one_that_begins_another_has_its_own_score() -> None:
    assert encode_answers(TOKENIZER, [" red", " redder"]) == [[*ids(" red"), END], [*ids(" redder"), END]]
