"""Raw users of any format -> Users, checked against the task: fields, labels, dates, duplicates, queries.

Every problem goes into `Problems`; what is returned is only worth something when there are none.
"""

from collections.abc import Iterable, Mapping, Sequence

from oppu.data.problems import Place, Problems
from oppu.data.raw import RawItem, RawQuery, RawUser, Unreadable
from oppu.data.times import seconds_since_1970
from oppu.records import HistoryItem, Query, User
from oppu.tasks import HistoryForm, Task
from oppu.tasks.task import template_fields

_FEW = 10
"""Up to so many items or queries, each gets its own problem even where none fits the task."""


def checked_users(
    raw: Sequence[RawUser],
    task: Task,
    problems: Problems,
    *,
    need_history: bool = False,
    need_labels: bool = False,
    merge_repeats: bool = False,
) -> tuple[User, ...]:
    """The users, each checked by itself and against the others.

    need_labels: every query must have a label; one labelled query demands it of all anyway.
    merge_repeats: an item that repeats an earlier one to the letter, id included, is kept once and noted: published
    data have such items, and nobody can correct them there. Every other repeated id is a problem.
    Data of another task altogether are one problem, not one for each item.
    """
    stranger = _sign_of_another_task(raw, task)
    if stranger is not None:
        problems.add(Place(raw[0].place.file), f"{stranger} of task {task.name}; are these another task's data?")
        return ()
    _list_repeated(((user.id, user.place) for user in raw), "duplicate user; put a user's data together", problems)
    queries = [query for user in raw for query in user.queries]
    _list_repeated(((query.id, query.place) for query in queries), "duplicate query id", problems)
    if need_labels or any(query.gold is not None for query in queries):
        for query in queries:
            if query.gold is None:
                problems.add(query.place, "query without a label")
    return tuple(_checked_user(user, task, problems, need_history, merge_repeats) for user in raw)


def list_shared_users(personal: Sequence[RawUser], base: Sequence[RawUser], problems: Problems) -> None:
    """A problem for each user of both groups: the base must not have seen a user that it is personalised for."""
    base_ids = {user.id for user in base}
    for user in personal:
        if user.id in base_ids:
            problems.add(user.place, "is a base user too, but those are held out; leave the user in one of the groups")


def answer_field(task: Task, form: HistoryForm) -> str | None:
    """The item field that answers the task's own question; None where the history asks another one, or none.

    A citation's history asks another question, tweets ask none, and in plain words the answer is the question's own
    field: their answers are not the task's.
    """
    names = template_fields(form.answer)
    if len(names) != 1 or form.plain or form.asked != task.question_fields:
        return None
    (name,) = names
    return name if form.answer == f"{{{name}}}" else None


def _sign_of_another_task(raw: Sequence[RawUser], task: Task) -> str | None:
    """What all of many items or queries lack; None where at least one is as the task has it."""
    items = [item for user in raw for item in user.items]
    if len(items) > _FEW and not any(task.form_for(item.fields) for item in items):
        return f"none of the {len(items):,} history items has the fields"
    texts = [query.fields["input"] for user in raw for query in user.queries if not _has_parts(query, task)]
    if len(texts) > _FEW and task.query_pattern and not any(task.parse_query(text) for text in texts):
        return f"none of the {len(texts):,} queries has the markers"
    return None


def _has_parts(query: RawQuery, task: Task) -> bool:
    return "input" not in query.fields or task.question_fields <= query.fields.keys()


def _checked_user(raw: RawUser, task: Task, problems: Problems, need_history: bool, merge_repeats: bool) -> User:
    if need_history and not raw.items:
        problems.add(raw.place, "empty history; give the user at least one history item, or leave the user out")
    items = _without_repeats(raw.items, problems, merge_repeats)
    for item in items:
        _check_item(item, task, problems)
    history = _in_order(items, problems)
    queries = tuple(_checked_query(query, task, problems) for query in raw.queries)
    if history and any(query.time is not None and query.time < history[-1].time for query in queries):
        problems.note("users with a query older than some of their history; experiments leave the later items out")
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
            problems.note("history items that repeat another one to the letter, kept once")
        else:
            content = "the same" if same else "another"
            problems.add(item.place, f"duplicate item id with {content} content; leave one out or change its id")
    return list(kept.values())


