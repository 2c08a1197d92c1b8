"""Many tasks in one module, against one module for each task.

Section 9 of the paper leaves this open for want of users with several tasks. Users of the same id in all data are one
person. Where there are fewer of them than asked for, the others are paired, the longest histories with the longest: a
made-up person whose tasks have nothing to do with each other, which makes one module's work no easier.

A person's questions of one task come after the history of that task, not after that of another. So of each history
only what is older than the newest item of every task is learnt, and nobody who is asked in one task adapts the base in
another. Nor does any item that holds the text of another task's question or answer: a paper's title is asked for in one
task and stands in the items of another.

All modules stand on one base, adapted to all tasks together on the tasks' held-out users.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oppu.errors import ConfigError, DataError
from oppu.evaluate.lab.answers import (
    NLL,
    Answer,
    gain,
    gain_columns,
    gain_values,
    measure_columns,
    measures_of,
    name_of,
    questions_of,
    scores_of,
)
from oppu.evaluate.lab.probe import Lesson, Probe
from oppu.evaluate.lab.trial import AdaptedBase, TrainingSettings, Trial, count, on_sample, open_trial
from oppu.evaluate.metrics import METRICS
from oppu.evaluate.reports.panels import Panel, Series, marks_of
from oppu.evaluate.reports.summary import number
from oppu.evaluate.study import STORE, Column, Outcome, Study, Table, Value, Workplace, option
from oppu.records import Example, User

BASE, OWN, OTHER, JOINT = "base", "one for each task", "the other tasks'", "one for all tasks"


@dataclass(frozen=True, slots=True)
class Settings:
    """Which tasks, whose, and how modules are trained; as in studies of one task."""

    task: tuple[str, ...] | None = option("Two or more tasks. [default: the two simulated sample tasks]", None)
    data: tuple[Path, ...] | None = option("Data of each task, in the same order; with --task.", None)
    base: str | None = option("Base model: the embedded one, a folder, or a name on the hub. [default: embedded]", None)
    users: int = option("Users, those with the longest histories over all tasks.", 4, least=1)
    newest: int = option("Train on the newest so many items of each task.", 20, least=1)
    adapt: bool = option("Adapt the base to the tasks first (section 2.2), to all of them together.", True)
    adapt_histories: bool = option("Use held-out users' histories as pairs, too.", True)
    adapt_pairs: int | None = option(
        "Pairs of each task to adapt on, drawn at random. [default: all; of the sample data 96]", None, least=1
    )
    adapt_epochs: int | None = option(
        "Passes over these pairs. [default: the base's; of the sample data 1]", None, least=1
    )
    bases: Path | None = option(
        "Folder of another such study, or a store: the base is taken over if it was adapted on the same.", None
    )
    epochs: int | None = option("Passes over a history. [default: the base's]", None, least=1)
    learning_rate: float | None = option("Highest learning rate. [default: the base's]", None, least=0.0)
    batch_size: int | None = option("Examples per optimizer step. [default: the base's]", None, least=1)
    rank: int | None = option("Rank of the modules. [default: the base's]", None, least=1)
    seed: int = option("Seed of every random choice.", 0, least=0)
    device: str = option("Where the base lies: auto (CUDA where there is one), cpu, cuda, cuda:1 or mps.", "auto")

    def of(self, place: int) -> TrainingSettings:
        """The settings of one task by itself, with all of its users."""
        given = asdict(self) | {"users": None}
        if self.task is None or self.data is None:
            return on_sample(TrainingSettings(**given), place)
        return TrainingSettings(**given | {"task": self.task[place], "data": self.data[place]})

    @property
    def tasks(self) -> int:
        """How many."""
        return 2 if self.task is None else len(self.task)


@dataclass(frozen=True, slots=True)
class _Person:
    """A user with all tasks."""

    id: str
    parts: tuple[User, ...]
    """In the order of the tasks."""
    is_real: bool = True
    """Not made up of a user of each task."""
    is_cut: bool = False
    """Whether all histories have dates, so that none goes on past another task's questions."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to answer one task's questions."""

    trial: Trial
    modules: str
    answers: tuple[Answer, ...]
    items: float
    """That a module has learnt, on average."""


def _run(settings: Settings, place: Workplace) -> Outcome:
    trials = _trials(settings, place)
    people = _people(trials, settings.users)
    ways = _measured(settings, place, trials, people)
    cut = sum(person.is_cut for person in people)
    measures = tuple(measure for kind in METRICS for measure in METRICS[kind] if _has(ways, measure))
    firsts = {NLL, *(METRICS[kind][0] for kind in METRICS)}
    rows: list[tuple[Value, ...]] = []
    for way in ways:
        scores = scores_of(way.trial.task, way.answers)
        base, own = (_find(ways, way.trial, name) for name in (BASE, OWN))
        over_base = gain(way.answers, base.answers) if way is not base else None
        over_own = gain(way.answers, own.answers) if way.modules in (OTHER, JOINT) else None
        rows.append(
            (
                way.trial.task.name,
                way.modules,
                way.items,
                *(scores.get(measure) for measure in (*measures, NLL)),
                *gain_values(over_base),
                *gain_values(over_own),
            )
        )
    return Outcome(
        found=tuple(_sentence(ways, trial) for trial in trials),
        panels=tuple(_panel(ways, trial) for trial in trials),
        table=Table(
            (
                Column("task", "Task"),
                Column("modules", "Modules"),
                Column("items", "Items of each", 1),
                *(replace(column, brief=column.name in firsts) for column in measure_columns((*measures, NLL))),
                *gain_columns("base", "base"),
                *gain_columns("own", "one for each"),
            ),
            tuple(rows),
        ),
        facts=_facts(settings, trials, people),
        notes=(
            "One for all tasks: a module of the same rank learns the items of all tasks, and so takes as many steps as "
            "the others together; a person has one module instead of one for each task. The other tasks': how a module "
            "answers that has learnt every task but the one asked."
            + _cut_note(cut, len(people))
            + _settings_note(trials),
            f"All modules stand on one base. {trials[0].base_note('to all tasks together')} Gains are of NLL; "
            "intervals: users resampled.",
        ),
        numbers={"people": [{"id": each.id, "users": [part.id for part in each.parts]} for each in people]},
    )


def _trials(settings: Settings, place: Workplace) -> list[Trial]:
    given = settings.task or ()
    if (settings.task is None) != (settings.data is None):
        flag, missing = ("--task", "--data") if settings.data is None else ("--data", "--task")
        raise ConfigError(f"{flag} needs {missing}", fix="give both, or neither for the sample tasks")
    if settings.task is not None and settings.data is not None and len(given) != len(settings.data):
        raise ConfigError(
            f"there are {count(len(given), 'task')} and {len(settings.data)} data", fix="give as many --data as --task"
        )
    if settings.tasks < 2:
        raise ConfigError("one task is in one module anyway", where="--task", fix="give two, such as A,B")
    trials = [open_trial(settings.of(number_), place) for number_ in range(settings.tasks)]
    names = [trial.task.name for trial in trials]
    if len(set(names)) < len(names):
        raise ConfigError(f"a task is given twice: {', '.join(names)}", where="--task", fix="give different tasks")
    return trials


def _people(trials: Sequence[Trial], wanted: int) -> list[_Person]:
    """Users of the same id in all tasks; where there are too few, the rest by the length of history."""
    users = [{user.id: user for user in trial.dataset.users} for trial in trials]
    common = set(users[0]).intersection(*users[1:])
    found = [_until_all(_Person(name, tuple(each[name] for each in users))) for name in common]
    found = [person for person in found if all(part.history for part in person.parts)]
    found.sort(key=lambda person: (-sum(len(part.history) for part in person.parts), person.id))
    found = found[:wanted]
    # open_trial gives the longest histories first
    rest = [[user for user in each.values() if user.id not in common] for each in users]
    pairs = [_Person("+".join(part.id for part in parts), parts, is_real=False) for parts in zip(*rest, strict=False)]
    found += pairs[: wanted - len(found)]
    if not found:
        raise DataError(
            ["the tasks have no users in common with items older than the newest of every task, and none to pair"],
            fix="use data with users for every task",
        )
    return [_without_asked(trials, person) for person in found]


def _without_asked(trials: Sequence[Trial], person: _Person) -> _Person:
    """The person without the items of one task that hold what another task asks."""
    from oppu.data import without_asked_texts

    parts: list[User] = []
    for trial, part in zip(trials, person.parts, strict=True):
        others = ((other, each) for other, each in zip(trials, person.parts, strict=True) if other is not trial)
        texts = [text for other, each in others for text in _texts(other, [each])]
        (left,) = without_asked_texts([replace(part, queries=())], texts)
        parts.append(replace(left, queries=part.queries))
    return replace(person, parts=tuple(parts))


def _texts(trial: Trial, users: Iterable[User]) -> list[str]:
    """What these users are asked, and what is asked for where that is no label."""
    queries = [query for user in users for query in user.queries]
    golds = [query.gold for query in queries if query.gold is not None] if trial.task.kind == "text" else []
    return [*golds, *(text for query in queries for text in query.fields.values())]


def _until_all(person: _Person) -> _Person:
    """One person's histories, each as far as it is older than the newest item of all; whole where one has no dates."""
    if not all(_is_dated(part) for part in person.parts):
        return person
    until = min(part.history[-1].time for part in person.parts)
    parts = (replace(p, history=tuple(item for item in p.history if item.time < until)) for p in person.parts)
    return replace(person, parts=tuple(parts), is_cut=True)


