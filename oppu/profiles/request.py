"""What a model is asked for a profile (appendix J), and how a history is cut into parts that fit into one request."""

from collections.abc import Callable, Iterator, Sequence

from oppu.errors import ConfigError
from oppu.prompts import shown_item
from oppu.records import HistoryItem
from oppu.tasks import Task
from oppu.tasks.task import template_fields


def check_askable(task: Task) -> None:
    """ConfigError where the task says nothing of how a model is asked for a profile."""
    if template_fields(task.profile_prompt) != {"history"}:
        what = f"task {task.name} has no profile_prompt with {{history}}, and no other field, to ask a model"
        raise ConfigError(what, fix="add one to the task's file; see docs/profiles.md")


def history_lines(task: Task, items: Sequence[HistoryItem]) -> list[str]:
    """The items as a model reads them: each as a retrieved one, with its answer filled in."""
    return [shown_item(task, item) for item in items]


def profile_request(task: Task, lines: Sequence[str]) -> str:
    """Appendix J's prompt, with these lines as {USER HISTORY}."""
    return task.profile_prompt.format_map({"history": "\n".join(lines)}).strip()


def parts(lines: Sequence[str], room: int, tokens: Callable[[str], int]) -> Iterator[list[str]]:
    """The lines in order, in parts of at most `room` tokens by the count of `tokens`; a longer line is cut to it.

    Parts are filled from the oldest line on, so that two beginnings of one history share all but their last parts.
    """
    part: list[str] = []
    used = 0
    for line in lines:
        fitting = cut_to(line, room, tokens)
        needed = tokens(fitting) + 1  # and the line's end
        if part and used + needed > room:
            yield part
            part, used = [], 0
        part.append(fitting)
        used += needed
    if part:
        yield part


def cut_to(line: str, room: int, tokens: Callable[[str], int]) -> str:
    """The line without as many of its last words (at last, letters) as make it longer than `room` tokens."""
    while (count := tokens(line)) >= room:
        words = line.split()
        kept = max(1, min(len(words) - 1, len(words) * room // (count + 1)))
        line = " ".join(words[:kept]) if len(words) > 1 else line[: len(line) // 2]
    return line
