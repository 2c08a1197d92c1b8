"""From modules in the store to answers: each user's own module, in its own setting, on its own base."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_personalize import PLAN, run
from toys import COLOUR, FAST, MOTTO, colour_user, colour_users, motto_user, tiny_base_folder

from oppu.answering import answer_users, ask, setting_of, stored_module
from oppu.errors import ModelError, StoreError, UnknownUserError
from oppu.examples import Setting
from oppu.model.bank import Bank
from oppu.model.base import Base, load_base
from oppu.model.kinds import Ia3Config, LoraConfig, ModuleConfig, PromptConfig
from oppu.model.module import WEIGHTS
from oppu.personalize import Plan, personalize
from oppu.records import Query, User
from oppu.store import Store
from oppu.train import Machine

STRONG = replace(FAST, epochs=6, learning_rate=3e-2, module=LoraConfig(2, 4, targets=("down_proj", "o_proj", "v_proj")))
"""Enough to learn a habit."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture
def store(folder_store: Store) -> Store:
    return folder_store


def only_one_colour(name: str, colour: str) -> User:
    """A user to whom everything has one colour."""
    user = colour_user(name, 8, queries=3)
    return replace(
        user, history=tuple(replace(item, fields={**item.fields, "colour": colour}) for item in user.history)
    )


def test_answers_with_modules_are_those_of_merged_weights(store: Store, base: Base, folder: Path) -> None:
    users = [only_one_colour(name, colour) for name, colour in zip("abc", COLOUR.labels, strict=True)]
    plan = Plan(COLOUR, STRONG)
    run(store, base, plan, users)
    found = answer_users(base, plan, users, store, machine=Machine(2))
    assert found == {user.id: [colour] * 3 for user, colour in zip(users, COLOUR.labels, strict=True)}
    for user in users:
        merged = load_base(str(folder))
        bank = Bank(merged.model, STRONG.module, 1)
        bank.load(0, store.load_module(stored_module(store, user.id)))
        bank.merge(0)
        assert answer_users(merged, plan, [user], None) == {user.id: found[user.id]}
    plain = answer_users(base, plan, users, None)
    assert plain != found


def test_texts_with_modules_are_those_of_merged_weights(store: Store, base: Base, folder: Path) -> None:
    users, plan = [motto_user("x", 6), motto_user("yyy", 6)], Plan(MOTTO, STRONG, Setting(k=1))
    run(store, base, plan, users)
    found = answer_users(base, plan, users, store)
    assert found["x"] != found["yyy"]
    for user in users:
        merged = load_base(str(folder))
        bank = Bank(merged.model, STRONG.module, 1)
        bank.load(0, store.load_module(stored_module(store, user.id)))
        bank.merge(0)
        assert answer_users(merged, plan, [user], None) == {user.id: found[user.id]}


def test_users_with_and_without_modules_are_answered_together(store: Store, base: Base) -> None:
    known, stranger = only_one_colour("a", "green"), colour_user("s", 4, queries=2)
    plan = Plan(COLOUR, STRONG)
    run(store, base, plan, [known])
    told: list[tuple[str, str, str]] = []
    found = answer_users(base, plan, [stranger, known], store, on_answer=lambda *news: told.append(news))
    assert found["a"] == ["green"] * 3
    assert found["s"] == answer_users(base, plan, [stranger], None)["s"]
    assert {(user, query): output for user, query, output in told} == {
        (user.id, query.id): output
        for user in (stranger, known)
        for query, output in zip(user.queries, found[user.id], strict=True)
    }
    assert len(told) == 5


def test_a_module_answers_in_its_own_rank_whatever_the_plan_says(store: Store, base: Base) -> None:
    user = only_one_colour("a", "blue")
    plan = Plan(COLOUR, replace(STRONG, module=replace(STRONG.module, rank=3, alpha=6)))
    run(store, base, plan, [user])
    assert answer_users(base, PLAN, [user], store) == answer_users(base, plan, [user], store)


@pytest.mark.parametrize("module", [Ia3Config(), PromptConfig(4)], ids=["ia3", "prompt"])
def test_every_kind_of_module_learns_and_answers(store: Store, base: Base, module: ModuleConfig) -> None:
    users = [only_one_colour(name, colour) for name, colour in zip("abc", COLOUR.labels, strict=True)]
    plan = Plan(COLOUR, replace(STRONG, module=module, learning_rate=0.1))
    for result in run(store, base, plan, users).values():
        assert result.record is not None
        losses = result.record.training["losses"]
        assert losses[-1] < losses[0]
    together = answer_users(base, plan, users, store, machine=Machine(3))
    assert together == {u.id: answer_users(base, plan, [u], store)[u.id] for u in users}
    assert together != answer_users(base, plan, users, None)


def test_a_damaged_module_is_not_answered_with(store: Store, base: Base) -> None:
    record = run(store, base, PLAN, colour_users(3))["a"].record
    assert record is not None
    with (record.path / WEIGHTS).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(StoreError, match=r"its files have \d+ bytes instead of \d+; restore it from an export, or"):
        answer_users(base, PLAN, colour_users(3), store)


