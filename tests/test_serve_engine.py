"""The engine by itself: who joins when, what is kept in slots, and what a failure costs."""

import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from serve_house import MOOD, TITLE, put_user, random_module

from oppu.errors import OppuError, StoreError
from oppu.model.base import Base
from oppu.model.decode import Decoder, Prompt
from oppu.model.module import Module
from oppu.records import Example
from oppu.serve.engine import Choice, Done, Engine, EngineConfig, Event, Failed, Generation, Piece
from oppu.serve.sampling import GREEDY, Sampling, next_tokens
from oppu.serve.slots import Slots
from oppu.serve.text import TextStream
from oppu.store import ModuleRecord, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def records(store: Store, base: Base) -> list[ModuleRecord]:
    return [put_user(store, base, f"u{seed}", TITLE, seed) for seed in range(4)]


def generation(record: ModuleRecord | None, limit: int = 6, prompt: tuple[int, ...] = (40, 41, 42)) -> Generation:
    return Generation(record, prompt, limit)


def outcome(events: "queue.Queue[Event]") -> tuple[str, Event]:
    text = ""
    while isinstance(event := events.get(timeout=60), Piece):
        text += event.text
    return text, event


def ask_all(engine: Engine, works: list[Generation | Choice]) -> list[tuple[str, Event]]:
    """All submitted while the engine is held up by the first, so that the others wait together."""
    inboxes: list[queue.Queue[Event]] = [queue.Queue() for _ in works]
    for work, inbox in zip(works, inboxes, strict=True):
        engine.submit(work, inbox.put)
    return [outcome(inbox) for inbox in inboxes]


def test_fewer_slots_than_users_make_them_wait_and_change_no_answer(
    base: Base, store: Store, records: list[ModuleRecord]
) -> None:
    works: list[Generation | Choice] = [generation(record, 20) for record in [*records, None, *records]]
    narrow = Engine(base, store.load_module, EngineConfig(slots=1))
    few = ask_all(narrow, works)
    narrow.close()
    wide = Engine(base, store.load_module, EngineConfig(slots=8))
    many = ask_all(wide, works)
    wide.close()
    assert few == many
    assert len({text for text, _ in few}) == 5
    assert all(event == Done("length", 20) for _, event in few)


def test_a_batch_holds_no_more_than_its_size_and_its_cache(base: Base, store: Store) -> None:
    for config, most in (
        (EngineConfig(batch_size=2), 2),
        (EngineConfig(cache_tokens=70), 3),
        (EngineConfig(cache_tokens=1), 1),
    ):
        engine = Engine(base, store.load_module, config)
        assert all(event == Done("length", 20) for _, event in ask_all(engine, [generation(None, 20)] * 6))
        engine.close()
        assert engine.statistics.max_active == most


def test_waiting_questions_of_a_task_are_scored_together(base: Base, store: Store, records: list[ModuleRecord]) -> None:
    engine = Engine(base, store.load_module)
    examples = [Example("u", str(i), f"note: {text} mood:", None) for i, text in enumerate(("ab", "b", "c", "dd"))]
    alone = [ask_all(engine, [Choice(r, MOOD, e, 200)])[0] for r, e in zip(records, examples, strict=True)]
    slow: queue.Queue[Event] = queue.Queue()
    engine.submit(generation(None, 200), slow.put)
    together = ask_all(engine, [Choice(r, MOOD, e, 200) for r, e in zip(records, examples, strict=True)])
    engine.close()
    assert together == alone
    assert engine.statistics.max_scored > 1
    assert {text for text, _ in alone} <= set(MOOD.labels)


def test_closing_answers_everything_that_was_asked_and_refuses_more(base: Base, store: Store) -> None:
    engine = Engine(base, store.load_module, EngineConfig(batch_size=2))
    inboxes: list[queue.Queue[Event]] = [queue.Queue() for _ in range(5)]
    for inbox in inboxes:
        engine.submit(generation(None, 30), inbox.put)
    engine.close()
    assert all(outcome(inbox)[1] == Done("length", 30) for inbox in inboxes)
    with pytest.raises(OppuError, match="shutting down"):
        engine.submit(generation(None), inboxes[0].put)


def test_a_cancelled_request_that_waits_never_begins(base: Base, store: Store) -> None:
    engine = Engine(base, store.load_module, EngineConfig(batch_size=1))
    first: queue.Queue[Event] = queue.Queue()
    second: queue.Queue[Event] = queue.Queue()
    engine.submit(generation(None, 60), first.put)
    engine.cancel(engine.submit(generation(None, 60), second.put))
    assert outcome(first)[1] == Done("length", 60)
    engine.close()
    assert second.empty()
    assert engine.statistics.cancelled == 1


