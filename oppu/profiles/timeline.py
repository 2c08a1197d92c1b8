"""Profiles along a history: where they are made, and which of them a prompt may show.

A profile has the time of its newest item. A prompt of time t shows the newest profile of a time < t, so it never tells
of an item of time >= t, nor of the answer that is asked for; the caller has no choice in this.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from oppu.records import HistoryItem, UserProfile


def shown_profile(profile: UserProfile | None, before: float | None) -> str | None:
    """What a prompt of time `before` (None: later than the whole history) shows of a user's profile.

    One text, as files have it, is shown in every prompt: whoever wrote it answers for what it tells.
    """
    # differs from the paper: there the profile of the whole history is in training prompts, too, whose answers it tells
    if profile is None or isinstance(profile, str):
        return profile
    earlier = [each.text for each in profile if before is None or each.time < before]
    return earlier[-1] if earlier else None


def in_order(history: Sequence[HistoryItem]) -> tuple[HistoryItem, ...]:
    """The items by time, oldest first; those of one time stay as they are."""
    return tuple(sorted(history, key=lambda item: item.time))


@dataclass(frozen=True, slots=True)
class Along:
    """Where along a history a model writes profiles, and of how much of it each."""

    steps: int = 4
    """At most so many profiles: after each quarter of the items, where there are four."""
    newest: int | None = None
    """A profile tells of the newest so many items before its place; None: of all of them."""

    def __str__(self) -> str:
        told = "" if self.newest is None else f" of the newest {self.newest} items"
        return f"{self.steps} along a history{told}"

    def spans(self, items: int) -> tuple[range, ...]:
        """The places of the items that each profile is made from; the last ends with the history.

        They end after ceil(items * i / steps) for i = 1 ... steps: as many trained items between two profiles,
        whatever the dates.
        """
        ends = sorted({-(-items * step // self.steps) for step in range(1, self.steps + 1)} - {0})
        return tuple(range(0 if self.newest is None else max(0, end - self.newest), end) for end in ends)


WHOLE = Along()
"""Four of them, each of everything before its place."""


def items_digest(items: Sequence[HistoryItem]) -> str:
    """SHA-256 over the items, word by word, with ids and times."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.time, sorted(item.fields.items())]).encode() + b"\n")
    return digest.hexdigest()
