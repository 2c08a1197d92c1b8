"""Settings that belong to a base and a task."""

import pytest

from oppu.recipes import recipe_for
from oppu.tasks import BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_small_base_learns_slowly_from_histories_that_do_not_ask_the_tasks_question(name: str) -> None:
    recipe = recipe_for("smollm2-135m", BUILT_IN[name])
    slow = name in ("citation", "tweet_paraphrase")
    assert (recipe.personal.learning_rate, recipe.personal.epochs) == ((3e-4, 1) if slow else (3e-3, 3))
    assert (recipe.adapt.learning_rate, recipe.adapt.epochs) == (5e-4, 2)


def test_another_base_has_the_papers_settings_of_the_task() -> None:
    paper = BUILT_IN["tweet_paraphrase"].paper
    found = recipe_for("llama", BUILT_IN["tweet_paraphrase"]).personal
    assert (found.epochs, found.learning_rate, found.batch_size) == (
        paper.epochs,
        paper.learning_rate,
        paper.batch_size,
    )
