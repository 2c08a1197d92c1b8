"""phi_t, phi_r, phi_p of the paper (sections 2.2 and 3, appendix I): values in, one string out; pure.

The order is the paper's: profile, retrieved history, instruction with the question.
"""

from collections.abc import Iterable, Mapping, Sequence

from oppu.records import HistoryItem
from oppu.tasks import HistoryForm, Task


def cut_words(text: str, limit: int) -> str:
    """`text` with at most `limit` whitespace-separated words; unchanged when it has no more."""
    words = text.split()
    return text if len(words) <= limit else " ".join(words[:limit])


def fill(template: str, fields: Mapping[str, str], max_words: int) -> str:
    """The template with each field cut to `max_words`. KeyError names a field that is missing."""
    return template.format_map({name: cut_words(value, max_words) for name, value in fields.items()})


def shown_item(task: Task, item: HistoryItem) -> str:
    """A history item as phi_r shows it."""
    return fill(_form(task, item).shown, item.fields, task.max_shown_words)


def question(task: Task, fields: Mapping[str, str]) -> str:
    """phi_t(q_u): instruction and question alone."""
    return fill(task.prompt, fields, task.max_item_words)


def options(task: Task, fields: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Each label with the text that it stands for in a question; nothing where labels stand for themselves."""
    texts = (fill(text, fields, task.max_item_words) for text in task.options)
    return tuple(zip(task.labels, texts, strict=True)) if task.options else ()


def training_pair(task: Task, item: HistoryItem) -> tuple[str, str]:
    """(x_u, y_u) of a history item; x_u is empty where the history has no task output (section 3)."""
    form = _form(task, item)
    return (
        fill(form.prompt, form.asking(item.fields), task.max_item_words),
        fill(form.answer, item.fields, task.max_item_words),
    )


def with_context(body: str, context: Iterable[str]) -> str:
    """phi_r and phi_p: the context's lines above the body; an empty body leaves an open line for the answer."""
    return "\n".join([*context, body])


def build_prompt(
    task: Task, fields: Mapping[str, str], retrieved: Sequence[HistoryItem] = (), profile: str | None = None
) -> str:
    """phi_t, phi_r or phi_p of a question, depending on what is given with it."""
    return with_context(question(task, fields), context_lines(task, retrieved, profile))


def context_lines(task: Task, retrieved: Sequence[HistoryItem], profile: str | None) -> list[str]:
    """The profile, when there is one, and the retrieved items, best first."""
    return [*([profile] if profile is not None else []), *(shown_item(task, item) for item in retrieved)]


def _form(task: Task, item: HistoryItem) -> HistoryForm:
    form = task.form_for(item.fields)
    if form is None:
        raise ValueError(f"item {item.id} has none of the forms of task {task.name}")  # readers check this first
    return form