def test_a_label_is_asked_with_the_users_module_and_history(store: Store, base: Base) -> None:
    plan = Plan(COLOUR, STRONG, Setting(k=1))
    users = [only_one_colour("a", "red"), only_one_colour("b", "green")]
    run(store, base, plan, users)
    for user, colour in (("a", "red"), ("b", "green")):
        assert ask(store, user, "my car") == colour
        assert ask(store, user, "Which colour? thing: my car", task=COLOUR, k=1) == colour
    asked = [replace(users[0], queries=(Query("q", "", {"text": "my car"}),))]
    assert [ask(store, "a", "my car", use_module=False)] == answer_users(base, plan, asked, None)["a"]


def test_a_text_is_asked_with_the_users_module_and_profile(store: Store, base: Base) -> None:
    plan = Plan(MOTTO, STRONG, Setting(profile=True))
    user = motto_user("x", 6)
    list(personalize(store, base, plan, [user], {"x": "brief"}))
    asked = [replace(user, queries=(Query("q", "", {"text": "sunday"}),))]
    expected = answer_users(base, plan, asked, store, {"x": "brief"})["x"]
    assert [ask(store, "x", "sunday", profile="brief")] == expected
    assert len(expected[0]) > 0


def test_a_question_goes_to_the_newest_module_or_to_the_one_of_that_k(
    store: Store, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = colour_user("a", 3)
    for setting in (Setting(k=2), Setting()):
        run(store, base, replace(PLAN, setting=setting), [user])
    seen: list[Setting] = []

    def answer(base: Base, plan: Plan, users: Sequence[User], *_: object, **__: object) -> dict[str, list[str]]:
        seen.append(plan.setting)
        return {users[0].id: ["red"]}

    monkeypatch.setattr("oppu.answering.answer_users", answer)
    assert ask(store, "a", "car") == ask(store, "a", "car", k=2) == "red"
    assert seen == [Setting(), Setting(k=2)]
    with pytest.raises(StoreError, match="user a has no such module"):
        ask(store, "a", "car", k=1)


def test_an_unknown_user_is_said_to_be_unknown_and_one_without_a_module_to_have_none(store: Store, base: Base) -> None:
    run(store, base, PLAN, [*colour_users(2), colour_user("n", 0)])
    with pytest.raises(UnknownUserError, match="unknown user 'nobody'; see `oppu modules list`"):
        ask(store, "nobody", "car")
    with pytest.raises(StoreError, match="user n has no such module"):
        ask(store, "n", "car")
    with pytest.raises(StoreError, match="user a has no such module"):
        stored_module(store, "a", version=2)
    assert store.users() == ("a", "n")


def test_a_module_is_not_used_on_another_base_of_the_same_name(store: Store, base: Base, tmp_path: Path) -> None:
    first, second = (tiny_base_folder(tmp_path / str(seed), seed) for seed in (0, 1))
    store.put_base("mine", base.fingerprint, first, {})
    list(personalize(store, replace(base, name="mine"), PLAN, colour_users(3)))
    assert ask(store, "a", "car") in COLOUR.labels
    store.put_base("mine", load_base(str(second)).fingerprint, second, {})
    with pytest.raises(ModelError, match=r"the module of user a was trained on another base .* personalize again"):
        ask(store, "a", "car")


def test_a_module_from_elsewhere_is_asked_in_the_setting_that_it_was_named_for(
    store: Store, base: Base, tmp_path: Path
) -> None:
    user = only_one_colour("a", "blue")
    plan = Plan(COLOUR, STRONG, Setting(k=1))
    run(store, base, plan, [user])
    whole = store.load_module(stored_module(store, "a"))
    with Store(tmp_path / "elsewhere") as other:
        other.put_history("a", "colour", user.history)
        record = other.put_module(
            whole,
            user_id="a",
            task="colour",
            setting="bm25-k1",
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            training={},
        )
        assert setting_of(record) == Setting(k=1)
        assert ask(other, "a", "car", task=COLOUR) == ask(store, "a", "car") == "blue"


@pytest.mark.parametrize("given", [{"setting": "bm25-k1"}, {"task": "colours"}])
def test_an_imported_module_answers_where_it_was_put_whatever_the_export_says(
    store: Store, base: Base, tmp_path: Path, given: dict[str, str]
) -> None:
    user = only_one_colour("a", COLOUR.labels[2])
    run(store, base, Plan(COLOUR, STRONG), [user])
    store.export_module(stored_module(store, "a"), tmp_path / "export")
    with Store(tmp_path / "other") as other:
        record = other.import_module(tmp_path / "export", user_id="b", base_name=base.name, **given)
        task = COLOUR.model_copy(update={"name": record.task})
        other.put_history("b", task.name, user.history)
        assert setting_of(record) == Setting.named(record.setting)
        asked = user.queries[0].input
        assert ask(other, "b", asked, task=task) == COLOUR.labels[2]
        assert ask(other, "b", asked, task=task, use_module=False) != COLOUR.labels[2]
