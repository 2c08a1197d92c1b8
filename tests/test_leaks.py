"""No prompt of a whole experiment tells of a later item, of its own answer, or of another user.

What is looked at are the tokens that the model's body gets, in every stage and method: pairs of the task adaption,
pairs of the modules, questions. Markers in every text say whose it is and when it was written.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from alone import QUICK
from feeding import POSITIONS, Fed, Pieces, paths
from shell import done, rows
from toys import tiny_base_folder

from oppu import answering, examples
from oppu.data import read_dataset
from oppu.data.sample import sample_tasks
from oppu.describe.stored import stored_profiles
from oppu.describe.users import describe
from oppu.evaluate import experiment as module
from oppu.evaluate.design import Experiment
from oppu.evaluate.experiment import run
from oppu.model.kinds import LoraConfig
from oppu.profiles.timeline import Along
from oppu.records import Dataset, Example, HistoryItem, Query, User, UserProfile
from oppu.store import Store
from oppu.tasks import BUILT_IN, Task, task_from_toml
from oppu.train import TrainConfig

METHODS = ("base", "random", "rag", "oppu", "oppu+rag", "pag", "pag+rag", "oppu+pag", "oppu+pag+rag")
SETTINGS = TrainConfig(epochs=1, batch_size=8, max_tokens=POSITIONS, module=LoraConfig(rank=1, alpha=1))
QUERIES = 100
"""Queries count on from here, and items from 0: whose number is larger comes later."""
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
_MARK = re.compile(r"\b(in|out)(\d+)x(\d+)x\b")

Mark = tuple[str, int, int]
"""in or out (question or answer), user, number."""


def marks(text: str) -> list[Mark]:
    return [(kind, int(user), int(number)) for kind, user, number in _MARK.findall(text)]


@dataclass
class Echo:
    """Writes as a profile all markers that it was shown."""

    answer_tokens: int = 400
    context: int = 100_000
    together: int = 9
    fingerprint: str = "echo"
    made: str = "model:echo"
    asked: list[str] = field(default_factory=list)

    def tokens(self, text: str) -> int:
        return len(text.split())

    def at_once(self, tokens: int) -> int:
        return self.together

    def write(self, requests: Sequence[str]) -> list[str]:
        self.asked += requests
        return ["saw " + " ".join(match[0] for match in _MARK.finditer(request)) for request in requests]


@dataclass(frozen=True)
class Marked:
    """A sample task with a few users, everything marked; users of the task adaption have the higher numbers."""

    task: Task
    dataset: Dataset

    @property
    def everyone(self) -> tuple[User, ...]:
        return (*self.dataset.users, *self.dataset.base_users)

    @property
    def ending(self) -> str:
        """What stands between a question and its answer."""
        return self.task.prompt.rpartition("}")[2]

    def leaks(self, text: str) -> list[str]:
        """What a sequence tells that it must not."""
        head, asked, answer = text.rpartition(self.ending)
        *context, question = head.split("\n")
        own = marks(question)
        if not asked or len(own) != 1 or own[0][0] != "in":
            return [f"no question: {text}"]
        _, user, number = own[0]
        is_asked = number >= QUERIES and user < len(self.dataset.users)
        found = [("another user", mark) for mark in marks("\n".join(context)) if mark[1] != user]
        found += [("not earlier", mark) for mark in marks("\n".join(context)) if mark[1] == user and mark[2] >= number]
        if is_asked and self.task.kind == "text" and answer:
            found.append(("an answer to a question", ("out", user, number)))
        if not is_asked:
            found += [("another answer", mark) for mark in marks(answer) if mark != ("out", user, number)]
        return [f"{what} {mark}: {text}" for what, mark in found]


def marked(place: int) -> Marked:
    """Three users and two held-out ones of a sample task, six items and two questions each.

    Every answer of the label task is a label of its own.
    """
    sample = sample_tasks()[place]
    task = task_from_toml(sample.task)
    read = read_dataset(sample.data, task)
    people = [*read.users[:3], *read.base_users[:2]]
    users = [_marked(user, who) for who, user in enumerate(people)]
    if task.kind == "label":
        answers = [item.fields["output"] for user in users for item in user.history]
        golds = [str(query.gold) for user in users for query in user.queries]
        task = task.model_copy(update={"labels": (*answers, *golds)})
    return Marked(task, Dataset(tuple(users[:3]), tuple(users[3:])))


def _marked(user: User, who: int) -> User:
    def words(fields: Mapping[str, str], number: int) -> dict[str, str]:
        mark = {"input": f"in{who}x{number}x", "output": f"out{who}x{number}x"}
        return {name: f"{text} {mark[name]}" for name, text in fields.items() if name in mark}

    history = [HistoryItem(f"{who}-{n}", words(item.fields, n), float(n)) for n, item in enumerate(user.history[:6])]
    queries = []
    for number, query in enumerate(user.queries[:2], start=QUERIES):
        fields = words({**query.fields, "output": str(query.gold)}, number)
        gold = fields.pop("output")
        queries.append(Query(f"{who}-{number}", fields["input"], fields, gold, float(number)))
    return User(f"user{who}", tuple(history), tuple(queries))


def walked(
    case: Marked, place: Path, patch: pytest.MonkeyPatch, methods: Sequence[str] = METHODS, k: Sequence[int] = (1, 2, 4)
) -> tuple[set[str], Echo]:
    """Everything that is fed to the model in an experiment, and what wrote the profiles."""
    patch.setattr(module, "write_report", lambda *_: None)
    writer = Echo()
    with Store(place / "profiles") as store:
        list(describe(store, case.task, case.everyone, writer, Along(steps=3)))
        profiles = stored_profiles(store, case.task, case.everyone)
    # of the notes and subjects alone, so that a text from elsewhere would be seen
    texts = [case.task.prompt, "saw", *(text for user in case.everyone for text in _texts(user))]
    pieces = Pieces(texts)
    base = pieces.base_folder(place / "tiny")
    fed = Fed(patch)
    experiment = Experiment(case.task, tuple(methods), tuple(k), str(base), SETTINGS, SETTINGS)
    run(experiment, case.dataset, place / "out", profiles=profiles)
    return {pieces.text(sequence) for sequence in fed.sequences} - {""}, writer


def _texts(user: User) -> list[str]:
    texts = [text for item in user.history for text in item.fields.values()]
    return texts + [text for query in user.queries for text in (*query.fields.values(), str(query.gold))]


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1], ids=["labels", "texts"])
def test_nothing_that_is_fed_to_the_model_tells_what_it_must_not(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = marked(place)
    texts, writer = walked(case, tmp_path, monkeypatch)
    assert [leak for text in texts for leak in case.leaks(text)] == []
    # profiles: each request tells of one user, of whom no question was asked yet
    assert len(writer.asked) == 3 * len(case.everyone)
    for request in writer.asked:
        assert len({user for _, user, _ in marks(request)}) == 1
        assert all(number < QUERIES for *_, number in marks(request))
    # and everything was there to be looked at: each item and question, with 0, 1, 2 and 4 items and a profile above it
    seen = [(marks(text.rpartition(case.ending)[0])[-1], text.rpartition(case.ending)[0]) for text in texts]
    assert {own for own, _ in seen} == {mark for user in case.everyone for text in _texts(user) for mark in marks(text)
                                        if mark[0] == "in"}  # fmt: skip
    for user in range(len(case.dataset.users)):
        heads = [head for own, head in seen if own == ("in", user, QUERIES)]
        shown = {
            sum(line.startswith(case.task.prompt.split(" ")[0]) for line in head.split("\n")) - 1 for head in heads
        }
        assert shown == {0, 1, 2, 4}
        assert {head.startswith("saw ") for head in heads} == {True, False}


# The walk sees what it is meant to see: each of these mistakes is made on purpose.


def later_items(patch: pytest.MonkeyPatch) -> None:
    """The retriever knows the whole history, whatever the time."""
    retrieve = examples.HistoryIndex.retrieve
    patch.setattr(examples.HistoryIndex, "retrieve", lambda index, text, before: retrieve(index, text, None))


def one_moment_late(patch: pytest.MonkeyPatch) -> None:
    """Up to the time, and not before it."""
    retrieve = examples.HistoryIndex.retrieve
    slip = lambda index, text, before: retrieve(index, text, None if before is None else before + 1)  # noqa: E731
    patch.setattr(examples.HistoryIndex, "retrieve", slip)


def later_profiles(patch: pytest.MonkeyPatch) -> None:
    """The profile of the whole history stands in every prompt, as in the paper."""
    patch.setattr(examples, "shown_profile", lambda profile, before: profile[-1].text if profile else None)


def another_users_history(patch: pytest.MonkeyPatch) -> None:
    """Questions are answered with the history of the user before."""
    ask = answering.query_examples
    last: list[User] = []

    def mixed(task: Task, user: User, *rest: Any) -> list[Example]:
        last.append(user)
        return ask(task, replace(user, history=last[max(0, len(last) - 2)].history), *rest)

    patch.setattr(answering, "query_examples", mixed)


def gold_answers(patch: pytest.MonkeyPatch) -> None:
    """The question knows its answer."""
    ask = answering.query_examples

    def told(*given: Any) -> list[Example]:
        return [replace(example, prompt=f"{example.answer}\n{example.prompt}") for example in ask(*given)]

    patch.setattr(answering, "query_examples", told)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (later_items, "not earlier"),
        (one_moment_late, "not earlier"),
        (later_profiles, "not earlier"),
        (another_users_history, "another user"),
        (gold_answers, "not earlier"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_leak_made_on_purpose_is_seen(
    mistake: Callable[[pytest.MonkeyPatch], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = marked(1)
    mistake(monkeypatch)
    texts, _ = walked(case, tmp_path, monkeypatch, ("oppu+pag+rag",), (1,))
    assert [leak for text in texts for leak in case.leaks(text) if leak.startswith(words)]


def test_the_sequences_of_a_packed_row_are_read_off_its_depths() -> None:
    assert paths([7, 8, 9, 5, 6, 1, 2], [0, 1, 2, 1, 2, 0, 1]) == [(7, 8, 9), (7, 5, 6), (1, 2)]


# what several users train, and questions that are history items


def someone(user: str, split: str, *told: str) -> list[dict[str, Any]]:
    """Rows of a user: what is told, and one answered question, for files of one's own."""
    day = "2025-01-{:02d}".format
    asked = {"user": user, "time": day(20), "id": f"{user}-q", "split": "query", "input": f"{user} asks"}
    listed = [{"user": user, "time": day(n + 1), "id": f"{user}-{n}", "input": text} for n, text in enumerate(told)]
    found = [{**row, "split": split} for row in listed] + ([asked] if split == "history" else [])
    return [{**row, "output": "work"} for row in found]