def _check_item(item: RawItem, task: Task, problems: Problems) -> None:
    form = task.form_for(item.fields)
    if form is None:
        missing = min((form.fields - item.fields.keys() for form in task.history), key=len)
        problems.add(item.place, f"missing {_named(missing)}")
        return
    _list_empty(form.fields, item.fields, item.place, problems)
    answer = answer_field(task, form)
    if answer is not None:
        _check_label(item.fields[answer], task, item.place, problems)


def _list_empty(names: Iterable[str], fields: Mapping[str, str], place: Place, problems: Problems) -> None:
    empty = [name for name in names if _is_blank(fields[name])]
    if empty:
        problems.add(place, f"empty {_named(empty)}")


def _is_blank(text: str) -> bool:
    return not isinstance(text, Unreadable) and not text.strip()


def _check_label(answer: str, task: Task, place: Place, problems: Problems) -> None:
    if task.labels and answer not in task.labels and answer.strip():
        kind = "rating" if task.kind == "rating" else "label"
        problems.add(place, f"'{answer}' is not a {kind} of task {task.name}; use one of: {', '.join(task.labels)}")


def _in_order(items: Sequence[RawItem], problems: Problems) -> tuple[HistoryItem, ...]:
    if all(item.date is None for item in items):
        return tuple(HistoryItem(item.id, item.fields, float(position)) for position, item in enumerate(items))
    for item in items:
        if item.date is None:
            problems.add(item.place, "has no date, but other items of the user do; date all of them or none")
    dated = [HistoryItem(item.id, item.fields, _time(item.date, item.place, problems) or 0.0) for item in items]
    return tuple(sorted(dated, key=lambda item: item.time))


def _time(date: str | None, place: Place, problems: Problems) -> float | None:
    if date is None or isinstance(date, Unreadable):
        return None
    try:
        return seconds_since_1970(date)
    except ValueError:
        problems.add(place, f"'{date}' is not a date; write it as 2018-03-02 or 2018-05-05T21:04:06 (ISO 8601)")
        return None


def _checked_query(raw: RawQuery, task: Task, problems: Problems) -> Query:
    if raw.gold is not None:
        if _is_blank(raw.gold):
            problems.add(raw.place, "empty label")
        _check_label(raw.gold, task, raw.place, problems)
    fields = _question_parts(raw, task, problems)
    text = raw.fields.get("input") or task.search_text(fields)
    return Query(raw.id, text, fields, raw.gold, _time(raw.date, raw.place, problems))


def _question_parts(raw: RawQuery, task: Task, problems: Problems) -> Mapping[str, str]:
    """The fields that the task's prompt asks for: given as such, or cut out of `input` by the task's markers."""
    needed = task.question_fields
    text = raw.fields.get("input")
    if needed <= raw.fields.keys():
        parts = raw.fields
    elif isinstance(text, Unreadable):
        return raw.fields
    else:
        found = task.parse_query(text) if text is not None else None
        if found is None and text is not None and task.query_pattern:
            problems.add(raw.place, f"the query's text does not match the markers of task {task.name}")
            return raw.fields
        parts = found or raw.fields
    missing = needed - parts.keys()
    if missing:
        problems.add(raw.place, f"missing {_named(missing)}")
    _list_empty(needed - missing, parts, raw.place, problems)
    return parts


def _named(fields: Iterable[str]) -> str:
    names = sorted(fields)
    return ("field " if len(names) == 1 else "fields ") + ", ".join(f"'{name}'" for name in names)
