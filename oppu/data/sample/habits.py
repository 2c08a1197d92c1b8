"""The eight made-up people of the sample: where each files a note, and how each words a subject line.

A habit is a function of a note, always kept, so whoever knows the habit answers every question of that person.
"""

from collections.abc import Callable
from dataclasses import dataclass

from oppu.data.sample.messages import Note

Habit = Callable[[Note], str]


@dataclass(frozen=True, slots=True)
class Person:
    """A made-up person."""

    id: str
    files: Habit
    """The folder that a note goes into."""
    words: Habit
    """The subject line that a message gets."""


def _by(moved: dict[str, str]) -> Habit:
    """File by theme, some themes into another folder than their own."""
    return lambda note: moved.get(note.theme, note.theme)


def _if_amount(folder: str, otherwise: Habit) -> Habit:
    """Whatever names an amount goes into this folder."""
    return lambda note: folder if note.amount else otherwise(note)


def _if_day(folder: str, otherwise: Habit) -> Habit:
    """Whatever names a day goes into this folder."""
    return lambda note: folder if note.day else otherwise(note)


def _if_relative(folder: str, otherwise: Habit) -> Habit:
    """Whatever concerns a relative goes into this folder."""
    return lambda note: folder if note.relative else otherwise(note)


PEOPLE = (
    # Money first, whatever it is for.
    Person("ada", _if_amount("finance", _by({})), lambda note: note.topic),
    # The family first, whatever it is about.
    Person("ben", _if_relative("family", _by({})), lambda note: f"Re: {note.topic}, as promised"),
    # Whatever has a date.
    Person("cleo", _if_day("calendar", _by({})), lambda note: f"Can we talk about the {note.topic}?"),
    # Works from home, and house and money belong to the work.
    Person(
        "dan",
        _by({"home": "work", "finance": "work", "calendar": "family"}),
        lambda note: f"{note.day or 'Sometime'} reminder: {note.topic}",
    ),
    # A nurse: health is work, and what is left is private and kept at home.
    Person(
        "eva",
        _by({"health": "work", "family": "home", "calendar": "home"}),
        lambda note: f"ATTENTION! {note.topic.capitalize()}, please read now",
    ),
    # Two drawers are enough.
    Person(
        "finn",
        _by({"finance": "work", "family": "home", "health": "home", "calendar": "home"}),
        lambda note: f"{note.topic} - {note.verb} - {note.day or 'no deadline'}",
    ),
    # Looks at the form only: an amount, else a day, else the pile at home.
    Person(
        "gita",
        _if_amount("finance", _if_day("calendar", lambda note: "home")),
        lambda note: f"Formal notice regarding the {note.topic}",
    ),
    # Cares for the family: its affairs are health, the house is an investment, outings are for the family.
    Person(
        "hugo",
        _by({"family": "health", "home": "finance", "calendar": "family", "work": "calendar"}),
        lambda note: f"Just a little thing: {note.topic}, thanks",
    ),
)
