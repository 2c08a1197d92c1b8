"""A data set of the held-out users alone: settings are chosen on it, and no test question is looked at."""

from oppu.errors import DataError
from oppu.records import Dataset


def development_set(dataset: Dataset, count: int) -> Dataset:
    """The `count` held-out users with the longest histories as users, the other held-out users as base users.

    Longest first, ties by user id; only users with a history and a question. DataError where nobody would be left to
    adapt the base.
    """
    able = [user for user in dataset.base_users if user.history and user.queries]
    ordered = sorted(able, key=lambda user: (-len(user.history), user.id))
    chosen = tuple(ordered[:count])
    names = {user.id for user in chosen}
    others = tuple(user for user in dataset.base_users if user.id not in names)
    if not chosen or not others:
        raise DataError(
            [f"{len(able)} held-out users have a history and a question, too few to ask {count} and adapt on others"],
            fix="ask fewer with --develop, or give more held-out users",
        )
    return Dataset(chosen, others)
