"""From histories to modules in the store and to answers, whatever interrupts it."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, toy_examples
from store_samples import module_folders, notes
from toys import COLOUR, FAST, REMARK, colour_user, colour_users, tiny_base_folder

from oppu import __version__
from oppu.answering import answer_users, stored_module
from oppu.errors import ConfigError, DataError
from oppu.examples import Setting
from oppu.model.base import Base, load_base, make_base
from oppu.model.forward import answer_log_probs, rows_of
from oppu.model.kinds import Ia3Config, LoraConfig
from oppu.model.module import WEIGHTS, Module
from oppu.personalize import Personalized, Plan, longest_histories, personalize, training_fingerprint
from oppu.records import HistoryItem, User
from oppu.scale.ledger import Ledger
from oppu.store import Store
from oppu.train import Job, Machine, Trained

PLAN = Plan(COLOUR, FAST)
SIZES = (5, 1, 3, 4)
SHORT_FORM = COLOUR.history[0].model_copy(update={"prompt": "{text}:"})


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


def test_users_with_ranks_of_their_own_get_the_modules_that_they_would_have_alone(
    store: Store, base: Base, tmp_path: Path
) -> None:
    users, ranks = colour_users(*SIZES), {"b": 5, "c": 1, "nobody": 3}
    results = run(store, base, replace(PLAN, ranks=ranks), users, slots=4)
    assert statuses(results) == dict.fromkeys("abcd", "trained")
    for user in users:
        rank = ranks.get(user.id, 2)
        shaped = replace(PLAN, train=replace(FAST, module=LoraConfig(rank, alpha=2 * rank)))
        with Store(tmp_path / user.id) as alone:
            run(alone, base, shaped, [user], slots=1)
            assert_same({user.id: modules(store)[user.id]}, modules(alone))
        assert modules(store)[user.id].config["r"] == rank
        record = results[user.id].record
        assert record is not None
        assert record.training["config"]["module"]["rank"] == rank
    again = run(store, base, replace(PLAN, ranks={"b": 5, "c": 3}), users)
    assert statuses(again) == {"a": "kept", "b": "kept", "c": "trained", "d": "kept"}


def test_ranks_of_modules_without_any_are_refused() -> None:
    with pytest.raises(ConfigError, match="'ia3' has no rank"):
        replace(PLAN, train=replace(FAST, module=Ia3Config()), ranks={"a": 2})


def test_another_precision_trains_again(store: Store, base: Base, folder: Path) -> None:
    users = colour_users(3)
    run(store, load_base(str(folder), dtype="bfloat16"), PLAN, users)
    assert statuses(run(store, base, PLAN, users)) == {"a": "trained"}
    assert statuses(run(store, base, PLAN, users)) == {"a": "kept"}


def test_float32_modules_of_before_precision_counted_are_still_kept(base: Base) -> None:
    given = hashlib.sha256(json.dumps([__version__, base.fingerprint, asdict(FAST)]).encode()).hexdigest()
    assert training_fingerprint(base, PLAN, []) == given


def test_a_user_who_is_given_again_while_under_way_is_named(store: Store, base: Base) -> None:
    first, other = colour_users(3, 2)
    with pytest.raises(DataError, match="user a is given twice"):
        run(store, base, PLAN, [first, other, colour_user("a", 4)], slots=4)


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


def test_a_user_whom_another_process_finishes_meanwhile_is_kept_and_put_once(
    store: Store, base: Base, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, others = store._place.write, [Store(store.folder)]

    def write_after_the_other(folders: Mapping[str, Mapping[str, bytes]]) -> None:
        write(folders)
        if others:  # it has not committed yet
            with others.pop() as other:
                assert statuses(run(other, load_base(str(folder)), PLAN, colour_users(3))) == {"a": "trained"}

    monkeypatch.setattr(store._place, "write", write_after_the_other)
    results = run(store, base, PLAN, colour_users(3))
    assert statuses(results) == {"a": "kept"}
    assert modules(store).keys() == {"a"}
    assert results["a"].record == stored_module(store, "a")
    assert module_folders(store) == [stored_module(store, "a").location]


def test_who_is_not_trained_is_told_of_before_the_next_user_is_read(store: Store, base: Base) -> None:
    run(store, base, PLAN, colour_users(*SIZES))
    read: list[str] = []

    def users() -> Iterator[User]:
        for user in [*colour_users(*SIZES), *(colour_user(f"n{number:03}", 0) for number in range(996))]:
            read.append(user.id)
            yield user

    results = personalize(store, base, PLAN, users(), machine=Machine(2))
    for number in range(1, 31):
        assert next(results).status == ("kept" if number <= len(SIZES) else "no history")
        assert len(read) == number
    results.close()


def test_a_worker_holds_no_more_users_than_it_trains_and_the_one_it_reads(store: Store, base: Base) -> None:
    ledger = Ledger([*colour_users(2, 2, 2), *(colour_user(f"n{number:02}", 0) for number in range(40))], 1)
    held: set[str] = set()
    most = 0

    def users() -> Iterator[User]:
        nonlocal most
        while (user := ledger.take(1)) is not None:
            held.add(user.id)
            most = max(most, len(held))
            yield user

    for result in personalize(store, base, PLAN, users(), machine=Machine(2)):
        assert ledger.settle(1, result.user_id)
        held.remove(result.user_id)
    assert ledger.is_done
    assert most == 2


def test_finished_users_are_not_kept_in_memory(store: Store, base: Base) -> None:
    users = (colour_user(f"u{number}", 2) for number in range(40))
    alive = []
    for result in personalize(store, base, PLAN, users, machine=Machine(4)):
        del result
        gc.collect()
        alive.append(sum(isinstance(thing, Job | Module | Trained | User) for thing in gc.get_objects()))
    assert len(alive) == 40
    assert max(alive[20:]) <= max(alive[:10])


def test_the_longest_histories_come_first_and_ties_by_id() -> None:
    users = colour_users(2, 5, 2, 7)
    assert [user.id for user in longest_histories(users, None)] == ["d", "b", "a", "c"]
    assert [user.id for user in longest_histories(users, 2)] == ["d", "b"]


def test_a_base_in_memory_and_one_in_a_folder_can_both_be_personalised(store: Store) -> None:
    memory = make_base("memory", tiny_model(), tiny_tokenizer())
    assert statuses(run(store, memory, PLAN, colour_users(2))) == {"a": "trained"}


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