def _is_dated(user: User) -> bool:
    """Whether the times of a history are dates, not the items' places in it."""
    return bool(user.history) and [item.time for item in user.history] != list(range(len(user.history)))


def _measured(settings: Settings, place: Workplace, trials: Sequence[Trial], people: Sequence[_Person]) -> list[_Way]:
    """For each task: the base, its own modules, the others', and those of all tasks."""
    from oppu.examples import PLAIN, training_examples

    base = _adapted_to_all(settings, place, trials)
    probes = [Probe(trials[0]) for _ in range(2)]  # one keeps the modules of a task, one those of all
    tasks = range(len(trials))
    learnt = [
        [tuple(training_examples(t.task, p.parts[at], PLAIN, newest=settings.newest)) for p in people]
        for at, t in enumerate(trials)
    ]
    asked = [_asked(trial, people, at) for at, trial in enumerate(trials)]

    def way(at: int, modules: str, what: Sequence[int], probe: Probe) -> _Way:
        personal = trials[what[0] if what else at].recipe.personal
        items = [tuple(example for task in what for example in learnt[task][row]) for row in range(len(people))]
        lessons = [Lesson(p.id, items[row], asked[at][row]) for row, p in enumerate(people)]
        trial = trials[at]
        name = f"{trial.task.name}, {modules}"
        found = probe.answers(name, lessons, PLAIN, task=trial.task, base=base, personal=personal)
        return _Way(trial, modules, found.listed, sum(map(len, items)) / len(items))

    ways = [way(at, BASE, (), probes[0]) for at in tasks]
    for at in tasks:
        ways.append(way(at, OWN, (at,), probes[0]))
        # with two tasks, the module that has just answered its own is asked the other's
        if len(tasks) == 2:
            ways.append(way(1 - at, OTHER, (at,), probes[0]))
    if len(tasks) > 2:
        ways += [way(at, OTHER, [task for task in tasks if task != at], probes[0]) for at in tasks]
    ways += [way(at, JOINT, tasks, probes[1]) for at in tasks]
    order = (BASE, OTHER, OWN, JOINT)
    return sorted(ways, key=lambda each: (trials.index(each.trial), order.index(each.modules)))