def test_a_failing_module_fails_its_own_request_alone(base: Base, store: Store, records: list[ModuleRecord]) -> None:
    def load(record: ModuleRecord) -> Module:
        if record.user_id == "u1":
            raise StoreError("is broken")
        if record.user_id == "u2":
            raise RuntimeError("a fault in the program")
        return store.load_module(record)

    engine = Engine(base, load)
    answers = ask_all(engine, [generation(record) for record in records])
    engine.close()
    assert [type(event) for _, event in answers] == [Done, Failed, Failed, Done]
    assert engine.statistics.failed == 2


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_who_has_a_module_that_gives_no_numbers_is_told_and_the_neighbours_are_answered(
    base: Base, store: Store, records: list[ModuleRecord], temperature: float
) -> None:
    def load(record: ModuleRecord) -> Module:
        module = store.load_module(record)
        huge = {name: torch.full_like(tensor, 1e20) for name, tensor in module.tensors.items()}
        return Module(huge, module.config) if record.user_id == "u1" else module

    drawn = Sampling(temperature, seed=1)
    works: list[Generation | Choice] = [replace(generation(record), sampling=drawn) for record in records]
    works += [Choice(record, MOOD, Example("u", "q", "note: ab mood:", None), 200) for record in records[:2]]
    engine = Engine(base, store.load_module)
    expected = ask_all(engine, works)
    engine.close()
    engine = Engine(base, load)
    answers = ask_all(engine, works)
    engine.close()
    for place, (text, event) in enumerate(answers):
        if place in (1, 5):
            assert isinstance(event, Failed)
            assert "NaN or infinite" in event.error.line()
        else:
            assert (text, event) == expected[place]
    assert (engine.statistics.failed, engine.statistics.answered) == (2, 4)


def test_a_failing_step_fails_what_is_under_way_and_no_more(
    base: Base, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oppu.model.decode import Decoder

    def out_of_memory(self: Decoder, tokens: list[int]) -> torch.Tensor:
        raise RuntimeError("out of memory")

    engine = Engine(base, store.load_module)
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", out_of_memory)
        assert isinstance(ask_all(engine, [generation(None)])[0][1], Failed)
    assert ask_all(engine, [generation(None)])[0][1] == Done("length", 6)
    engine.close()


def test_a_module_in_use_is_never_replaced_and_the_oldest_other_one_is(
    base: Base, store: Store, records: list[ModuleRecord]
) -> None:
    loaded: list[str] = []

    def load(record: ModuleRecord) -> Module:
        loaded.append(record.user_id)
        return store.load_module(record)

    slots = Slots(base, load, 2)
    first, second = slots.take(records[0]), slots.take(records[1])
    assert {first, second} == {0, 1}
    assert slots.take(records[2]) is None
    assert slots.take(records[2]) is None
    assert loaded == ["u0", "u1"]  # nothing is read before there is room
    assert slots.take(records[0]) == first
    slots.give_back(0 if first == 0 else 1)
    assert slots.take(records[2]) is None  # taken twice, given back once
    assert second is not None
    slots.give_back(second)
    assert slots.take(records[2]) == second
    assert slots.take(records[0]) == first
    assert loaded == ["u0", "u1", "u2"]
    slots.close()


def test_a_question_whose_module_needs_another_bank_does_not_wait_for_ever(
    base: Base, store: Store, records: list[ModuleRecord]
) -> None:
    wide = put_user(store, base, "wide", MOOD, 9, rank=8)
    engine = Engine(base, store.load_module, EngineConfig(slots=4))
    asked = Example("wide", "q", "note: rain mood:", None)
    ended: queue.Queue[str] = queue.Queue()
    started = 0

    def go_on(event: Event) -> None:
        """As soon as one generation ends the next one is asked for: two are always under way, forty in all."""
        nonlocal started
        if isinstance(event, Piece):
            return
        ended.put("generation")
        if started < 40:
            started += 1
            engine.submit(generation(records[started % 2], 12), go_on)

    for record in records[:2]:
        started += 1
        engine.submit(generation(record, 12), go_on)
    said: queue.Queue[Event] = queue.Queue()
    engine.submit(Choice(wide, MOOD, asked, 512), lambda event: (said.put(event), ended.put("question")))
    assert isinstance(outcome(said)[1], Done)
    order = [ended.get(timeout=60) for _ in range(41)]
    assert order.index("question") < 10
    engine.close()


def test_a_module_in_use_is_wiped_only_when_it_has_been_given_back(
    base: Base, store: Store, records: list[ModuleRecord]
) -> None:
    slots = Slots(base, store.load_module, 1)
    slot = slots.take(records[0])
    assert slot is not None
    before = slots._bank.values[slot].clone()
    slots.wipe(records[:1])
    assert torch.equal(slots._bank.values[slot], before)
    assert slots.records == records[:1]
    slots.give_back(slot)
    slots.wipe(records[1:])
    assert slots.records == records[:1]
    slots.wipe(records[:1])
    assert slots.records == []
    assert not slots._bank.values.any()
    assert slots.take(records[0]) == slot
    assert torch.equal(slots._bank.values[slot], before)
    slots.close()


def test_nothing_of_a_wiped_module_is_left_that_decoding_had_prepared(
    base: Base, store: Store, records: list[ModuleRecord]
) -> None:
    slots = Slots(base, store.load_module, 1)
    slot = slots.take(records[0])
    assert slot is not None
    decoder = Decoder(base.model)
    decoder.admit([Prompt(0, slot, (40, 41, 42))])
    decoder.step([43])
    steps = slots._bank._lines.on_wipe[0].__self__
    stacks = [stack for pair in steps._stacked._stacks.values() for stack in pair]
    assert stacks
    assert all(bool(stack.any()) for stack in stacks)
    slots.give_back(slot)
    slots.wipe(records[:1])
    assert not any(bool(stack.any()) for stack in stacks)
    assert steps._stacked._stacks == {}
    slots.close()


def test_a_module_that_waits_for_a_slot_is_wiped_too(base: Base, store: Store, records: list[ModuleRecord]) -> None:
    wide = put_user(store, base, "wide", TITLE, 9, rank=8)
    slots = Slots(base, store.load_module, 2)
    slots.take(records[0])
    assert slots.take(wide) is None  # read, and waits for a bank of its rank
    assert slots.records == [records[0], wide]
    slots.wipe([wide])
    assert slots.records == records[:1]
    slots.close()


def test_a_module_that_does_not_fit_leaves_its_slot_empty(
    base: Base, store: Store, records: list[ModuleRecord]
) -> None:
    def load(record: ModuleRecord) -> Module:
        module = random_module(base, 1)
        if record.user_id != "u1":
            return module
        return Module(dict(list(module.tensors.items())[1:]), module.config)

    slots = Slots(base, load, 1)
    assert slots.take(records[0]) == 0
    slots.give_back(0)
    with pytest.raises(OppuError, match="is missing"):
        slots.take(records[1])
    with pytest.raises(OppuError, match="is missing"):
        slots.take(records[1])
    assert slots.take(records[0]) == 0
    slots.close()


def stream_text(text: str, stops: tuple[str, ...], strip: bool = False) -> tuple[list[str], bool]:
    tokenizer = tiny_tokenizer()
    stream = TextStream(tokenizer, stops, strip=strip)
    pieces = []
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.close()], stream.stopped


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_certain() -> None:
    assert stream_text("a END b", ("END",)) == (["a", " ", "", "", ""], True)
    assert stream_text("a EN", ("END",)) == (["a", " ", "", "", "EN"], False)
    assert stream_text("aab", ("ab",)) == (["", "a", ""], True)
    assert stream_text("xyz", ("yz", "xyzz")) == (["", "", "x"], True)


