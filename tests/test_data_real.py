"""Real histories in the release's format, where they lie beside the project; skipped elsewhere."""

from pathlib import Path

import pytest

from oppu.data import check
from oppu.tasks import BUILT_IN

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no real histories beside the project")


@pytest.mark.parametrize(
    ("folder", "users", "queries", "base_users", "repeats"),
    [
        ("citation", 62, 310, 676, 0),
        ("news_categorize", 57, 417, 209, 0),
        ("movie_tagging", 23, 48, 278, 0),
        ("product_rating", 78, 229, 1309, 0),
        ("product_rating_long", 4, 80, 0, 0),
        ("news_headline", 63, 492, 458, 0),
        ("scholarly_title", 68, 340, 960, 4),
        ("tweet_paraphrase", 17, 168, 1234, 0),
    ],
)
def test_every_real_set_loads_whole(folder: str, users: int, queries: int, base_users: int, repeats: int) -> None:
    task = BUILT_IN[folder.removesuffix("_long")]
    checked = check(REAL / folder, task)
    everyone = (*checked.dataset.users, *checked.dataset.base_users)
    assert (len(checked.dataset.users), len(checked.dataset.base_users)) == (users, base_users)
    assert sum(len(user.queries) for user in checked.dataset.users) == queries
    assert all(query.gold for user in everyone for query in user.queries)
    assert all(task.form_for(item.fields) for user in everyone for item in user.history)
    assert all(a.time <= b.time for user in everyone for a, b in zip(user.history, user.history[1:], strict=False))
    expected = (f"history items that repeat another one to the letter, kept once: {repeats}",) if repeats else ()
    assert checked.notes == expected
