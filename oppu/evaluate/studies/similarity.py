"""Similarities of users' modules (Figures 7 and 9, appendix B.1): heat maps and distributions, by task.

The paper compares parameters of LoRA. They depend on where each user's module began; so LoRA-XS modules of the same
users, which share their frozen halves, are compared as well (oppu/evaluate/lab/similarity.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oppu.errors import ConfigError
from oppu.evaluate.lab.trial import TrainingSettings, Trial, count, known, on_sample, open_trial
from oppu.evaluate.reports.panels import COLORS, Panel, legend_above
from oppu.evaluate.reports.summary import number
from oppu.evaluate.study import Column, Outcome, Study, Table, Value, Workplace, option
from oppu.records import Dataset

if TYPE_CHECKING:
    from oppu.evaluate.lab.similarity import Floats, Tensors

CORES, UPDATES, PARAMETERS = "cores", "updates", "parameters"
_WORDS = {CORES: "cores of LoRA-XS", UPDATES: "updates of LoRA", PARAMETERS: "parameters of LoRA"}


@dataclass(frozen=True, slots=True)
class Settings(TrainingSettings):
    """Which tasks are compared."""

    users: int | None = option("The users with the longest histories.", 8, least=2)
    other_task: str | None = option(
        "A second task, to compare with; without --task the two simulated sample tasks are compared.", None
    )
    other_data: Path | None = option("Its data; with --other-task.", None)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """How alike the modules of one task are."""

    trial: Trial
    users: tuple[str, ...]
    similarity: "dict[str, Floats]"
    """Of CORES, UPDATES and PARAMETERS, [N, N]."""

    @property
    def name(self) -> str:
        return self.trial.task.name

    @property
    def kind(self) -> str:
        """What the task's answers are, in words."""
        return {"label": "labels", "rating": "ratings", "text": "text"}[self.trial.task.kind]


def _run(settings: Settings, place: Workplace) -> Outcome:
    found = [_similarities(open_trial(each, place)) for each in _tasks(settings)]
    return Outcome(
        found=_sentences(found),
        panels=_panels(found),
        table=_table(found),
        facts=" ".join(each.trial.facts() for each in found),
        notes=_NOTES,
        numbers={"similarity": {each.name: {"users": each.users, **_listed(each)} for each in found}},
    )


def _tasks(settings: Settings) -> list[Settings]:
    """The settings for each task."""
    if (settings.other_task is None) != (settings.other_data is None):
        raise ConfigError("--other-task and --other-data belong together", fix="give both, or neither")
    if settings.other_task is not None and settings.task is None:
        raise ConfigError("--other-task needs --task", fix="give both tasks, or neither for the sample data")
    if settings.task == settings.other_task and settings.task is not None:
        raise ConfigError("--task and --other-task are the same", fix="use two tasks, or --task alone")
    if settings.task is None and settings.data is None:
        return [on_sample(settings, place) for place in (0, 1)]
    if settings.other_task is None:
        return [settings]
    return [settings, replace(settings, task=settings.other_task, data=settings.other_data, base_data=None)]


def _similarities(trial: Trial) -> _Found:
    """The users' modules without anything in their prompts, compared two by two."""
    from oppu.evaluate.lab.similarity import parameter_similarity, update_similarity
    from oppu.model.kinds import LoraConfig, LoraXsConfig

    users = [user for user in trial.dataset.users if user.history]
    if len(users) < 2:
        raise ConfigError("one user alone has nobody to be like", where=f"task {trial.task.name}", fix="use --users 8")
    # modules do not depend on the questions, so one of each user is asked
    asked = Dataset(tuple(replace(user, queries=user.queries[:1]) for user in users), trial.dataset.base_users)
    rank = trial.settings.rank if trial.settings.rank is not None else LoraConfig().rank
    modules = {}
    for config in (LoraConfig(rank, rank), LoraXsConfig(rank, rank)):
        personal = replace(trial.recipe.personal, module=config)
        ran = trial.run(f"{trial.task.name}-{config.kind}", ("oppu",), dataset=asked, personal=personal)
        modules[config.kind] = _modules(trial, ran.stores["oppu-k0"], [user.id for user in users])
    similarity = {
        CORES: parameter_similarity(modules["lora-xs"]),
        UPDATES: update_similarity(modules["lora"]),
        PARAMETERS: parameter_similarity(modules["lora"]),
    }
    return _Found(trial, tuple(user.id for user in users), similarity)


def _modules(trial: Trial, folder: Path, users: Sequence[str]) -> "list[Tensors]":
    from oppu.store import Store

    with Store(folder) as store:
        newest = {record.user_id: record for record in store.modules(task=trial.task.name, newest_only=True)}
        return [
            {name: tensor.float().numpy() for name, tensor in store.load_module(newest[user]).tensors.items()}
            for user in users
        ]


def _listed(found: _Found) -> dict[str, list[list[float]]]:
    return {
        name: [[round(float(each), 6) for each in row] for row in matrix] for name, matrix in found.similarity.items()
    }


