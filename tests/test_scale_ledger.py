"""The books of a run on many workers: everybody is trained once, whoever dies."""

import random

import pytest
from toys import colour_user, colour_users

from oppu.records import User
from oppu.scale.ledger import Ledger, Lost


def taken(ledger: Ledger, worker: int, most: int = 99) -> list[str]:
    """Whom a worker with free slots pulls."""
    users = []
    while len(users) < most and (user := ledger.take(worker)) is not None:
        users.append(user.id)
    return users


def test_users_are_given_out_in_order_and_once() -> None:
    ledger = Ledger(colour_users(5, 4, 3), 1)
    assert taken(ledger, 1) == ["a", "b", "c"]
    assert [ledger.settle(1, user) for user in "abc"] == [True] * 3
    assert ledger.is_done


def test_the_first_worker_leaves_the_others_their_share_of_the_items() -> None:
    ledger = Ledger(colour_users(6, 6, 3, 3, 3, 3), 2)
    assert taken(ledger, 1) == ["a", "b"]
    assert taken(ledger, 2) == ["c", "d", "e", "f"]


def test_users_without_items_count_too() -> None:
    ledger = Ledger(colour_users(0, 0, 0, 0), 2)
    assert (taken(ledger, 1), taken(ledger, 2)) == (["a", "b"], ["c", "d"])


def test_a_dead_workers_users_come_next_and_it_gets_nobody_any_more() -> None:
    ledger = Ledger(colour_users(5, 4, 3, 2), 1)
    assert taken(ledger, 1, 2) == ["a", "b"]
    assert ledger.lose(1).again == ("a", "b")
    assert taken(ledger, 1) == []
    assert taken(ledger, 2) == ["a", "b", "c", "d"]


def test_the_result_of_a_worker_that_was_taken_for_dead_does_not_count() -> None:
    ledger = Ledger(colour_users(5), 1)
    taken(ledger, 1)
    ledger.lose(1)
    assert not ledger.settle(1, "a")
    assert taken(ledger, 2) == ["a"]
    assert ledger.settle(2, "a")
    assert ledger.is_done


def test_users_with_whom_two_workers_died_are_trained_last_and_alone_and_at_last_given_up() -> None:
    ledger = Ledger(colour_users(5, 4, 3, 2), 1)
    for worker in (1, 2):
        assert taken(ledger, worker, 2) == ["a", "b"]
        assert ledger.lose(worker).given_up == ()
    assert taken(ledger, 3) == ["c", "d"]
    assert all(ledger.settle(3, user) for user in "cd")
    assert taken(ledger, 3) == ["b"]
    assert ledger.settle(3, "b")
    lost = []
    for worker in (3, 4, 5):
        assert taken(ledger, worker) == ["a"]
        lost.append(ledger.lose(worker).given_up)
    assert lost == [(), (), ("a",)]
    assert ledger.is_done


def test_a_user_who_is_always_alone_is_given_up_after_five_deaths() -> None:
    ledger = Ledger(colour_users(5), 1)
    lost = []
    for worker in range(5):
        assert taken(ledger, worker) == ["a"]
        lost.append(ledger.lose(worker).given_up)
    assert lost == [(), (), (), (), ("a",)]
    assert ledger.is_done


def test_deaths_for_want_of_the_store_count_against_nobody() -> None:
    ledger = Ledger(colour_users(5, 4, 3), 1)
    for worker in range(9):
        assert taken(ledger, worker, 2) == ["a", "b"]
        assert ledger.lose(worker, suspicious=False) == Lost(("a", "b"), ())
    assert taken(ledger, 10) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(30))
def test_everybody_is_settled_once_whatever_dies_when(seed: int) -> None:
    chance = random.Random(seed)
    users = [colour_user(f"u{number}", chance.randrange(9)) for number in range(chance.randrange(1, 40))]
    slots = chance.randrange(1, 6)
    ledger = Ledger(users, 3)
    settled: list[str] = []
    numbers = iter(range(10_000))
    held: dict[int, list[User]] = {next(numbers): [] for _ in range(3)}
    while not ledger.is_done:
        worker = chance.choice(list(held))
        act = chance.random()
        if act < 0.1:
            lost = ledger.lose(worker)
            assert sorted(lost.again + lost.given_up) == sorted(user.id for user in held.pop(worker))
            settled += lost.given_up
            held[next(numbers)] = []
        elif act < 0.6:
            if len(held[worker]) < slots and (user := ledger.take(worker)) is not None:
                held[worker].append(user)
        elif held[worker]:
            user = held[worker].pop(chance.randrange(len(held[worker])))
            assert ledger.settle(worker, user.id)
            settled.append(user.id)
        items = {number: sum(max(1, len(user.history)) for user in users) for number, users in held.items() if users}
        assert +ledger._leased_items == items
    assert sorted(settled) == sorted(user.id for user in users)