def _cut_note(cut: int, people: int) -> str:
    """What keeps a module from seeing what came later than a question, and of whom."""
    if not cut:
        return ""
    who = "" if cut == people else f" of {cut} of {people} people"
    return (
        f" Of each history{who} only what is older than the newest item of every task is learnt, so that no module has "
        "seen what came later than a question."
    )


def _settings_note(trials: Sequence[Trial]) -> str:
    """Whose settings a module of several tasks has, where it matters."""
    if all(trial.recipe.personal == trials[0].recipe.personal for trial in trials):
        return ""
    return (
        " The base has other settings for each of the tasks: a module of several is trained with those of the first of "
        "them."
    )


def _asked(trial: Trial, people: Sequence[_Person], at: int) -> list[tuple[Example, ...]]:
    from oppu.examples import PLAIN

    parts = [person.parts[at] for person in people]
    found = questions_of(trial.task, parts, PLAIN)
    return [found[part.id] for part in parts]


def _adapted_to_all(settings: Settings, place: Workplace, trials: Sequence[Trial]) -> AdaptedBase:
    """The base adapted to all tasks together; made once and kept in the study's store."""
    from oppu.adapt import AdaptConfig, adapt_on, adaption_examples
    from oppu.data import without_asked_texts
    from oppu.examples import PLAIN
    from oppu.model.base import load_base
    from oppu.store import Store

    base = load_base(trials[0].base_name, device=settings.device)
    if not settings.adapt:
        return AdaptedBase(trials[0].base_name, base.fingerprint)
    config = AdaptConfig(trials[0].recipe.adapt, PLAIN, settings.adapt_histories, trials[0].settings.adapt_pairs)
    asked = {user.id for trial in trials for user in trial.dataset.users}
    examples: list[Example] = []
    for trial in trials:
        held_out = [user for user in trial.dataset.base_users if user.id not in asked]
        others = [text for other in trials if other is not trial for text in _texts(other, other.dataset.users)]
        examples += adaption_examples(trial.task, without_asked_texts(held_out, others), config)
    with Store((place.out / STORE).absolute()) as store:
        adapted = adapt_on(
            store,
            base,
            trials[0].task,
            examples,
            config,
            name="-and-".join(trial.task.name for trial in trials),
            made_in=settings.bases,
            on_progress=lambda done, total, _: place.on_stage("adapting the base to all tasks", done, total),
        )
        return AdaptedBase(str(store.base_folder(adapted.name)), adapted.fingerprint)


