"""The simulated sample data of `oppu demo`: complete, without leaks, personal, and made again byte for byte."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from string import Formatter

import pytest

from oppu.data.sample import make, sample_tasks
from oppu.data.sample.habits import PEOPLE
from oppu.data.sample.messages import KERNELS, SLOTS, THEMES, Kernel, Note
from oppu.tasks import task_from_toml

Row = dict[str, str]

TASKS = {sample.data.stem: task_from_toml(sample.task) for sample in sample_tasks()}
ROWS: dict[str, list[Row]] = {
    sample.data.stem: [json.loads(line) for line in sample.data.read_text(encoding="utf-8").splitlines()]
    for sample in sample_tasks()
}
both_tasks = pytest.mark.parametrize("name", ["note_filing", "subject_line"])


def _split(name: str, *splits: str) -> list[Row]:
    return [row for row in ROWS[name] if row["split"] in splits]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _pattern(kernel: Kernel) -> re.Pattern[str]:
    parts = []
    for number, (literal, slot, _, _) in enumerate(Formatter().parse(kernel.text)):
        parts.append(
            re.escape(literal) + (f"(?P<{slot}_{number}>{'|'.join(map(re.escape, SLOTS[slot]))})" if slot else "")
        )
    return re.compile("".join(parts), re.IGNORECASE)


PATTERNS = [(_pattern(kernel), kernel) for kernels in KERNELS.values() for kernel in kernels]


def _read(text: str) -> Note:
    """The note as a reader sees it, from its text alone."""
    ((match, kernel),) = [(found, kernel) for pattern, kernel in PATTERNS if (found := pattern.fullmatch(text))]
    seen = {group.rsplit("_", 1)[0]: value for group, value in match.groupdict().items()}
    relative = seen.get("kin") or seen.get("child")
    return Note(kernel.theme, kernel.topic, kernel.verb, text, seen.get("day"), seen.get("amount"), relative)


def _visible(text: str) -> tuple[str, bool, bool, bool]:
    note = _read(text)
    return note.theme, note.day is not None, note.amount is not None, note.relative is not None


def _accuracy(guess: Callable[[Row], str]) -> float:
    queries = _split("note_filing", "query")
    return sum(guess(row) == row["output"] for row in queries) / len(queries)


def _best_for_everybody(kind_of: Callable[[str], object]) -> Callable[[Row], str]:
    """The rule that answers with the most frequent folder of each kind of note, over all people."""
    folders: defaultdict[object, Counter[str]] = defaultdict(Counter)
    for row in _split("note_filing", "history", "base", "base_query"):
        folders[kind_of(row["input"])][row["output"]] += 1
    majority = {kind: counts.most_common(1)[0][0] for kind, counts in folders.items()}
    return lambda row: majority.get(kind_of(row["input"]), "")


def _histories() -> dict[str, list[Row]]:
    own = _split("note_filing", "history")
    return {person.id: [row for row in own if row["user"] == person.id] for person in PEOPLE}


def test_the_sample_has_a_label_task_and_a_text_task_of_the_same_people() -> None:
    assert [(task.name, task.kind) for task in TASKS.values()] == [("note_filing", "label"), ("subject_line", "text")]
    users = [{row["user"] for row in rows} for rows in ROWS.values()]
    assert users[0] == users[1]
    assert users[0] >= {person.id for person in PEOPLE}


@both_tasks
def test_every_person_has_32_history_items_and_6_questions(name: str) -> None:
    counts = Counter((row["user"], row["split"]) for row in _split(name, "history", "query"))
    assert counts == {(p.id, split): n for p in PEOPLE for split, n in (("history", 32), ("query", 6))}


@both_tasks
def test_24_other_people_are_held_out_for_task_adaption(name: str) -> None:
    counts = Counter((row["user"], row["split"]) for row in _split(name, "base", "base_query"))
    assert sorted(counts.values()) == [2] * 24 + [8] * 24
    assert not {user for user, _ in counts} & {person.id for person in PEOPLE}


@both_tasks
def test_no_text_comes_twice_for_one_person_so_no_question_stands_in_its_history(name: str) -> None:
    texts = Counter((row["user"], row["input"].lower()) for row in ROWS[name])
    assert max(texts.values()) == 1


@both_tasks
def test_every_row_has_an_id_and_a_day_of_its_own_and_questions_come_last(name: str) -> None:
    assert len({row["id"] for row in ROWS[name]}) == len(ROWS[name])
    for user in {row["user"] for row in ROWS[name]}:
        mine = sorted((row for row in ROWS[name] if row["user"] == user), key=lambda row: row["time"])
        assert len({row["time"] for row in mine}) == len(mine)
        asked = [row["split"].endswith("query") for row in mine]
        assert asked == sorted(asked)


@both_tasks
def test_texts_are_short_and_fit_the_task(name: str) -> None:
    task = TASKS[name]
    assert task.history[0].prompt == task.prompt
    for row in ROWS[name]:
        assert 8 <= len(row["input"].split()) <= 16, row
        assert row["output"] in task.labels if task.labels else 2 <= len(row["output"].split()) <= 8, row
        assert task.form_for(row) is not None


def test_topic_and_verb_of_every_message_stand_in_its_text() -> None:
    kernels = [kernel for kernels in KERNELS.values() for kernel in kernels]
    assert len({kernel.text for kernel in kernels}) == len(kernels) >= 120
    assert [k for k in kernels if not _words(f"{k.topic} {k.verb}") <= _words(k.text)] == []
    assert set(KERNELS) == set(THEMES) == set(TASKS["note_filing"].labels)


@both_tasks
def test_a_persons_habit_read_off_the_text_answers_every_question(name: str) -> None:
    habits = {person.id: make.HABITS[name](person) for person in PEOPLE}
    own = _split(name, "history", "query")
    assert [row for row in own if habits[row["user"]](_read(row["input"])) != row["output"]] == []


def test_no_rule_for_everybody_files_more_than_seventy_percent_right() -> None:
    assert 0.4 < _accuracy(_best_for_everybody(lambda text: _visible(text)[0])) < 0.7
    assert 0.4 < _accuracy(_best_for_everybody(_visible)) < 0.7


def test_every_persons_questions_show_the_habit() -> None:
    for rule in (_best_for_everybody(lambda text: _visible(text)[0]), _best_for_everybody(_visible)):
        right = Counter(row["user"] for row in _split("note_filing", "query") if rule(row) == row["output"])
        assert max(right.values()) <= 4


def test_the_most_similar_note_helps_less_than_the_habit() -> None:
    def most_similar(row: Row) -> str:
        query = _words(row["input"])
        history = _histories()[row["user"]]
        return max(history, key=lambda h: len(query & _words(h["input"])) / len(query | _words(h["input"])))["output"]

    most_frequent = {
        user: Counter(r["output"] for r in rows).most_common(1)[0][0] for user, rows in _histories().items()
    }
    assert _accuracy(lambda row: most_frequent[row["user"]]) < _accuracy(most_similar) < 0.7


def test_the_history_holds_what_it_takes_to_learn_the_habit() -> None:
    def nearest_kind(row: Row) -> str:
        def likeness(item: Row) -> float:
            pairs = list(zip(_visible(row["input"]), _visible(item["input"]), strict=True))
            return sum(a == b for a, b in pairs) + 0.5 * (pairs[0][0] == pairs[0][1])

        return max(_histories()[row["user"]], key=likeness)["output"]

    assert _accuracy(nearest_kind) >= 0.85


def test_subject_lines_of_two_people_differ_for_the_same_message() -> None:
    note = _read("The plumber offers the boiler repair on Friday for $120, please confirm.")
    lines = [person.words(note) for person in PEOPLE]
    common = _words(note.topic)
    own_words = [frozenset(_words(line) - common) for line in lines]
    assert len(set(own_words)) == len(PEOPLE)


def test_held_out_people_share_all_habits_in_equal_parts() -> None:
    others = defaultdict(list)
    for row in _split("subject_line", "base", "base_query"):
        others[row["user"]].append(row)
    keeps = Counter(
        person.id
        for rows in others.values()
        for person in PEOPLE
        if all(person.words(_read(row["input"])) == row["output"] for row in rows)
    )
    assert keeps == {person.id: 3 for person in PEOPLE}


def test_making_the_sample_again_gives_the_same_bytes(tmp_path: Path) -> None:
    make.write(tmp_path)
    for sample in sample_tasks():
        assert (tmp_path / sample.data.name).read_bytes() == sample.data.read_bytes()
