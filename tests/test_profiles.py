"""Profiles from a file: both formats, and every way in which a file can be wrong."""

import json
from pathlib import Path

import pytest

from oppu.errors import DataError
from oppu.profiles import read_profiles


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_profiles(path)
    assert caught.value.where == str(path)
    assert caught.value.fix
    return caught.value.problems


def test_a_json_object_gives_one_profile_per_user(tmp_path: Path) -> None:
    path = written(tmp_path / "p.json", json.dumps({"u2": "Likes films.", "u1": "Schreibt über Bücher.\n"}))
    assert list(read_profiles(path).items()) == [("u2", "Likes films."), ("u1", "Schreibt über Bücher.\n")]


def test_lines_give_one_profile_each(tmp_path: Path) -> None:
    lines = '{"user": "u1", "profile": "Likes films."}\n\n{"profile": "Reads\u2028a lot.", "user": 17}\n'
    assert read_profiles(written(tmp_path / "p.jsonl", lines)) == {"u1": "Likes films.", "17": "Reads\u2028a lot."}


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "p.JSONL"
    path.write_bytes(b'\xef\xbb\xbf{"user": "u1", "profile": "x"}\r\n{"user": "u2", "profile": "y"}\r\n')
    assert read_profiles(path) == {"u1": "x", "u2": "y"}


def test_all_problems_of_an_object_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path / "p.json", '{"u1": 5, "u2": " ", "u3": "fine", "u3": "again", "": "x", "u4": {"a": 1}}')
    assert problems_of(path) == (
        "the profile of user 'u1' is not text",
        "the profile of user 'u2' is empty",
        "user 'u3' has a second profile",
        "the user is '', not a name",
        "the profile of user 'u4' is not text",
    )


def test_all_problems_of_lines_are_listed_with_their_line(tmp_path: Path) -> None:
    lines = [
        '{"user": "u1", "profile": "fine"}',
        '{"user": "u2", "profile": }',
        '{"user": "u3"}',
        '{"user": "u4", "profile": "x", "colour": "red"}',
        '{"user": "u5", "profile": "x", "profile": "y"}',
        "[1, 2]",
        '{"user": null, "profile": "x"}',
        '{"user": true, "profile": "x"}',
        '{"user": "u6", "profile": ["x"]}',
        '{"user": "u7", "profile": ""}',
        '{"user": "u1", "profile": "another"}',
        "9" * 5000,
    ]
    shape = 'is not an object with exactly "user" and "profile"'
    *problems, too_long = problems_of(written(tmp_path / "p.jsonl", "\n".join(lines)))
    assert problems == [
        "line 2: malformed JSON at column 27: Expecting value",
        f"line 3: {shape}",
        f"line 4: {shape}",
        f"line 5: {shape}",
        f"line 6: {shape}",
        "line 7: the user is None, not a name",
        "line 8: the user is True, not a name",
        "line 9: the profile of user 'u6' is not text",
        "line 10: the profile of user 'u7' is empty",
        "line 11: user 'u1' has a second profile",
    ]
    assert too_long.startswith("line 12: unusable JSON: ")


def test_a_user_written_as_number_and_as_text_is_one_user(tmp_path: Path) -> None:
    lines = '{"user": 17, "profile": "x"}\n{"user": "17", "profile": "y"}'
    assert problems_of(written(tmp_path / "p.jsonl", lines)) == ("line 2: user '17' has a second profile",)


def test_a_malformed_object_is_refused_with_its_line(tmp_path: Path) -> None:
    assert problems_of(written(tmp_path / "p.json", '{"u1": "x",\n "u2" "y"}')) == (
        "line 2: malformed JSON at column 7: Expecting ':' delimiter",
    )
    assert problems_of(written(tmp_path / "q.json", "[" * 200_000))[0].startswith("line 1: unusable JSON")


def test_something_other_than_an_object_is_refused(tmp_path: Path) -> None:
    assert problems_of(written(tmp_path / "p.json", '["a profile"]')) == ("is not a JSON object",)


@pytest.mark.parametrize(("name", "text"), [("p.json", "{}"), ("p.jsonl", ""), ("p.jsonl", "\n \n")])
def test_a_file_without_a_profile_is_refused(tmp_path: Path, name: str, text: str) -> None:
    assert problems_of(written(tmp_path / name, text)) == ("there is no profile in it",)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    assert problems_of(written(tmp_path / "p.txt", "{}")) == ("a file of profiles ends in .json or .jsonl, not '.txt'",)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none.json") == ("cannot be read: No such file or directory",)
    assert problems_of(tmp_path) == ("cannot be read: Is a directory",)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes('{"u1": "é"}'.encode("latin-1"))
    assert problems_of(path) == ("is not UTF-8 (byte 8)",)
