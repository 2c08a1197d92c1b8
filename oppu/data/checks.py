"""Raw users of any format -> Users, checked against the task: fields, labels, dates, duplicates, queries.

Every problem goes into `Problems`; what is returned is only worth something when there are none.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from oppu.data.problems import Place, Problems
from oppu.data.raw import Fields, Group, RawItem, RawQuery, RawUser
from oppu.data.times import seconds_since_1970
from oppu.records import HistoryItem, Query, User
from oppu.tasks import HistoryForm, Task
from oppu.tasks.task import template_fields


def checked_users(
    raw: Sequence[RawUser], task: Task, group: Group, problems: Problems, *, merge_repeats: bool, labelled: bool
) -> tuple[User, ...]:
    """The users of one group.

    merge_repeats: an item that repeats an earlier one to the letter, id included, is kept once and noted; published
    data have such items, and nobody can correct them there. Otherwise, and for any other repeated id: a problem.
    labelled: whether every query must have a label; one labelled query demands it of all.
    """
    _list_repeated(((user.id, user.place) for user in raw), "duplicate user; write all of a user's items together", problems)
    queries = [query for user in raw for query in user.queries]
    _list_repeated(((query.id, query.place) for query in queries), "duplicate query id", problems)
    if labelled or any(query.gold is not None for query in queries):
        for query in queries:
            if query.gold is None:
                problems.add(query.place, "query without a label")
    return tuple(_checked_user(user, task, group, problems, merge_repeats) for user in raw)


def list_shared_users(personal: Sequence[RawUser], base: Sequence[RawUser], problems: Problems) -> None:
    """A problem for each user in both groups: the base must not have seen the users that it is personalised for."""
    base_ids = {user.id for user in base}
    for user in personal:
        if user.id in base_ids:
            problems.add(user.place, "is also a base user; base users must be held out: leave the user in one group")


def _checked_user(raw: RawUser, task: Task, group: Group, problems: Problems, merge_repeats: bool) -> User:
    if not raw.items and group == "personal":
        problems.add(raw.place, "empty history; give the user at least one history item, or leave the user out")
    items = _without_repeats(raw.items, problems, merge_repeats)
    for item in items:
        _check_item(item, task, problems)
    history = _in_order(items, raw.place, problems)
    queries = tuple(_checked_query(query, task, problems) for query in raw.queries)
    if any(q.time is not None and history and q.time < history[-1].time for q in queries):
        problems.note("users with history items newer than one of their queries (the module will have seen them)")
    return User(raw.id, history, queries)


def _list_repeated(named: Iterable[tuple[str, Place]], what: str, problems: Problems) -> None:
    seen: set[str] = set()
    for identifier, place in named:
        if identifier in seen:
            problems.add(place, what)
        seen.add(identifier)


def _without_repeats(items: Iterable[RawItem], problems: Problems, merge_repeats: bool) -> list[RawItem]:
    kept: dict[str, RawItem] = {}
    for item in items:
        first = kept.setdefault(item.id, item)
        if first is item:
            continue
        same = (first.fields, first.date) == (item.fields, item.date)
        if same and merge_repeats:
            problems.note("history items that repeat another one to the letter (kept once)")
        else:
            problems.add(item.place, f"duplicate item id ({'the same' if same else 'another'} content); ids must differ")
    return list(kept.values())


# history


def _check_item(item: RawItem, task: Task, problems: Problems) -> None:
    values = item.fields.values
    form = task.form_for(values)
    if form is None:
        wanted = min((form.fields - values.keys() for form in task.history), key=len)
        problems.add(item.place, f"missing {_names(wanted)}")
        return
    empty = [name for name in form.fields - item.fields.unreadable if not values[name].strip()]
    if empty:
        problems.add(item.place, f"empty {_names(empty)}")
    answer = answer_field(task, form)
    if answer is not None and answer not in {*empty, *item.fields.unreadable}:
        _check_label(values[answer], task, item.place, problems)


def answer_field(task: Task, form: HistoryForm) -> str | None:
    """The field that holds the task's own answer, where the form asks the task's question; else None.

    A citation's history asks another question and tweets ask none: their answers are not the task's.
    """
    asked = template_fields(form.prompt)
    names = template_fields(form.answer)
    (name,) = names if len(names) == 1 else (None,)
    return name if asked == template_fields(task.prompt) and form.answer == f"{{{name}}}" else None


def _check_label(answer: str, task: Task, place: Place, problems: Problems) -> None:
    if task.labels and answer not in task.labels:
        kind = "rating" if task.kind == "rating" else "label"
        problems.add(place, f"'{answer}' is not a {kind} of task {task.name}; use one of: {', '.join(task.labels)}")


def _in_order(items: Sequence[RawItem], place: Place, problems: Problems) -> tuple[HistoryItem, ...]:
    undated = [item for item in items if item.date is None]
    if undated and len(undated) < len(items):
        for item in undated:
            problems.add(item.place, "has no date, others of this user have one; date all of a user's items or none")
    if undated:
        return tuple(HistoryItem(item.id, item.fields.values, float(n)) for n, item in enumerate(items))
    dated = [HistoryItem(item.id, item.fields.values, _time(item.date, item.place, problems) or 0.0) for item in items]
    return tuple(sorted(dated, key=lambda item: item.time))


def _time(date: str | None, place: Place, problems: Problems) -> float | None:
    if date is None:
        return None
    try:
        return seconds_since_1970(date)
    except (ValueError, OverflowError):
        problems.add(place, f"'{date}' is not a date; write 2018-03-02 or 2018-05-05T21:04:06 (ISO 8601)")
        return None


# queries


def _checked_query(raw: RawQuery, task: Task, problems: Problems) -> Query:
    if raw.gold is not None:
        if raw.gold.strip():
            _check_label(raw.gold, task, raw.place, problems)
        else:
            problems.add(raw.place, "empty label")
    fields = _question_parts(raw, task, problems)
    text = raw.fields.values.get("input") or task.search_text(fields)
    return Query(raw.id, text, fields, raw.gold, _time(raw.date, raw.place, problems))


def _question_parts(raw: RawQuery, task: Task, problems: Problems) -> dict[str, str]:
    """The fields that the task's prompt asks for: given as such, or cut out of `input` by the task's markers."""
    given = dict(raw.fields.values)
    needed = template_fields(task.prompt)
    if not needed <= given.keys() and "input" in given and "input" not in raw.fields.unreadable:
        parts = task.parse_query(given["input"])
        if parts is None and task.query_pattern:
            problems.add(raw.place, f"the query's text does not match the markers of task {task.name}; is it that task's?")
            return given
        given |= parts or {}
    _list_unasked(needed, given, raw, problems)
    return given


def _list_unasked(needed: Iterable[str], given: dict[str, str], raw: RawQuery, problems: Problems) -> None:
    missing = [name for name in needed if name not in given]
    empty = [name for name in needed if not given.get(name, "?").strip() and name not in raw.fields.unreadable]
    if missing and "input" not in raw.fields.unreadable:
        problems.add(raw.place, f"missing {_names(missing)}")
    if empty:
        problems.add(raw.place, f"empty {_names(empty)}")


def _names(fields: Iterable[str]) -> str:
    names = sorted(fields)
    return ("field " if len(names) == 1 else "fields ") + ", ".join(f"'{name}'" for name in names)


def file_name(path: Path) -> str:
    """How a file is called in a problem: the folder is named once, in front of all problems."""
    return path.name
