"""Files that give some users' modules another rank."""

from pathlib import Path

import pytest

from oppu.data import read_ranks
from oppu.errors import DataError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", "user,rank\nann,16\n7, 2 \n"),
        ("r.csv", "rank,plan,user\r\n16,gold,ann\r\n2,,7\r\n"),
        ("r.jsonl", '{"user": "ann", "rank": 16}\n\n{"user": 7, "rank": "2"}\n'),
    ],
)
def test_ranks_come_from_rows(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8", newline="")
    assert read_ranks(file) == {"ann": 16, "7": 2}


def test_all_problems_of_a_file_are_told_together(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text("user,rank\nann,16\nann,2\nbob,0\neve,-3\nkim,2.5\n,4\nzoe,\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_ranks(file)
    assert caught.value.problems == (
        "r.csv, line 3, user 'ann': stands there twice",
        "r.csv, line 4, user 'bob': the rank is '0', not a whole number from 1 on",
        "r.csv, line 5, user 'eve': the rank is '-3', not a whole number from 1 on",
        "r.csv, line 6, user 'kim': the rank is '2.5', not a whole number from 1 on",
        "r.csv, line 7: missing field 'user'",
        "r.csv, line 8: missing field 'rank'",
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.csv", "user,rank\n", "no usable row"),
        ("r.csv", "who,size\nann,3\n", "missing field 'user'"),
        ("r.toml", "ann = 3", "ends in .jsonl or .csv"),
        ("r.jsonl", "{", "malformed JSON"),
    ],
)
def test_a_file_without_ranks_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_ranks(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_ranks(tmp_path / "r.csv")