def given(patch: pytest.MonkeyPatch, place: str) -> list[list[Example]]:
    """What goes through an `encode`, call by call."""
    from pkgutil import resolve_name

    found: list[list[Example]] = []
    encode: Callable[..., Any] = resolve_name(place)

    def watched(tokenizer: Any, listed: Sequence[Example], *rest: Any) -> Any:
        found.append(list(listed))
        return encode(tokenizer, listed, *rest)

    patch.setattr(place, watched)
    return found


@pytest.mark.parametrize(("name", "options"), [("cohorts", ("--sizes", "2")), ("finetuning", ("--rates", "0.001"))])
def test_users_who_learn_together_are_told_nothing_that_another_is_asked(
    name: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = someone("ann", "history", "soup", "a hut", "a ship", "a bell")
    people += someone("bob", "history", "soup", "a tree", "Ann  asks", "asks a lot")
    data = rows(tmp_path / "data.jsonl", *people)
    base = tiny_base_folder(tmp_path / "tiny")
    learnt = given(monkeypatch, "oppu.model.tokens.encode")
    task = ("--task", sample_tasks()[0].task, "--data", data)
    done("study", name, *task, "--base", base, "--out", tmp_path / "out", *QUICK, "--newest", "4", *options)
    together = [listed for listed in learnt if len({example.user_id for example in listed}) == 2]
    alone = [listed for listed in learnt if {example.user_id for example in listed} == {"bob"}]
    assert together
    assert alone
    assert not [e.prompt for listed in together for e in listed if "ann asks" in " ".join(e.prompt.lower().split())]
    assert all("bob-2" in {example.item_id for example in listed} for listed in alone)  # who did it has done it


def test_items_that_are_asked_do_not_adapt_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = someone("ann", "history", "soup", "a hut", "a ship", "a bell", "a cow")
    people += someone("x", "base", "soup", "a hut", "A BELL", "a cow", "ann asks")
    data = rows(tmp_path / "data.jsonl", *people)
    base = tiny_base_folder(tmp_path / "tiny")
    adapted_on = given(monkeypatch, "oppu.adapt.encode")
    task = ("--task", sample_tasks()[0].task, "--data", data)
    cut = ("--newest", "2", "--block", "1", "--blocks", "3", "--adapt-epochs", "1")
    done("study", "staleness", *task, "--base", base, "--out", tmp_path / "out", *QUICK[1:], *cut)
    assert [[example.item_id for example in listed] for listed in adapted_on] == [["x-0", "x-1"]]


# real histories


@dataclass(frozen=True)
class Shown:
    """What stands in one example's prompt, put together anew from templates and ids."""

    task: Task
    users: Mapping[str, User]
    profiles: Mapping[str, UserProfile]

    def problems(self, example: Example) -> list[str]:
        """Later items, other people's, and words that come from neither item nor template."""
        user = self.users[example.user_id]
        items = {item.id: item for item in user.history}
        query = next((query for query in user.queries if query.id == example.item_id), None)
        time = query.time if query is not None else items[example.item_id].time
        if strangers := [name for name in example.retrieved if name not in items]:
            return [f"{example.user_id} {example.item_id}: {strangers} are not the user's"]
        found = [f"{n} is not earlier" for n in example.retrieved if time is not None and items[n].time >= time]
        question = self._question(items.get(example.item_id), query)
        context = [self._shown(items[name]) for name in example.retrieved]
        told = [each.text for each in self.profiles.get(user.id, ()) if time is None or each.time < time]
        allowed = {"\n".join([*context, question])} | {"\n".join([text, *context, question]) for text in told[-1:]}
        if example.prompt not in allowed:
            found.append(f"another prompt than {allowed}: {example.prompt}")
        return [f"{example.user_id} {example.item_id}: {problem}" for problem in found]

    def _question(self, item: HistoryItem | None, query: Query | None) -> str:
        if query is not None:
            return self._filled(self.task.prompt, query.fields, self.task.max_item_words)
        assert item is not None
        form = next(form for form in self.task.history if form.fields <= item.fields.keys())
        return self._filled(form.prompt, item.fields, self.task.max_item_words)

    def _shown(self, item: HistoryItem) -> str:
        form = next(form for form in self.task.history if form.fields <= item.fields.keys())
        return self._filled(form.shown, item.fields, self.task.max_shown_words)

    @staticmethod
    def _filled(template: str, fields: Mapping[str, str], words: int) -> str:
        for name, text in fields.items():
            cut = text if len(text.split()) <= words else " ".join(text.split()[:words])
            template = template.replace("{" + name + "}", cut.replace("{", "\0"))
        return template.replace("\0", "{")


ON_REAL = pytest.mark.skipif(not REAL.is_dir(), reason="no real histories beside the project")


@dataclass(frozen=True)
class Walked:
    """A walk over real histories: what prompts were made of, and the texts that reached the model."""

    task: Task
    everyone: tuple[User, ...]
    shown: Shown
    trained: Sequence[Example]
    asked: Sequence[Example]
    texts: set[str]

    def problems(self) -> list[str]:
        """By ids and times, and then what reached the model besides: a question's own answer, for instance."""
        given = [*self.trained, *self.asked]
        found = [problem for example in given for problem in self.shown.problems(example)]
        known = {example.prompt for example in given}
        known |= {_joined(example.prompt, str(example.answer)) for example in self.trained}
        known |= {_joined(example.prompt, label) for example in self.asked for label in self.task.labels}
        return found + [f"fed, and nobody's prompt: {text}" for text in self.texts - known - {""}]


def walked_on_real(
    name: str, place: Path, patch: pytest.MonkeyPatch, methods: Sequence[str], k: Sequence[int]
) -> Walked:
    """Two users and a held-out one of a task's real histories."""
    task = BUILT_IN[name]
    read = read_dataset(REAL / name, task)
    users = tuple(_of_moderate_length(user) for user in read.users[:2])
    base_users = tuple(_of_moderate_length(user) for user in read.base_users[:1])
    everyone = (*users, *base_users)
    with Store(place / "profiles") as store:
        list(
            describe(
                store, task, everyone, None if task.profile_count else Echo(answer_tokens=4), Along(steps=3, newest=2)
            )
        )
        profiles = stored_profiles(store, task, everyone)
    told = [each.text for found in profiles.values() for each in found]
    templates = [task.prompt, *(text for form in task.history for text in (form.prompt, form.answer, form.shown))]
    pieces = Pieces([*templates, *told, *task.labels, *(text for user in everyone for text in _texts(user))])
    trained: list[Example] = []
    asked: list[Example] = []
    for owner, given in (("personalize", trained), ("adapt", trained), ("predict", asked)):
        patch.setattr(f"oppu.{owner}.encode", _watched(f"oppu.{owner}.encode", given))
    patch.setattr(module, "write_report", lambda *_: None)
    fed = Fed(patch)
    short = task.model_copy(update={"max_answer_tokens": 2})
    experiment = Experiment(
        short, tuple(methods), tuple(k), str(pieces.base_folder(place / "tiny")), SETTINGS, SETTINGS
    )
    run(experiment, Dataset(users, base_users), place / "out", profiles=profiles)
    shown = Shown(task, {user.id: user for user in everyone}, profiles)
    return Walked(task, everyone, shown, trained, asked, {pieces.text(sequence) for sequence in fed.sequences})


@pytest.mark.slow
@ON_REAL
@pytest.mark.parametrize("name", [task.name for task in BUILT_IN.values()])
def test_nothing_leaks_on_real_histories(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = walked_on_real(name, tmp_path, monkeypatch, ("random", "rag", "oppu", "oppu+pag+rag"), (1, 4))
    assert found.problems() == []
    given = [*found.trained, *found.asked]
    assert {example.user_id for example in given} == {user.id for user in found.everyone}
    assert {len(example.retrieved) for example in given} >= {0, 1, 4}
    assert len(found.texts) >= len({example.prompt for example in given}) / 2


@pytest.mark.slow
@ON_REAL
@pytest.mark.parametrize(
    ("mistake", "words"),
    [(later_items, "is not earlier"), (later_profiles, "another prompt"), (gold_answers, "another prompt")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_leak_made_on_purpose_is_seen_on_real_histories(
    mistake: Callable[[pytest.MonkeyPatch], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    found = walked_on_real("movie_tagging", tmp_path, monkeypatch, ("pag+rag",), (1,))
    assert [problem for problem in found.problems() if words in problem]


def _of_moderate_length(user: User) -> User:
    """Seven items and two questions; texts of at most 40 words, so that the walk is quick."""

    def short(fields: Mapping[str, str]) -> dict[str, str]:
        return {name: " ".join(text.split()[:40]) for name, text in fields.items()}

    history = tuple(replace(item, fields=short(item.fields)) for item in user.history[-7:])
    queries = tuple(replace(q, id=f"query {q.id}", fields=short(q.fields)) for q in user.queries[:2])
    return replace(user, history=history, queries=queries)


def _watched(place: str, given: list[Example]) -> Callable[..., Any]:
    """`encode`, which also tells what it is given."""
    from pkgutil import resolve_name

    encode: Callable[..., Any] = resolve_name(place)

    def encoded(tokenizer: Any, listed: Any, *rest: Any, **named: Any) -> Any:
        listed = list(listed)
        given.extend(listed)
        return encode(tokenizer, listed, *rest, **named)

    return encoded


def _joined(prompt: str, answer: str) -> str:
    return prompt + (" " if prompt and not prompt[-1].isspace() else "") + answer
