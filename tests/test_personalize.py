"""From histories to modules in the store and to answers, whatever interrupts it."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, toy_examples
from store_samples import notes
from toys import COLOUR, FAST, MOTTO, REMARK, colour_user, colour_users, motto_user, tiny_base_folder

from oppu.errors import ModelError, StoreError, UnknownUserError
from oppu.examples import Setting
from oppu.model.bank import Bank
from oppu.model.base import Base, load_base, make_base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import Ia3Config, LoraConfig, ModuleConfig, PromptConfig
from oppu.model.module import WEIGHTS, Module
from oppu.personalize import (
    Personalized,
    Plan,
    answer_users,
    ask,
    longest_histories,
    personalize,
    setting_of,
    stored_module,
)
from oppu.records import HistoryItem, Query, User
from oppu.store import Store
from oppu.train import Job, Machine, Trained

PLAN = Plan(COLOUR, FAST)
SIZES = (5, 1, 3, 4)
SHORT_FORM = COLOUR.history[0].model_copy(update={"prompt": "{text}:"})
STRONG = replace(FAST, epochs=6, learning_rate=3e-2, module=LoraConfig(2, 4, targets=("down_proj", "o_proj", "v_proj")))
"""Enough to learn a habit."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def run(store: Store, base: Base, plan: Plan, users: Sequence[User], slots: int = 2) -> dict[str, Personalized]:
    """Everyone's result; nobody comes twice."""
    results = list(personalize(store, base, plan, users, machine=Machine(slots)))
    assert len({result.user_id for result in results}) == len(results)
    return {result.user_id: result for result in results}


def statuses(results: Mapping[str, Personalized]) -> dict[str, str]:
    return {user_id: result.status for user_id, result in sorted(results.items())}


def modules(store: Store) -> dict[str, Module]:
    """Each user's only module; it must be the first version."""
    records = store.modules()
    assert [record.version for record in records] == [1] * len(records)
    assert len({record.user_id for record in records}) == len(records)
    return {record.user_id: store.load_module(record) for record in records}


def assert_same(found: Mapping[str, Module], expected: Mapping[str, Module]) -> None:
    assert found.keys() == expected.keys()
    for user_id, module in expected.items():
        a, b = (torch.cat([m.tensors[n].flatten() for n in sorted(m.tensors)]) for m in (found[user_id], module))
        assert (a - b).norm() / b.norm() < 1e-4


def only_one_colour(name: str, colour: str) -> User:
    """A user to whom everything has one colour."""
    user = colour_user(name, 8, queries=3)
    return replace(
        user, history=tuple(replace(item, fields={**item.fields, "colour": colour}) for item in user.history)
    )


# training


def test_every_user_gets_a_module_and_a_record_of_how_it_was_made(store: Store, base: Base) -> None:
    users = colour_users(*SIZES)
    results = run(store, base, PLAN, users)
    assert statuses(results) == dict.fromkeys("abcd", "trained")
    assert modules(store).keys() == set("abcd")
    record = results["a"].record
    assert record is not None
    assert (record.task, record.setting, record.base_fingerprint) == ("colour", "plain", base.fingerprint)
    assert len(record.training["losses"]) == 3
    assert record.training["config"]["learning_rate"] == FAST.learning_rate
    assert store.history("a", "colour") == users[0].history


def test_the_same_command_again_trains_nobody(store: Store, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    users = colour_users(*SIZES)
    before = run(store, base, PLAN, users)
    monkeypatch.setattr("oppu.model.engine.answer_log_probs", lambda *_: pytest.fail("it trained"))
    after = run(store, base, PLAN, users)
    assert statuses(after) == dict.fromkeys("abcd", "kept")
    assert {u: r.record for u, r in after.items()} == {u: r.record for u, r in before.items()}


def test_how_many_users_are_trained_at_a_time_changes_no_module(base: Base, tmp_path: Path) -> None:
    found = []
    for slots in (1, 3, 16):
        with Store(tmp_path / str(slots)) as store:
            run(store, base, PLAN, colour_users(*SIZES), slots)
            found.append(modules(store))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_a_changed_history_trains_its_user_alone_as_the_next_version(store: Store, base: Base) -> None:
    run(store, base, PLAN, colour_users(*SIZES))
    results = run(store, base, PLAN, colour_users(5, 2, 3, 4))
    assert statuses(results) == {"a": "kept", "b": "trained", "c": "kept", "d": "kept"}
    assert [(r.user_id, r.version) for r in store.modules()] == [("a", 1), ("b", 1), ("b", 2), ("c", 1), ("d", 1)]
    assert len(store.history("b", "colour")) == 2


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, train=replace(FAST, learning_rate=2e-2)),
        replace(PLAN, train=replace(FAST, module=LoraConfig(rank=3, alpha=4))),
        replace(PLAN, train=replace(FAST, seed=1)),
        replace(PLAN, setting=Setting(k=1)),
        replace(PLAN, newest=1),
        replace(PLAN, task=COLOUR.model_copy(update={"history": (SHORT_FORM,)})),
    ],
    ids=["learning rate", "rank", "seed", "retrieval", "newest", "task"],
)
def test_changed_settings_train_again(store: Store, base: Base, plan: Plan) -> None:
    users = colour_users(3, 2)
    run(store, base, PLAN, users)
    assert statuses(run(store, base, plan, users)) == {"a": "trained", "b": "trained"}
    assert statuses(run(store, base, plan, users)) == {"a": "kept", "b": "kept"}


