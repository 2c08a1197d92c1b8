"""Profiles by counting, where appendix J asks for what can be counted: exact, free, and anew for every item.

In: a task with a `profile_count`, and a history. Out: the profile as it stood after each item, wherever it changed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from oppu.errors import ConfigError
from oppu.profiles.timeline import in_order
from oppu.prompts import training_pair
from oppu.records import HistoryItem, Profile
from oppu.tasks import Task

NONE = "none"
"""Stands where there is nothing to count, such as the negative score of someone who gave none."""


def counted_profiles(task: Task, history: Sequence[HistoryItem]) -> tuple[Profile, ...]:
    """The profile of every beginning of the history, but for those that say the same as the one before.

    Items whose answer is none of the task's labels are passed over; where nothing is counted, there is no profile.
    The task must be one that `check_countable` lets pass.
    """
    ordered = in_order(history)
    tally = _Tally(task)
    found: list[Profile] = []
    for place, item in enumerate(ordered, start=1):
        tally.add(training_pair(task, item)[1].strip(), place)
        if place < len(ordered) and ordered[place].time == item.time:  # no prompt lies between the two
            continue
        text = tally.text()
        if text is not None and (not found or found[-1].text != text):
            found.append(Profile(text, item.time, place))
    return tuple(found)


def check_countable(task: Task) -> None:
    """ConfigError where the task's profiles are not a count."""
    if not task.profile_count:
        what = f"task {task.name} has no profile_count: its profiles cannot be counted"
        raise ConfigError(what, fix="use --by model, or add a profile_count to the task's file; see docs/profiles.md")


class _Tally:
    """How often each label was the answer so far, and where it was last."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._counts: Counter[str] = Counter()
        self._last: dict[str, int] = {}
        scale = [float(label) for label in task.labels] if task.kind == "rating" else []
        self._middle = (min(scale) + max(scale)) / 2 if scale else 0.0

    def add(self, answer: str, place: int) -> None:
        if answer in self._task.labels:
            self._counts[answer] += 1
            self._last[answer] = place

    def text(self) -> str | None:
        """The task's `profile_count`, filled in. A rating is positive above the middle of the scale, negative below."""
        if not self._counts:
            return None
        values = {"most_common": self._most_common(self._counts)}
        if self._task.kind == "rating":
            values["most_common_positive"] = self._most_common(x for x in self._counts if float(x) > self._middle)
            values["most_common_negative"] = self._most_common(x for x in self._counts if float(x) < self._middle)
        return self._task.profile_count.format_map(values)

    def _most_common(self, answers: Iterable[str]) -> str:
        """Of equally frequent ones the one that was given last."""
        return max(answers, key=lambda answer: (self._counts[answer], self._last[answer]), default=NONE)
