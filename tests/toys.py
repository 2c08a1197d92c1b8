"""Toy tasks, users with habits, and files of them, for the tests that go from histories to answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import tiny_model, tiny_tokenizer

from oppu.model.base import make_base, save_base
from oppu.model.kinds import LoraConfig
from oppu.records import HistoryItem, Query, User
from oppu.tasks import HistoryForm, Task
from oppu.train import TrainConfig

COLOUR = Task(
    name="colour",
    title="Which colour a thing has for someone",
    kind="label",
    labels=("red", "blue", "green"),
    prompt="thing: {text} colour:",
    query_pattern=r"^Which colour\? thing: (?P<text>.*)$",
    history=(HistoryForm(prompt="thing: {text} colour:", answer="{colour}", shown="thing: {text} colour: {colour}"),),
    search_fields=("text",),
)
MOTTO = Task(
    name="motto",
    title="A motto for a day",
    kind="text",
    prompt="day: {text} motto:",
    query_pattern=r"^Which motto\? day: (?P<text>.*)$",
    history=(HistoryForm(prompt="day: {text} motto:", answer="{motto}", shown="day: {text} motto: {motto}"),),
    search_fields=("text",),
    max_answer_tokens=6,
)
REMARK = Task(
    name="remark",
    title="A remark in someone's words",
    kind="text",
    prompt="text: {text} remark:",
    history=(HistoryForm(prompt="", answer="{text}", shown="remark: {text}"),),
    search_fields=("text",),
    max_answer_tokens=6,
)
FAST = TrainConfig(epochs=1, batch_size=2, learning_rate=1e-2, module=LoraConfig(rank=2, alpha=4))
"""Enough training to change every weight."""


def colour_user(name: str, items: int, queries: int = 1) -> User:
    """A user whose things have the colours in turn, beginning at another one for each name."""
    first = sum(name.encode())

    def colour(number: int) -> str:
        return COLOUR.labels[(first + number) % 3]

    history = tuple(
        HistoryItem(f"{name}-{n}", {"text": f"{name} thing {n}", "colour": colour(n)}, float(n)) for n in range(items)
    )
    asked = tuple(
        Query(f"{name}-q{n}", f"Which colour? thing: {name} new {n}", {"text": f"{name} new {n}"}, colour(n))
        for n in range(queries)
    )
    return User(name, history, asked)


def colour_users(*sizes: int) -> list[User]:
    """Users a, b, c, ... with so many items each."""
    return [colour_user(chr(ord("a") + place), size) for place, size in enumerate(sizes)]


def motto_user(name: str, items: int) -> User:
    """A user with mottos and one question without an answer."""
    history = tuple(
        HistoryItem(f"{name}-{n}", {"text": f"day {n}", "motto": f"{name} {n}"}, float(n)) for n in range(items)
    )
    return User(name, history, (Query(f"{name}-q", "Which motto? day: last", {"text": "last"}),))


def tiny_base_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny random base in transformers' format."""
    save_base(make_base("tiny", tiny_model(seed), tiny_tokenizer()), folder)
    return folder


def write_release(folder: Path, users: Sequence[User], base_users: Sequence[User] = (), task: str = "colour") -> Path:
    """The users as the OPPU release's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    golds = [{"id": query.id, "output": query.gold} for user in users for query in user.queries]
    files: dict[str, Any] = {
        "user_top_100_history.json": [_released(user, with_gold=False) for user in users],
        "user_top_100_history_label.json": {"task": task, "golds": golds},
        "user_others.json": [_released(user, with_gold=True) for user in base_users],
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def _released(user: User, *, with_gold: bool) -> dict[str, Any]:
    queries = [
        {"id": query.id, "input": query.input, **({"gold": query.gold} if with_gold else {})} for query in user.queries
    ]
    return {"user_id": user.id, "profile": [{"id": i.id, **i.fields} for i in user.history], "query": queries}