def test_settings_that_decide_nothing_keep_the_modules(store: Store, base: Base) -> None:
    users = colour_users(3, 2)
    run(store, base, PLAN, users)
    assert statuses(run(store, base, replace(PLAN, newest=99), users, slots=7)) == {"a": "kept", "b": "kept"}


def test_another_base_gets_modules_of_its_own(store: Store, base: Base, tmp_path: Path) -> None:
    users = colour_users(3)
    run(store, base, PLAN, users)
    other = load_base(str(tiny_base_folder(tmp_path / "other", seed=1)))
    assert other.fingerprint != base.fingerprint
    assert statuses(run(store, other, PLAN, users)) == {"a": "trained"}
    assert [record.version for record in store.modules()] == [1, 1]


def test_profiles_stand_in_the_prompts_and_a_changed_one_trains_again(store: Store, base: Base) -> None:
    plan, users = replace(PLAN, setting=Setting(profile=True)), colour_users(3, 3)
    for profiles, expected in (
        ({"a": "likes red", "b": "likes blue"}, "trained trained"),
        ({"a": "likes red", "b": "likes blue"}, "kept kept"),
        ({"a": "likes red", "b": "likes red"}, "kept trained"),
    ):
        results = {r.user_id: r for r in personalize(store, base, plan, users, profiles)}
        assert " ".join(statuses(results).values()) == expected


def test_a_user_with_one_item_trains_and_one_with_none_gets_the_base_and_it_is_said(store: Store, base: Base) -> None:
    nobody = colour_user("n", 0)
    results = run(store, base, PLAN, [nobody, *colour_users(1)])
    assert statuses(results) == {"a": "trained", "n": "no history"}
    assert results["n"].record is None
    assert store.history("n", "colour") == ()
    plain = answer_users(base, PLAN, [nobody], None)
    assert answer_users(base, PLAN, [nobody], store) == plain
    assert statuses(run(store, base, PLAN, [nobody])) == {"n": "no history"}


def test_texts_without_answers_train_too(store: Store, base: Base) -> None:
    user = User("t", tuple(HistoryItem(str(n), {"text": f"so late {n}"}, float(n)) for n in range(5)))
    for setting in (Setting(), Setting(k=1)):
        (result,) = personalize(store, base, Plan(REMARK, FAST, setting), [user])
        assert result.record is not None
        assert len(result.record.training["losses"]) == 3


def test_a_damaged_module_is_trained_again(store: Store, base: Base) -> None:
    users = colour_users(3, 2)
    record = run(store, base, PLAN, users)["a"].record
    assert record is not None
    whole = store.load_module(record)
    with (record.path / WEIGHTS).open("r+b") as file:
        file.truncate(100)
    assert statuses(run(store, base, PLAN, users)) == {"a": "trained", "b": "kept"}
    newest = stored_module(store, "a")
    assert newest.version == 2
    assert_same({"a": store.load_module(newest)}, {"a": whole})


def test_finished_users_are_not_kept_in_memory(store: Store, base: Base) -> None:
    users = (colour_user(f"u{number}", 2) for number in range(40))
    alive = []
    for result in personalize(store, base, PLAN, users, machine=Machine(4)):
        del result
        gc.collect()
        alive.append(sum(isinstance(thing, Job | Module | Trained | User) for thing in gc.get_objects()))
    assert len(alive) == 40
    assert max(alive[20:]) <= max(alive[:10])


# users that cannot be trained


