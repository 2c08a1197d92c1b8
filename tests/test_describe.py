"""Profiles from histories into the store and into prompts: nothing later than the prompt, and nothing made twice."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from conftest import tiny_model
from toys import COLOUR, MOTTO, REMARK, colour_user
from writers import ASKED, Parrot, chatting_base, marks

from oppu.describe.local import LocalWriter
from oppu.describe.stored import profiles_from, stored_profiles
from oppu.describe.users import Described, describe
from oppu.describe.writer import write_profiles
from oppu.errors import ConfigError, DataError, ModelError
from oppu.examples import Setting, query_examples, training_examples
from oppu.model.base import Base
from oppu.profiles import shown_profile
from oppu.profiles.timeline import Along, in_order
from oppu.records import HistoryItem, Profile, Query, User
from oppu.store import Store
from oppu.tasks import BUILT_IN, Task
from oppu.tasks.task import template_fields

TIMES = {
    "each later": tuple(map(float, range(9))),
    "some at once": (0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0),
    "all at once": (5.0,) * 9,
}
SHOWN = Setting(profile=True)


def marked_user(name: str, task: Task, times: Sequence[float]) -> User:
    """A user whose items each carry a mark of their own, in every field."""
    names = sorted(set().union(*(form.fields for form in task.history)))
    history = tuple(
        HistoryItem(f"{name}{n}", dict.fromkeys(names, f"{name}x{n}x " + "word " * 20), time)
        for n, time in enumerate(times)
    )
    question = dict.fromkeys(template_fields(task.prompt), "question")
    return User(name, history, (Query("now", "", question), Query("then", "", question, time=2.0)))


def statuses(
    store: Store, task: Task, users: Sequence[User], writer: Parrot | None = None, along: Along | None = None
) -> list[str]:
    return [result.status for result in describe(store, task, users, writer, along or Along())]


# no leak


@pytest.mark.parametrize("context", [10_000, 200], ids=["in one", "in parts"])
@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("task", BUILT_IN.values(), ids=lambda task: task.name)
def test_no_prompt_shows_a_profile_that_was_made_from_an_item_of_its_time_or_later(
    task: Task, when: str, context: int, folder_store: Store
) -> None:
    users = [marked_user(name, task, TIMES[when]) for name in ("ann", "bob")]
    writer = Parrot(context=context)
    assert statuses(folder_store, task, users, writer, along=Along(3)) == ["made", "made"]
    assert (len(writer.asked) > 6) == (context == 200)  # parts, and profiles of profiles
    profiles = stored_profiles(folder_store, task, users)
    for user in users:
        told = 0
        for item, example in zip(user.history, training_examples(task, user, SHOWN, profiles[user.id]), strict=True):
            own = (user.id, int(item.id.removeprefix(user.id)))
            earlier = {(user.id, n) for n, other in enumerate(user.history) if other.time < item.time}
            profile = [line for line in example.prompt.split("\n") if line.startswith("saw ")]
            assert marks("".join(profile)) <= earlier  # its own item, too, is none of them
            assert marks(example.prompt) <= earlier | {own}
            told += len(profile)
        assert (told > 0) == (when != "all at once")
        now, then = query_examples(task, user, SHOWN, profiles[user.id])
        assert marks(now.prompt) == {(user.id, n) for n in range(9)}
        assert marks(then.prompt) <= {(user.id, n) for n, item in enumerate(user.history) if item.time < 2.0}


def test_counted_profiles_change_from_prompt_to_prompt(folder_store: Store) -> None:
    user = replace(colour_user("ann", 5), history=tuple(
        HistoryItem(str(n), {"text": "thing", "colour": colour}, float(n))
        for n, colour in enumerate(("red", "blue", "blue", "red", "red"))
    ))  # fmt: skip
    assert statuses(folder_store, ASKED, [user]) == ["made"]
    profile = stored_profiles(folder_store, ASKED, [user])["ann"]
    shown = [example.prompt.split("\n")[0] for example in training_examples(ASKED, user, SHOWN, profile)]
    assert shown == [
        "thing: thing colour:",
        "mostly red",
        "mostly blue",
        "mostly blue",
        "mostly red",
    ]
    (question,) = query_examples(ASKED, user, SHOWN, profile)
    assert question.prompt.startswith("mostly red\n")


def test_a_profile_is_shown_to_later_prompts_alone_and_a_text_to_all() -> None:
    along = (Profile("one", 1.0, 1), Profile("two", 3.0, 2))
    shown = [shown_profile(along, time) for time in (0.5, 1.0, 1.5, 3.0, 3.5, None)]
    assert shown == [None, None, "one", "one", "two", "two"]
    assert [shown_profile(given, 0.0) for given in ("a text", None, ())] == ["a text", None, None]


def test_profiles_are_made_at_equal_distances_and_last_of_the_whole_history() -> None:
    assert [[span.stop for span in Along(4).spans(items)] for items in (0, 1, 2, 4, 10, 100)] == [
        [], [1], [1, 2], [1, 2, 3, 4], [3, 5, 8, 10], [25, 50, 75, 100],
    ]  # fmt: skip
    assert Along(1).spans(10) == (range(10),)


def test_profiles_may_tell_of_the_newest_items_before_their_place(folder_store: Store) -> None:
    assert Along(4, newest=3).spans(10) == (range(3), range(2, 5), range(5, 8), range(7, 10))
    user = marked_user("ann", ASKED, tuple(map(float, range(8))))
    writer = Parrot()
    assert statuses(folder_store, ASKED, [user], writer, Along(2, newest=3)) == ["made"]
    assert statuses(folder_store, ASKED, [user], writer, Along(2, newest=3)) == ["kept"]
    (record,) = folder_store.profiles(ASKED.name, writer.made, ["ann"])
    found = [(sorted(mark[-1] for mark in marks(each.text)), each.time, each.items) for each in record.profiles]
    assert found == [([1, 2, 3], 3.0, 3), ([5, 6, 7], 7.0, 3)]
    assert len(record.item_ids) == 8  # the history that they belong to
    assert statuses(folder_store, ASKED, [user], writer, Along(2)) == ["made"]  # another way to make them


# in parts


def test_a_history_that_is_too_long_is_taken_in_parts_which_its_profiles_share() -> None:
    user = marked_user("ann", ASKED, tuple(map(float, range(40))))
    writer = Parrot(context=320)
    (texts,) = write_profiles(ASKED, [(in_order(user.history), Along().spans(40))], writer)
    assert [len(marks(text)) for text in texts] == [10, 20, 30, 40]
    assert all("\n" not in text for text in texts)
    assert len(writer.asked) == len(set(writer.asked))
    assert len(writer.asked) < 25  # 40 items in parts of four or five, some profiles of these; and nothing twice


def test_an_item_that_is_too_long_by_itself_is_cut(folder_store: Store) -> None:
    long = HistoryItem("0", {"text": "annx0x " + "word " * 900, "colour": "red"}, 0.0)
    task = ASKED.model_copy(update={"max_shown_words": 10_000})
    ((text,),) = write_profiles(task, [((long,), (range(1),))], Parrot(context=200))
    assert marks(text) == {("ann", 0)}


def test_a_model_with_too_little_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model:parrot: a request and its answer leave 56 of .*, and 82 are needed"):
        write_profiles(ASKED, [(marked_user("ann", ASKED, (0.0,)).history, (range(1),))], Parrot(context=100))


# what is kept


def test_profiles_are_kept_with_their_items_and_made_again_only_where_something_changed(store: Store) -> None:
    users = [marked_user(name, ASKED, TIMES["each later"]) for name in ("ann", "bob")]
    writer = Parrot()
    assert statuses(store, ASKED, users, writer) == ["made", "made"]
    (record, _) = store.profiles(ASKED.name, "model:parrot")
    assert record.item_ids == tuple(f"ann{n}" for n in range(9))
    assert [(profile.items, profile.time) for profile in record.profiles] == [(3, 2.0), (5, 4.0), (7, 6.0), (9, 8.0)]
    asked = len(writer.asked)
    assert statuses(store, ASKED, users, writer) == ["kept", "kept"]
    assert len(writer.asked) == asked
    grown = replace(users[1], history=(*users[1].history, HistoryItem("new", {"text": "a", "colour": "red"}, 9.0)))
    assert statuses(store, ASKED, [users[0], grown], writer) == ["kept", "made"]
    for changed, other in (
        (replace(writer, fingerprint="parrot 2"), ASKED),
        (writer, ASKED.model_copy(update={"profile_prompt": "{history}?"})),
    ):
        assert statuses(store, other, users[:1], changed) == ["made"]
    assert statuses(store, ASKED, users[:1], writer, along=Along(2)) == ["made"]
    assert store.ways_of_profiles(ASKED.name) == ("model:parrot",)


@pytest.mark.parametrize("together", [1, 4, 9])
def test_a_user_for_whom_the_model_fails_is_named_and_the_others_go_on(folder_store: Store, together: int) -> None:
    users = [marked_user(name, ASKED, (0.0, 1.0)) for name in ("ann", "bob", "cid")]
    results = list(describe(folder_store, ASKED, users, Parrot(refuses="bobx1x", together=together)))
    assert [result.status for result in results] == ["made", "failed", "made"]
    assert results[1] == Described("bob", "failed", "user bob: parrot: it would not")
    assert [record.user_id for record in folder_store.profiles(ASKED.name)] == ["ann", "cid"]


@dataclass
class Slow(Parrot):
    """Answers at once 16 requests of together 800 tokens, and is interrupted at its third call."""

    calls: list[int] = field(default_factory=list)

    def at_once(self, tokens: int) -> int:
        return max(1, min(16, 800 // tokens))

    def write(self, requests: Sequence[str]) -> list[str]:
        if len(self.calls) == 2:
            raise KeyboardInterrupt
        self.calls.append(len(requests))
        return super().write(requests)


@pytest.mark.parametrize(
    ("items", "calls", "kept"), [(4, [16, 16], 8), (40, [4, 4], 2)], ids=["short histories", "long ones"]
)
def test_an_interruption_loses_the_users_of_one_batch(
    folder_store: Store, items: int, calls: list[int], kept: int
) -> None:
    users = [colour_user(f"u{n}", items) for n in range(9)]
    writer = Slow()
    with pytest.raises(KeyboardInterrupt):
        list(describe(folder_store, ASKED, users, writer))
    assert writer.calls == calls
    assert [record.user_id for record in folder_store.profiles(ASKED.name)] == [f"u{n}" for n in range(kept)]


def test_a_batch_is_filled_past_users_of_whom_there_is_nothing_to_ask(folder_store: Store) -> None:
    users = [colour_user(f"u{n}", 4) for n in range(8)]
    list(describe(folder_store, ASKED, users[:3], Parrot()))
    writer = Slow()
    found = [each.status for each in describe(folder_store, ASKED, [colour_user("new", 0), *users], writer)]
    assert found == ["no history", *["kept"] * 3, *["made"] * 5]
    assert writer.calls == [16, 4]


def test_a_user_without_items_or_without_anything_to_count_is_named(folder_store: Store) -> None:
    users = [colour_user("ann", 0), User("bob", (HistoryItem("0", {"text": "a", "colour": "grey"}, 0.0),))]
    results = list(describe(folder_store, ASKED, users))
    assert [result.status for result in results] == ["no history", "failed"]
    assert results[1].reason == "user bob: none of the 1 items has one of the task's labels as its answer"


def test_a_task_that_says_nothing_to_ask_is_refused(folder_store: Store) -> None:
    with pytest.raises(ConfigError, match=r"task colour has no profile_prompt with \{history\}"):
        list(describe(folder_store, COLOUR, [colour_user("ann", 2)], Parrot()))


# what is used


def test_a_profile_of_another_history_is_refused_and_one_of_a_shorter_history_is_not(folder_store: Store) -> None:
    user = colour_user("ann", 3)
    list(describe(folder_store, ASKED, [user, colour_user("bob", 3)]))
    later = HistoryItem("later", {"text": "a", "colour": "red"}, 7.0)
    grown = replace(user, history=(*user.history, later))
    assert stored_profiles(folder_store, ASKED, [grown, colour_user("new", 1)]).keys() == {"ann"}
    others = [
        replace(user, history=user.history[1:]),
        replace(user, history=(replace(later, time=-1.0), *user.history)),
        replace(user, history=(replace(user.history[0], time=0.5), *user.history[1:])),
        replace(user, history=(replace(user.history[0], fields={"text": "b", "colour": "red"}), *user.history[1:])),
    ]
    for other in others:
        with pytest.raises(DataError, match="the profile of user 'ann' was made from another history; run `oppu"):
            stored_profiles(folder_store, ASKED, [other])


@pytest.mark.parametrize("items", [(), (HistoryItem("0", {"text": "a", "colour": "grey"}, 0.0),)])
def test_profiles_of_items_that_are_gone_are_dropped_where_there_is_nothing_to_tell_any_more(
    folder_store: Store, items: tuple[HistoryItem, ...]
) -> None:
    ann, bob = colour_user("ann", 3), colour_user("bob", 3)
    list(describe(folder_store, ASKED, [ann, bob]))
    changed = replace(ann, history=items)
    with pytest.raises(DataError, match="made from another history; run `oppu"):
        stored_profiles(folder_store, ASKED, [changed, bob])
    list(describe(folder_store, ASKED, [changed, bob]))
    assert stored_profiles(folder_store, ASKED, [changed, bob]).keys() == {"bob"}


def test_a_profile_of_the_beginning_of_a_history_stays_where_no_newer_one_can_be_made(folder_store: Store) -> None:
    ann = colour_user("ann", 3)
    list(describe(folder_store, ASKED, [ann], Parrot()))
    grown = replace(ann, history=(*ann.history, HistoryItem("later", {"text": "a", "colour": "red"}, 7.0)))
    assert statuses(folder_store, ASKED, [grown], Parrot(refuses="a")) == ["failed"]
    assert stored_profiles(folder_store, ASKED, [grown]).keys() == {"ann"}


def test_which_profiles_are_meant_must_be_said_where_there_are_several(folder_store: Store) -> None:
    user = colour_user("ann", 3)
    with pytest.raises(ConfigError, match="there are no profiles of task colour; run `oppu profile` first"):
        profiles_from("store")(folder_store, ASKED, [user])
    list(describe(folder_store, ASKED, [user]))
    one = profiles_from("store")(folder_store, ASKED, [user])
    list(describe(folder_store, ASKED, [user], Parrot()))
    with pytest.raises(ConfigError, match="made in 2 ways: count, model:parrot; say which, for example --profiles"):
        profiles_from("store")(folder_store, ASKED, [user])
    assert profiles_from("store:count")(folder_store, ASKED, [user]) == one
    with pytest.raises(ConfigError, match="no profiles of task colour were made by 'hand'; use one of: count, model"):
        profiles_from("store:hand")(folder_store, ASKED, [user])


# by a base on this machine


def reference(base: Base, text: str, limit: int) -> str:
    """transformers' own greedy decoding."""
    import torch

    ids = torch.tensor([base.tokenizer(text, add_special_tokens=False).input_ids])
    model = tiny_model()
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=2
        )
    return str(base.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


def test_a_base_answers_requests_through_its_chat_template_as_transformers_does() -> None:
    base = chatting_base()
    requests = ["what?", "what colours, then?", "who?"]
    assert LocalWriter(base, 12).write(requests) == [reference(base, f"[{request}]>", 12) for request in requests]


def test_a_base_without_a_chat_template_gets_the_request_as_it_is(base: Base) -> None:
    assert LocalWriter(base, 12).write(["what?"]) == [reference(base, "what?", 12)]


def test_a_base_writes_profiles_of_histories_longer_than_itself(folder_store: Store) -> None:
    base = chatting_base()
    writer = LocalWriter(base, 20)
    assert sum(len(str(item.fields)) for item in colour_user("ann", 60).history) > base.max_tokens
    results = list(describe(folder_store, ASKED, [colour_user("ann", 60)], writer))
    assert [result.status for result in results] == ["made"], results
    (record,) = folder_store.profiles(ASKED.name)
    assert (record.made, len(record.profiles)) == ("model:tiny", 4)
    assert all(0 < writer.tokens(profile.text) <= 20 for profile in record.profiles)


def test_users_that_are_asked_for_together_have_the_profiles_that_each_has_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [colour_user(name, items) for name, items in (("ann", 60), ("bob", 5), ("cid", 0), ("dan", 9))]
    found = {}
    for together in (1, 99):
        writer = LocalWriter(chatting_base(), 20)
        monkeypatch.setattr(writer, "at_once", lambda tokens, together=together: together)
        with Store(tmp_path / str(together)) as store:
            found[together] = [
                [result.status for result in describe(store, ASKED, users, writer)],
                [(record.user_id, record.profiles) for record in store.profiles(ASKED.name)],
            ]
    assert found[1] == found[99]
    assert found[1][0] == ["made", "made", "no history", "made"]


def test_a_request_that_does_not_fit_is_refused(base: Base) -> None:
    with pytest.raises(ModelError, match="a request has 600 tokens, which with 12 to write is more than 512"):
        LocalWriter(base, 12).write(["x" * 600])


def test_texts_and_remarks_have_profiles_too(folder_store: Store) -> None:
    for task in (MOTTO, REMARK):
        asked = task.model_copy(update={"profile_prompt": "Sum up: {history}"})
        user = marked_user("ann", task, (0.0, 1.0))
        assert statuses(folder_store, asked, [user], Parrot()) == ["made"]
