"""LaMP's own files: `{split}_questions.json` and `{split}_outputs.json`, splits train, dev and test.

Questions: `[{id, input, profile: [{id, date?, …}]}]`, one user per question; outputs: `{task, golds: [{id, output}]}`.
The dev questions are the users to personalise for (their labels are public, test's are not); the train questions are
the held-out users. Without dev, test or the only split there is stands in for it.
"""

from collections.abc import Mapping
from pathlib import Path

from oppu.data.benchmark import named, profile_items, query, read_golds
from oppu.data.checks import checked_users
from oppu.data.files import list_of_objects, read_json
from oppu.data.problems import Place, Problems
from oppu.data.raw import RawUser, text_at
from oppu.records import Dataset, User
from oppu.tasks import Task

QUESTIONS = "_questions.json"
OUTPUTS = "_outputs.json"
SPLITS = ("dev", "test", "train")
"""The first that is there gives the users to personalise for."""


def read_lamp(path: Path, task: Task, problems: Problems) -> Dataset:
    """The users of a folder, or of one questions file alone; problems are listed, not raised."""
    files = {file.name.removesuffix(QUESTIONS): file for file in _question_files(path)}
    for split in sorted(files.keys() - set(SPLITS)):
        problems.add(Place(files[split].name), f"unknown split '{split}'; LaMP's splits are train, dev and test")
    known = [split for split in SPLITS if split in files]
    if not known:
        return Dataset(())
    base = files["train"] if "train" in known[1:] else None
    return Dataset(
        _users(files[known[0]], task, problems, are_base=False),
        _users(base, task, problems, are_base=True) if base is not None else (),
    )


def _question_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob(f"*{QUESTIONS}"))


def _users(questions: Path, task: Task, problems: Problems, *, are_base: bool) -> tuple[User, ...]:
    outputs = questions.with_name(questions.name.removesuffix(QUESTIONS) + OUTPUTS)
    golds = read_golds(outputs, problems) if outputs.exists() else None
    if are_base and not outputs.exists():
        problems.add(Place(outputs.name), f"no such file; the labels of {questions.name} belong there")
    value = read_json(questions, problems)
    if value is None:
        return ()
    place = Place(questions.name)
    entries = list_of_objects(value, "the file", place, problems)
    raw = [_user(entry, number, golds, place, problems) for number, entry in enumerate(entries, start=1)]
    return checked_users(
        raw, task, problems, need_history=not are_base, need_labels=golds is not None, merge_repeats=True
    )


def _user(
    raw: Mapping[str, object], number: int, golds: Mapping[str, str] | None, file: Place, problems: Problems
) -> RawUser:
    question, _ = named(raw, "id", "query", number, file, Problems())  # listed below, where the query is read
    identifier = text_at(raw, "user_id", file, problems) or question
    place = file.of_user(identifier)
    return RawUser(
        identifier, profile_items(raw, place, problems), (query(raw, number, golds, place, problems),), place
    )
