"""Profiles as they are made where nobody says how: counted where the task says what to count, else written by a model.

Histories and task in, profiles in the store and for the prompts out.
"""

import logging
from collections.abc import Callable, Sequence

from oppu.describe.local import LocalWriter
from oppu.describe.stored import stored_profiles
from oppu.describe.users import COUNT, describe
from oppu.describe.writer import ANSWER_TOKENS
from oppu.model.base import load_base
from oppu.model.devices import AUTO
from oppu.model.embedded import EMBEDDED
from oppu.profiles.request import check_askable
from oppu.profiles.timeline import WHOLE, Along
from oppu.records import Profile, User
from oppu.store import Store
from oppu.tasks import Task

_LOG = logging.getLogger("oppu.profiles")


def is_counted(task: Task) -> bool:
    """Whether the task's profiles are counted unless a model is named."""
    return bool(task.profile_count)


def default_way(task: Task) -> str:
    """What the store calls them: `count`, or the embedded model; ConfigError for a task that has no profiles."""
    if is_counted(task):
        return COUNT
    check_askable(task)
    return f"model:{EMBEDDED}"


def default_profiles(
    store: Store,
    task: Task,
    users: Sequence[User],
    along: Along = WHOLE,
    tokens: int = ANSWER_TOKENS,
    *,
    device: str = AUTO,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[Profile, ...]]:
    """Everyone's profiles, by user; what the store has is not made again. A user of whom none can be made has none.

    `along`, `tokens`: where a model writes them, and how long they may be; what is counted is counted after every item.
    """
    writer = None if is_counted(task) else LocalWriter(load_base(EMBEDDED, device=device), tokens)
    way = COUNT if writer is None else writer.made
    failed: set[str] = set()
    for done, described in enumerate(describe(store, task, users, writer, along), start=1):
        if described.status == "failed":
            _LOG.warning("there is no profile: %s", described.reason)
            failed.add(described.user_id)  # of whom the store may have one that was made otherwise
        on_progress(done, len(users))
    if way not in store.ways_of_profiles(task.name):
        return {}
    return stored_profiles(store, task, [user for user in users if user.id not in failed], way)