def _has(ways: Sequence[_Way], measure: str) -> bool:
    return any(measure in measures_of(way.trial.task, way.answers) for way in ways)


def _find(ways: Sequence[_Way], trial: Trial, modules: str) -> _Way:
    return next(way for way in ways if way.trial is trial and way.modules == modules)


def _facts(settings: Settings, trials: Sequence[Trial], people: Sequence[_Person]) -> str:
    titles = " and ".join(trial.task.title for trial in trials)
    who = f"{count(len(people), 'person')}" if len(people) == 1 else f"{len(people)} people"
    made_up = sum(not person.is_real for person in people)
    how = (
        f", {made_up} of them of users paired by the length of their histories" if made_up else ", each with all tasks"
    )
    return f"{titles}: {who}{how}; base {trials[0].base_name}; modules of the newest {settings.newest} items of a task."


def _panel(ways: Sequence[_Way], trial: Trial) -> Panel:
    these = [way for way in ways if way.trial is trial and way.modules != BASE]
    base = _find(ways, trial, BASE)
    gains = [gain(way.answers, base.answers) for way in these]
    ranges = tuple((each.value, each.value) if each.low != each.low else (each.low, each.high) for each in gains)
    series = Series("", tuple(map(float, range(len(these)))), tuple(each.value for each in gains), ranges)
    names = {OTHER: "other\ntasks'", OWN: "one for\neach task", JOINT: "one for\nall tasks"}
    draw = marks_of([series], [names[way.modules] for way in these], "NLL gain over base", level=0.0)
    return Panel(f"{trial.task.name}: gain by module", draw, "With 95 % intervals.")


def _sentence(ways: Sequence[_Way], trial: Trial) -> str:
    base, other, own, joint = (_find(ways, trial, name) for name in (BASE, OTHER, OWN, JOINT))
    over_own = gain(joint.answers, own.answers)
    first = measures_of(trial.task, base.answers)[0]
    listed = []
    for way, what in (
        (base, "base"),
        (other, "other task's module"),
        (own, "own module"),
        (joint, "module of all tasks"),
    ):
        scores = scores_of(trial.task, way.answers)
        listed.append(f"{what} {number(scores[first])} (NLL {number(scores[NLL])})")
    return (
        f"{trial.task.name}, {name_of(first)}: {', '.join(listed)}. All tasks in one against one for each: "
        f"NLL gain {over_own.told}."
    )


STUDY = Study(
    name="tasks",
    title="Many tasks in one module",
    summary="one module for all tasks of a user against one for each task, and the other task's",
    help="""Train one module on all tasks of a user and compare it with one module for each task, and with the modules
    of the other tasks.

    Example: `oppu study tasks --task movie_tagging,product_rating --data data/movies,data/ratings`""",
    source="Section 9",
    paper="Each user has one task, for want of data; the method is said to take any tasks and domains, which is left "
    "to future work.",
    settings=Settings,
    run=_run,
)