def test_a_user_with_an_answer_that_does_not_fit_is_named_and_the_others_go_on(store: Store, base: Base) -> None:
    plan = replace(PLAN, train=replace(FAST, max_tokens=40))
    long = User("z", (HistoryItem("z-0", {"text": "x", "colour": "y" * 60}, 0.0),))
    found = run(store, base, plan, [long, *colour_users(2)], slots=1)
    assert {name: result.status for name, result in found.items()} == {"a": "trained", "z": "failed"}
    assert found["z"].reason.startswith("user z, item z-0: the answer has 62 tokens, more than fit into 40")
    assert modules(store).keys() == {"a"}


def test_a_user_whose_training_diverges_is_named_and_the_others_are_kept(store: Store, base: Base) -> None:
    found = run(store, base, Plan(COLOUR, replace(FAST, learning_rate=1e30, epochs=4)), colour_users(3))
    assert {result.status for result in found.values()} == {"failed"}
    assert found["a"].reason == "user a: the training diverged; lower the learning rate"
    assert not store.modules("a")
    assert {r.status for r in run(store, base, PLAN, colour_users(3)).values()} == {"trained"}


# interruptions


def test_an_interrupted_run_keeps_the_finished_and_the_next_call_trains_the_rest(base: Base, tmp_path: Path) -> None:
    users = colour_users(5, 1, 3, 4, 2, 6)
    with Store(tmp_path / "undisturbed") as store:
        run(store, base, PLAN, users)
        expected = modules(store)
    with Store(tmp_path / "interrupted") as store:
        results = personalize(store, base, PLAN, users, machine=Machine(2))
        first = next(results)
        results.close()
        assert modules(store).keys() == {first.user_id}
        again = run(store, base, PLAN, users)
        assert statuses(again) == {u.id: "kept" if u.id == first.user_id else "trained" for u in users}
        assert_same(modules(store), expected)


def test_a_base_that_was_let_go_by_an_interrupted_run_is_the_plain_base_again(store: Store, base: Base) -> None:
    before = answer_log_probs(base.model, list(rows_of(0, toy_examples(3, seed=0), 1000)))
    results = personalize(store, base, PLAN, colour_users(3, 3))
    next(results)
    results.close()
    assert torch.equal(answer_log_probs(base.model, list(rows_of(0, toy_examples(3, seed=0), 1000))), before)


KILLED = """
import sys, time
from pathlib import Path
from toys import COLOUR, FAST, colour_users
from oppu.model.base import load_base
from oppu.personalize import Plan, personalize
from oppu.store import Store
from oppu.train import Machine

users = colour_users(*map(int, sys.argv[3:]))
with Store(Path(sys.argv[1])) as store:
    base = load_base(sys.argv[2])
    wait = lambda _: time.sleep(0.05)
    for result in personalize(store, base, Plan(COLOUR, FAST), users, machine=Machine(3), on_progress=wait):
        print(result.user_id, flush=True)
"""


def test_a_run_that_is_killed_loses_nobody_and_trains_nobody_twice(base: Base, folder: Path, tmp_path: Path) -> None:
    sizes = (4, 1, 6, 3, 5, 2, 7, 4, 3, 6, 2, 5)
    users = colour_users(*sizes)
    place = tmp_path / "killed"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(place), str(folder), *map(str, sizes)]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline().strip() for _ in range(4)]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    with Store(place) as store:
        kept = set(modules(store))
        assert set(reported) <= kept < {user.id for user in users}
        again = run(store, base, PLAN, users)
        assert statuses(again) == {u.id: "kept" if u.id in kept else "trained" for u in users}
        found = modules(store)
        assert notes(store) == 0
    with Store(tmp_path / "undisturbed") as store:
        run(store, base, PLAN, users)
        assert_same(found, modules(store))


# answers


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

    def answer(base: Base, plan: Plan, users: Sequence[User], *_: object) -> dict[str, list[str]]:
        seen.append(plan.setting)
        return {users[0].id: ["red"]}

    monkeypatch.setattr("oppu.personalize.answer_users", answer)
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


def test_the_longest_histories_come_first_and_ties_by_id() -> None:
    users = colour_users(2, 5, 2, 7)
    assert [user.id for user in longest_histories(users, None)] == ["d", "b", "a", "c"]
    assert [user.id for user in longest_histories(users, 2)] == ["d", "b"]


def test_a_base_in_memory_and_one_in_a_folder_can_both_be_personalised(store: Store) -> None:
    memory = make_base("memory", tiny_model(), tiny_tokenizer())
    assert statuses(run(store, memory, PLAN, colour_users(2))) == {"a": "trained"}
