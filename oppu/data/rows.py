"""One's own data: rows of `.jsonl` or `.csv` files.

Columns: `user`; `time` (or `date`, ISO 8601; absent: the order of the rows), `id`, `split`; every other column is a
field. Splits: `history` (the default), `query`, and for held-out users `base` and `base_query`. Fields have the task's
own names, or `input` and `output`, which stand for the one thing asked and the one thing answered. A query's label is
its `output`, or the field that the task's history answers with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oppu.data.checks import answer_field, checked_users, list_shared_users
from oppu.data.files import read_rows
from oppu.data.problems import Place, Problems
from oppu.data.raw import UNREADABLE, RawItem, RawQuery, RawUser, Unreadable, fields_of, required_text, text_at
from oppu.records import Dataset
from oppu.tasks import Task
from oppu.tasks.task import template_fields

SUFFIXES = (".jsonl", ".csv")
SPLITS = ("history", "query", "base", "base_query")


@dataclass(frozen=True, slots=True)
class _Row:
    user: str
    split: str
    id: str | None
    time: str | None
    fields: Mapping[str, str]
    place: Place


def read_own(path: Path, task: Task, problems: Problems) -> Dataset:
    """The users of one file, or of all `.jsonl` and `.csv` files of a folder; problems are listed, not raised."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    rows = [row for file in files for row in _rows(file, problems)]
    if not rows:
        problems.add(Place(", ".join(file.name for file in files)), "no usable row; every row needs a 'user'")
    personal = _users(rows, "history", "query", task)
    base = _users(rows, "base", "base_query", task)
    list_shared_users(personal, base, problems)
    return Dataset(
        checked_users(personal, task, problems, need_history=True),
        checked_users(base, task, problems, need_labels=True),
    )


def _rows(file: Path, problems: Problems) -> Iterator[_Row]:
    for at, raw in read_rows(file, problems):
        user = required_text(raw, "user", at, problems)
        place = at if isinstance(user, Unreadable) else at.of_user(user)
        split = text_at(raw, "split", place, problems) if "split" in raw else "history"
        if split not in (*SPLITS, UNREADABLE):
            problems.add(place, f"unknown split '{split}'; use one of: {', '.join(SPLITS)}")
        identifier = required_text(raw, "id", place, problems) if "id" in raw else None
        if identifier:
            place = place.of_item(f"{'query' if split in ('query', 'base_query') else 'item'} '{identifier}'")
        time_column = "time" if "time" in raw else "date"
        time = text_at(raw, time_column, place, problems)
        fields = fields_of(raw, ("user", "split", "id", time_column), place, problems)
        if not isinstance(user, Unreadable):
            yield _Row(user, split or "", identifier or None, time, fields, place)


def _users(rows: Sequence[_Row], items: str, queries: str, task: Task) -> tuple[RawUser, ...]:
    of_user: dict[str, list[_Row]] = {}
    for row in rows:
        if row.split in (items, queries):
            of_user.setdefault(row.user, []).append(row)
    return tuple(
        RawUser(
            user,
            tuple(_item(row, n, task) for n, row in enumerate((r for r in own if r.split == items), start=1)),
            tuple(_query(row, n, task) for n, row in enumerate((r for r in own if r.split == queries), start=1)),
            Place(own[0].place.file, None, user),
        )
        for user, own in of_user.items()
    )


def _item(row: _Row, number: int, task: Task) -> RawItem:
    return RawItem(row.id or str(number), _item_fields(row.fields, task), row.time, row.place)


def _query(row: _Row, number: int, task: Task) -> RawQuery:
    answers = {name for form in task.history if (name := answer_field(task, form)) is not None}
    label = next((name for name in ("output", *sorted(answers)) if name in row.fields), None)
    fields = {name: text for name, text in row.fields.items() if name not in {"output", *answers}}
    gold = row.fields[label] if label is not None else None
    return RawQuery(row.id or f"{row.user}-{number}", _query_fields(fields, task), gold, row.time, row.place)


def _item_fields(fields: Mapping[str, str], task: Task) -> Mapping[str, str]:
    """`input` and `output` under the names of the first history form that they complete."""
    if task.form_for(fields) is not None:
        return fields
    for form in task.history:
        renamed = _renamed(fields, {"input": form.asked - set(form.plain), "output": template_fields(form.answer)})
        if form.fields <= renamed.keys():
            return renamed
    return fields


def _query_fields(fields: Mapping[str, str], task: Task) -> Mapping[str, str]:
    """`input` under the name of the one thing that the prompt asks for; a question in the benchmark's words stays."""
    asked = task.question_fields
    if asked <= fields.keys() or task.parse_query(fields.get("input", "")) is not None:
        return fields
    renamed = _renamed(fields, {"input": asked})
    return {**renamed, "input": fields["input"]} if "input" in fields else renamed


def _renamed(fields: Mapping[str, str], names: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """`fields` with the key of each of `names` renamed to its value, where that is one name and still free."""
    new = {old: next(iter(choice)) for old, choice in names.items() if len(choice) == 1}
    free = {old: name for old, name in new.items() if name not in fields}
    return {free.get(name, name): text for name, text in fields.items()}