def test_a_stripped_answer_is_one_line_without_white_space_around_it() -> None:
    pieces, stopped = stream_text("\n  two words \nmore", ("\n",), strip=True)
    assert "".join(pieces) == "two words"
    assert stopped
    pieces, stopped = stream_text("  two  ", ("\n",), strip=True)
    assert "".join(pieces) == "two"
    assert not stopped


def test_a_letter_of_several_tokens_comes_out_whole() -> None:
    class Bytes:
        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return bytes(tokens).decode(errors="replace")

    stream = TextStream(Bytes(), (), strip=False)  # type: ignore[arg-type]
    assert [stream.push(byte) for byte in "aé€b".encode()] == ["a", "", "é", "", "", "€", "b"]
    assert stream.push("é".encode()[0]) == ""
    assert stream.close() == "\ufffd"


def test_top_p_keeps_the_likeliest_tokens_alone() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    drawn = {next_tokens(logits, [Sampling(1.0, 0.6, s)], [Sampling(seed=s).generator()], [[]])[0] for s in range(50)}
    assert drawn == {0, 1}
    drawn = {next_tokens(logits, [Sampling(1.0, 1.0, s)], [Sampling(seed=s).generator()], [[]])[0] for s in range(50)}
    assert drawn == {0, 1, 2}


def test_what_is_drawn_does_not_depend_on_neighbours() -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    rule = Sampling(1.0, 1.0, 3)
    alone = next_tokens(logits[:1], [rule], [rule.generator()], [[]])
    assert next_tokens(logits, [rule, rule], [rule.generator(), rule.generator()], [[], []])[:1] == alone
    assert next_tokens(logits, [rule, GREEDY], [rule.generator()] * 2, [[], []]) == [alone[0], int(logits[1].argmax())]


@pytest.mark.parametrize("rule", [GREEDY, Sampling(0.7, 0.9, 3), Sampling(1e-4, 1.0, 3)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_logits_that_are_no_numbers_give_no_token_and_their_neighbours_do(rule: Sampling, value: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    alone = next_tokens(logits[2:], [rule], [rule.generator()], [[]])
    logits[1] = value
    found = next_tokens(logits, [rule] * 3, [rule.generator() for _ in range(3)], [[]] * 3)
    assert (found[1] is not None) == (value == 3e38)
    assert found[2:] == alone


def test_a_tiny_base_has_the_end_token_of_its_tokenizer() -> None:
    assert tiny_tokenizer().eos_token_id == tiny_model().config.eos_token_id
