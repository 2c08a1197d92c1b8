"""Users -> profiles in the store. What was made from the same items in the same way is not made again.

Counted profiles are committed some hundred users at a time, a model's those of as many users as it answers at once, or
of one with a long history. So much is lost where a run is interrupted; the rest is kept.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from oppu.describe.stored import is_of
from oppu.describe.writer import Writer, first_requests, write_profiles
from oppu.errors import ModelError
from oppu.profiles.count import check_countable, counted_profiles
from oppu.profiles.request import check_askable
from oppu.profiles.timeline import WHOLE, Along, in_order, items_digest
from oppu.records import HistoryItem, Profile, User
from oppu.store import ProfileRecord, Store
from oppu.tasks import Task

COUNT = "count"
"""What the store calls counted profiles."""
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
    store: Store, task: Task, users: Iterable[User], writer: Writer | None = None, along: Along = WHOLE
) -> Iterator[Described]:
    """Make each user's profiles and keep them in the store, those of a user together, each user once.

    `writer`: the model that writes them, as `along` says; None: they are counted, as they stood after every item.
    ConfigError where the task does not say what to count, or what to ask.
    """
    if writer is None:
        check_countable(task)
    else:
        check_askable(task)
    made = COUNT if writer is None else writer.made
    how = _how(task, writer, along)
    remaining = iter(users)
    while group := list(islice(remaining, _COUNTED_TOGETHER if writer is None else writer.at_once(1))):
        kept = {record.user_id: record for record in store.profiles(task.name, made, [user.id for user in group])}
        histories = {user.id: in_order(user.history) for user in group}
        digests = {user_id: items_digest(ordered) for user_id, ordered in histories.items() if ordered}
        old = {
            user_id
            for user_id, record in kept.items()
            if (record.how, record.items_digest) == (how, digests.get(user_id))
        }
        new = {user_id: histories[user_id] for user_id in digests if user_id not in old}
        for portion in _portions(task, [user.id for user in group], new, writer, along):
            asked = {user_id: new[user_id] for user_id in portion if user_id in new}
            made_now, failed = _made(task, asked, writer, along)
            store.put_profiles(
                [
                    ProfileRecord(
                        user_id, task.name, made, how, digests[user_id], tuple(item.id for item in new[user_id]), each
                    )
                    for user_id, each in made_now.items()
                ]
            )
            untold = [user_id for user_id in portion if user_id in kept and user_id not in {*made_now, *old}]
            stale = [user_id for user_id in untold if not is_of(kept[user_id], histories[user_id])]
            if stale:  # what they tell of is gone
                store.drop_profiles(task.name, made, stale)
            for user_id in portion:
                if user_id in failed:
                    yield Described(user_id, "failed", f"user {user_id}: {failed[user_id]}")
                else:
                    yield Described(user_id, "made" if user_id in new else "kept" if user_id in old else "no history")


def _portions(
    task: Task,
    user_ids: Sequence[str],
    histories: Mapping[str, Sequence[HistoryItem]],
    writer: Writer | None,
    along: Along,
) -> Iterator[list[str]]:
    """The users in order, in portions whose requests the writer answers at once; one who asks for more is alone."""
    if writer is None:
        yield list(user_ids)
        return
    portion: list[str] = []
    asked: list[int] = []
    for user_id in user_ids:
        own = _request_tokens(task, histories[user_id], writer, along) if user_id in histories else []
        together = [*asked, *own]
        if asked and own and len(together) > writer.at_once(max(together)):
            yield portion
            portion, together = [], own
        portion.append(user_id)
        asked = together
    if portion:
        yield portion


def _request_tokens(task: Task, ordered: Sequence[HistoryItem], writer: Writer, along: Along) -> list[int]:
    return [writer.tokens(each) for each in first_requests(task, ordered, along.spans(len(ordered)), writer)]


def _made(
    task: Task, histories: Mapping[str, Sequence[HistoryItem]], writer: Writer | None, along: Along
) -> tuple[dict[str, tuple[Profile, ...]], dict[str, str]]:
    """Profiles of the users together, and of whom there is none, why."""
    if writer is not None and len(histories) > 1:
        try:
            return dict(zip(histories, _written(task, list(histories.values()), writer, along), strict=True)), {}
        except ModelError:
            pass  # one of them spoils it for all, so each by itself
    found, failed = {}, {}
    for user_id, ordered in histories.items():
        try:
            if writer is None:
                found[user_id] = _counted(task, ordered)
            else:
                (found[user_id],) = _written(task, [ordered], writer, along)
        except ModelError as error:
            failed[user_id] = error.line()
    return found, failed


def _counted(task: Task, ordered: Sequence[HistoryItem]) -> tuple[Profile, ...]:
    counted = counted_profiles(task, ordered)
    if not counted:
        raise ModelError(f"none of the {len(ordered)} items has one of the task's labels as its answer")
    return counted


def _written(
    task: Task, histories: Sequence[Sequence[HistoryItem]], writer: Writer, along: Along
) -> list[tuple[Profile, ...]]:
    asked = [(ordered, along.spans(len(ordered))) for ordered in histories]
    return [
        tuple(Profile(text, ordered[span[-1]].time, len(span)) for text, span in zip(texts, spans, strict=True))
        for (ordered, spans), texts in zip(asked, write_profiles(task, asked, writer), strict=True)
    ]


def _how(task: Task, writer: Writer | None, along: Along) -> str:
    """Digest over everything that decides profiles besides the items."""
    asked = task.model_dump(mode="json", include={"kind", "labels", "history", "max_item_words", "max_shown_words"})
    decided: list[object]
    if writer is None:
        decided = [task.profile_count]
    else:
        decided = [task.profile_prompt, writer.fingerprint, writer.answer_tokens, writer.context, along.steps]
        if along.newest is not None:
            decided.append(along.newest)
    return hashlib.sha256(json.dumps([_VERSION, asked, decided], sort_keys=True).encode()).hexdigest()
