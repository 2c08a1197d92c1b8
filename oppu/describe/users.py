"""Users -> profiles in the store. What was made from the same items in the same way is not made again.

Profiles are committed a few users at a time (counted ones some hundred), so an interrupted run goes on where it
stopped.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from oppu.describe.writer import Writer, write_profiles
from oppu.errors import ModelError
from oppu.profiles.count import check_countable, counted_profiles
from oppu.profiles.request import check_askable
from oppu.profiles.timeline import cuts, in_order, items_digest
from oppu.records import HistoryItem, Profile, User
from oppu.store import ProfileRecord, Store
from oppu.tasks import Task

COUNT = "count"
"""What the store calls counted profiles."""
STEPS = 4
"""Profiles that a model writes along a history: after each quarter of the items."""

_VERSION = 1
"""Of how requests are made and answers counted; a change makes every profile anew."""
_COUNTED_TOGETHER = 500


@dataclass(frozen=True, slots=True)
class Described:
    """What became of a user."""

    user_id: str
    status: Literal["made", "kept", "no history", "failed"]
    """kept: the store had the profiles already; no history: there is nothing to tell of; failed: see `reason`."""
    reason: str = ""
    """Why there is no profile, in one line; the other users go on."""


def describe(
    store: Store, task: Task, users: Iterable[User], writer: Writer | None = None, steps: int = STEPS
) -> Iterator[Described]:
    """Make each user's profiles and keep them in the store, those of a user together, each user once.

    `writer`: the model that writes them, `steps` of them along a history; None: they are counted, as they stood after
    every item. ConfigError where the task does not say what to count, or what to ask.
    """
    if writer is None:
        check_countable(task)
    else:
        check_askable(task)
    made = COUNT if writer is None else writer.made
    how = _how(task, writer, steps)
    remaining = iter(users)
    while group := list(islice(remaining, _COUNTED_TOGETHER if writer is None else writer.together)):
        kept = {record.user_id: record for record in store.profiles(task.name, made, [user.id for user in group])}
        histories = {user.id: in_order(user.history) for user in group}
        digests = {user_id: items_digest(ordered) for user_id, ordered in histories.items() if ordered}
        old = {
            user_id
            for user_id, record in kept.items()
            if (record.how, record.items_digest) == (how, digests.get(user_id))
        }
        new = {user_id: histories[user_id] for user_id in digests if user_id not in old}
        made_now, failed = _made(task, new, writer, steps)
        store.put_profiles(
            [
                ProfileRecord(
                    user_id, task.name, made, how, digests[user_id], tuple(item.id for item in new[user_id]), profiles
                )
                for user_id, profiles in made_now.items()
            ]
        )
        for user in group:
            if user.id in failed:
                yield Described(user.id, "failed", f"user {user.id}: {failed[user.id]}")
            else:
                yield Described(user.id, "made" if user.id in new else "kept" if user.id in old else "no history")


def _made(
    task: Task, histories: Mapping[str, Sequence[HistoryItem]], writer: Writer | None, steps: int
) -> tuple[dict[str, tuple[Profile, ...]], dict[str, str]]:
    """Profiles of the users together, and of whom there is none, why."""
    if writer is not None and len(histories) > 1:
        try:
            return dict(zip(histories, _written(task, list(histories.values()), writer, steps), strict=True)), {}
        except ModelError:
            pass  # one of them spoils it for all, so each by itself
    found, failed = {}, {}
    for user_id, ordered in histories.items():
        try:
            if writer is None:
                found[user_id] = _counted(task, ordered)
            else:
                (found[user_id],) = _written(task, [ordered], writer, steps)
        except ModelError as error:
            failed[user_id] = error.line()
    return found, failed


def _counted(task: Task, ordered: Sequence[HistoryItem]) -> tuple[Profile, ...]:
    counted = counted_profiles(task, ordered)
    if not counted:
        raise ModelError(f"none of the {len(ordered)} items has one of the task's labels as its answer")
    return counted


def _written(
    task: Task, histories: Sequence[Sequence[HistoryItem]], writer: Writer, steps: int
) -> list[tuple[Profile, ...]]:
    asked = [(ordered, cuts(len(ordered), steps)) for ordered in histories]
    return [
        tuple(Profile(text, ordered[size - 1].time, size) for text, size in zip(texts, sizes, strict=True))
        for (ordered, sizes), texts in zip(asked, write_profiles(task, asked, writer), strict=True)
    ]


def _how(task: Task, writer: Writer | None, steps: int) -> str:
    """Digest over everything that decides profiles besides the items."""
    asked = task.model_dump(mode="json", include={"kind", "labels", "history", "max_item_words", "max_shown_words"})
    decided: list[object]
    if writer is None:
        decided = [task.profile_count]
    else:
        decided = [task.profile_prompt, writer.fingerprint, writer.answer_tokens, writer.context, steps]
    return hashlib.sha256(json.dumps([_VERSION, asked, decided], sort_keys=True).encode()).hexdigest()
