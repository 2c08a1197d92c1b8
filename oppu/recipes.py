"""Training settings that belong to a base model; of a task it counts only whether its histories ask its question.

Table 4 of the paper was made for Llama-2-7B; a base fifty times smaller needs larger steps. A base's settings are found
by its family's name; where they come from stands in `docs/log.md`.
"""

from dataclasses import dataclass, replace

from oppu.model.kinds import LoraConfig
from oppu.tasks import Task
from oppu.train import TrainConfig


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to adapt a base to a task, and how to train a user's module on it."""

    adapt: TrainConfig
    personal: TrainConfig


def recipe_for(family: str, task: Task) -> Recipe:
    """The settings of a base's family; for a family without its own, Table 4's."""
    small = _OWN.get(family)
    if small is None:
        return _paper(task)
    asks = any(form.prompt == task.prompt for form in task.history)
    return small if asks else replace(small, personal=replace(small.personal, epochs=1, learning_rate=_UNASKED_RATE))


def _paper(task: Task) -> Recipe:
    numbers = task.paper
    personal = TrainConfig(
        epochs=numbers.epochs,
        learning_rate=numbers.learning_rate,
        batch_size=numbers.batch_size,
        weight_decay=numbers.weight_decay,
        max_grad_norm=0.3,
        module=LoraConfig(rank=numbers.rank, alpha=8),
    )
    # the published code's settings for the base; the paper gives none
    return Recipe(replace(personal, epochs=3, learning_rate=1e-4, batch_size=16), personal)


_UNASKED_RATE = 3e-4
"""Of modules of a small base where no history form has the task's own prompt (tweets, citations), in one epoch: with
more they unlearn the task."""

_OWN = {
    "smollm2-135m": Recipe(
        adapt=TrainConfig(epochs=2, learning_rate=5e-4, batch_size=16, module=LoraConfig(rank=8, alpha=8)),
        personal=TrainConfig(epochs=3, learning_rate=3e-3, batch_size=8, module=LoraConfig(rank=8, alpha=8)),
    ),
}