def _panels(found: Sequence[_Found]) -> tuple[Panel, ...]:
    from oppu.evaluate.lab.similarity import of_pairs

    pairs = {what: {each.name: of_pairs(each.similarity[what]) for each in found} for what in _WORDS}
    ends = [float(edge) for values in pairs[CORES].values() for edge in (values.min(), values.max())]
    heats = [
        Panel(
            f"{each.trial.task.title}: {CORES}",
            _heat(each.similarity[CORES], each.users, min(ends), max(ends)),
            f"{count(len(each.users), 'user')}, longest histories first; of oneself nothing is shown.",
        )
        for each in found
    ]
    spreads = [Panel(f"Every two users: {words}", _distribution(pairs[what])) for what, words in _WORDS.items()]
    return (*heats, *spreads)


def _heat(similarity: "Floats", users: Sequence[str], low: float, high: float) -> Any:
    """Draws a matrix; users are named while they are few."""

    def draw(axes: Any) -> None:
        import numpy as np

        shown = np.where(np.eye(len(users), dtype=bool), np.nan, similarity)
        image = axes.imshow(shown, cmap="viridis", vmin=low, vmax=high if high > low else low + 1, interpolation="none")
        few = len(users) <= _NAMED
        axes.set_xticks(range(len(users)) if few else [], users if few else [], rotation=45, ha="right")
        axes.set_yticks(range(len(users)) if few else [], users if few else [])
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.9)
        bar.outline.set_visible(False)

    return draw


def _distribution(pairs: "dict[str, Floats]") -> Any:
    """Draws the similarities of pairs as lines over bins, each as a share of its task's pairs."""

    def draw(axes: Any) -> None:
        import numpy as np

        values = np.concatenate(list(pairs.values()))
        low, high = float(values.min()), float(values.max())
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        for (name, each), color in zip(pairs.items(), COLORS, strict=False):
            axes.hist(each, edges, weights=np.full(len(each), 1 / len(each)), histtype="step", color=color, label=name)
        axes.locator_params(axis="x", nbins=5)  # ticks such as −0.015 do not touch
        axes.set_xlabel("cosine similarity")
        axes.set_ylabel("share of pairs")
        legend_above(axes)

    return draw


_NAMED, _BINS = 20, 20


def _table(found: Sequence[_Found]) -> Table:
    from oppu.evaluate.lab.similarity import of_pairs, spread_interval

    columns = (
        Column("task", "Task"),
        Column("compared", "Compared"),
        Column("users", "Users"),
        Column("pairs", "Pairs", brief=False),
        Column("mean", "Mean", 3),
        Column("spread", "Spread", 3),
        Column("spread_low", "95 % from", 3, brief=False),
        Column("spread_high", "to", 3, brief=False),
        Column("least", "Least", 3),
        Column("greatest", "Greatest", 3),
    )
    rows: list[tuple[Value, ...]] = []
    for each in found:
        for what in _WORDS:
            pairs = of_pairs(each.similarity[what])
            ends = map(known, spread_interval(each.similarity[what]))
            numbers = (float(pairs.mean()), float(pairs.std()), *ends, float(pairs.min()), float(pairs.max()))
            rows.append((each.name, what, len(each.users), len(pairs), *numbers))
    return Table(columns, tuple(rows))


def _sentences(found: Sequence[_Found]) -> tuple[str, ...]:
    from oppu.evaluate.lab.similarity import of_pairs, spread_interval

    sentences = []
    for each in found:
        parts = []
        for what, words in _WORDS.items():
            pairs = of_pairs(each.similarity[what])
            parts.append(f"of {words} {number(pairs.mean())}, from {number(pairs.min())} to {number(pairs.max())}")
        sentences.append(f"{each.name} ({each.kind}): mean similarity {'; '.join(parts)}.")
    if len(found) > 1:
        for what, words in _WORDS.items():
            spreads = []
            for each in found:
                matrix = each.similarity[what]
                low, high = spread_interval(matrix)
                spread = number(of_pairs(matrix).std())
                spreads.append(f"{each.name} ({each.kind}) {spread} (95 % {number(low)} to {number(high)})")
            sentences.append(f"Spread over pairs, {words}: {' and '.join(spreads)}.")
    return tuple(sentences)


_NOTES = (
    "Parameters of LoRA: the mean over a module's tensors of their cosine similarity, as in the paper (appendix G). "
    "Half of the tensors (a) begin at random numbers, here each user's own, and move little, so they are unlike "
    "whatever the users do; from one beginning for all they would be alike. The paper does not say how its modules "
    "begin. Updates of LoRA: what a module adds to the base's weights (b a); it lies in the directions of "
    "a, and so is unlike, too.",
    "Cores of LoRA-XS: the cosine similarity of all parameters. They begin at zero, between frozen halves that are the "
    "same for all users, so that only what was learnt differs. The heat maps show these.",
    "Spread: the standard deviation over pairs; its interval is from drawing users with replacement, a user beside "
    "itself left out.",
)

STUDY = Study(
    name="similarity",
    title="Similarity of modules",
    summary="how alike users' modules are: heat maps and distributions",
    help="""Train modules for the users of one or two tasks and compare them two by two (Figures 7 and 9).

    Example: `oppu study similarity --out runs/out/similarity --users 6`""",
    source="Figures 7 and 9",
    paper="Of 100 users' modules for each task, similarities range from .4 to .7, highest in scholarly titles. In "
    "tasks with labels they vary more between pairs than in tasks with text, where they are rather uniform; the paper "
    "takes this to mean that preferences in text are harder to put into groups.",
    settings=Settings,
    run=_run,
)
