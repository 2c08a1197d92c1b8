"""Users -> profiles in the store. What was made from the same items in the same way is not made again.

A user's profiles are committed by themselves (counted ones some hundred users at a time), so an interrupted run goes
on where it stopped.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
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
    """Make each user's profiles and keep them in the store, those of a user together.

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
    while group := list(islice(remaining, _COUNTED_TOGETHER if writer is None else 1)):
        kept = {record.user_id: record for record in store.profiles(task.name, made, [user.id for user in group])}
        new: list[ProfileRecord] = []
        results: list[Described] = []
        for user in group:
            ordered = in_order(user.history)
            digest = items_digest(ordered)
            old = kept.get(user.id)
            if not ordered:
                results.append(Described(user.id, "no history"))
            elif old is not None and (old.how, old.items_digest) == (how, digest):
                results.append(Described(user.id, "kept"))
            else:
                try:
                    profiles = _profiles(task, ordered, writer, steps)
                except ModelError as error:
                    results.append(Described(user.id, "failed", f"user {user.id}: {error.line()}"))
                    continue
                ids = tuple(item.id for item in ordered)
                new.append(ProfileRecord(user.id, task.name, made, how, digest, ids, profiles))
                results.append(Described(user.id, "made"))
        store.put_profiles(new)
        yield from results


def _profiles(task: Task, ordered: Sequence[HistoryItem], writer: Writer | None, steps: int) -> tuple[Profile, ...]:
    if writer is None:
        counted = counted_profiles(task, ordered)
        if not counted:
            raise ModelError(f"none of the {len(ordered)} items has one of the task's labels as its answer")
        return counted
    sizes = cuts(len(ordered), steps)
    texts = write_profiles(task, ordered, sizes, writer)
    return tuple(Profile(text, ordered[size - 1].time, size) for text, size in zip(texts, sizes, strict=True))


def _how(task: Task, writer: Writer | None, steps: int) -> str:
    """Digest over everything that decides profiles besides the items."""
    asked = task.model_dump(mode="json", include={"kind", "labels", "history", "max_item_words", "max_shown_words"})
    decided: list[object]
    if writer is None:
        decided = [task.profile_count]
    else:
        decided = [task.profile_prompt, writer.fingerprint, writer.answer_tokens, writer.context, steps]
    return hashlib.sha256(json.dumps([_VERSION, asked, decided], sort_keys=True).encode()).hexdigest()
