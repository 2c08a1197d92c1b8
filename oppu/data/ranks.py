"""A file of ranks: how large the modules of some users shall be.

`.csv` with the columns `user` and `rank`, or `.jsonl` with an object of both in each line.
"""

from pathlib import Path

from oppu.data.files import read_rows
from oppu.data.problems import Place, Problems
from oppu.data.raw import Unreadable, required_text
from oppu.data.rows import SUFFIXES
from oppu.errors import DataError


def read_ranks(path: Path) -> dict[str, int]:
    """{user: rank} in the order of the file. DataError with all that is wrong in it; then nothing of it is used."""
    problems = Problems()
    found: dict[str, int] = {}
    if path.suffix.lower() not in SUFFIXES:
        raise DataError([f"a file of ranks ends in {' or '.join(SUFFIXES)}"], where=str(path), fix="rename it")
    for at, row in read_rows(path, problems):
        user, rank = (required_text(row, name, at, problems) for name in ("user", "rank"))
        if isinstance(user, Unreadable) or isinstance(rank, Unreadable):
            continue
        if user in found:
            problems.add(at.of_user(user), "stands there twice")
        elif not rank.strip().isdecimal() or int(rank) < 1:
            problems.add(at.of_user(user), f"the rank is '{rank}', not a whole number from 1 on")
        else:
            found[user] = int(rank)
    if not found:
        problems.add(Place(path.name), "no usable row; each needs a 'user' and a 'rank'")
    problems.stop_if_any(path)
    return found
