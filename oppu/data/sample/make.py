"""Writes the sample data anew, byte for byte the same: `python -m oppu.data.sample.make`.

Eight people with a history and questions, and held-out others for task adaption, who share the eight's habits in equal
parts, so that a base adapted on them knows the average habit only. The same seed gives the same files everywhere.
"""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import cycle, islice
from pathlib import Path
from random import Random

from oppu.data.sample.habits import PEOPLE, Habit, Person
from oppu.data.sample.messages import KERNELS, THEMES, Note, fill

SEED = 3
"""The first with which every person's questions show the habit: no rule for everybody gets over 4 of anyone's 6."""
HISTORY, QUERIES = 32, 6
BASE_USERS, BASE_HISTORY, BASE_QUERIES = 24, 8, 2
KERNELS_PER_THEME = 12
"""A person gets so many of a theme's 22 kinds of message: some come again, and retrieval has something to find."""
FIRST_DAY = date(2025, 1, 6)

HABITS = {
    "note_filing": lambda person: person.files,
    "subject_line": lambda person: person.words,
}
"""Which habit of a person a task asks for; the tasks' names are the files' names."""


def draw_notes(rng: Random, count: int) -> list[Note]:
    """That many notes without a repeated text, all themes equally often and, up to the last of each, in any order."""
    kernels = {theme: rng.sample(KERNELS[theme], KERNELS_PER_THEME) for theme in THEMES}
    themes = list(islice(cycle(rng.sample(THEMES, len(THEMES))), count))
    earlier, last = themes[: -len(THEMES)], themes[-len(THEMES) :]
    rng.shuffle(earlier)
    notes: dict[str, Note] = {}
    for theme in earlier + last:
        note = fill(rng.choice(kernels[theme]), rng)
        while note.text in notes:
            note = fill(rng.choice(kernels[theme]), rng)
        notes[note.text] = note
    return list(notes.values())


def rows_of(user: str, habit: Habit, splits: list[str], rng: Random) -> Iterator[dict[str, str]]:
    """One person's rows, oldest first, every row on a day of its own."""
    day = FIRST_DAY
    for number, (split, note) in enumerate(zip(splits, draw_notes(rng, len(splits)), strict=True), start=1):
        day += timedelta(days=rng.randint(1, 5))
        yield {
            "user": user,
            "time": day.isoformat(),
            "id": f"{user}-{number:02d}",
            "split": split,
            "input": note.text,
            "output": habit(note),
        }


def rows(task: str) -> Iterator[dict[str, str]]:
    """All rows of a task: first the eight people, then the held-out ones."""
    own = ["history"] * HISTORY + ["query"] * QUERIES
    base = ["base"] * BASE_HISTORY + ["base_query"] * BASE_QUERIES
    others = [(f"base-{i + 1:02d}", PEOPLE[i % len(PEOPLE)]) for i in range(BASE_USERS)]
    people: list[tuple[str, Person, list[str]]] = [(person.id, person, own) for person in PEOPLE]
    for user, person, splits in people + [(user, person, base) for user, person in others]:
        yield from rows_of(user, HABITS[task](person), splits, Random(f"{SEED} {task} {user}"))


def write(folder: Path) -> None:
    """Write the data files of all tasks into a folder."""
    for task in HABITS:
        lines = "".join(json.dumps(row) + "\n" for row in rows(task))
        (folder / f"{task}.jsonl").write_bytes(lines.encode())


if __name__ == "__main__":
    write(Path(__file__).parent)
