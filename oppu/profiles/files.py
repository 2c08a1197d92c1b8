"""A file of textual profiles: one text for each user.

`.json` holds one object {user: text}; `.jsonl` holds one {"user": ..., "profile": ...} per line. All problems of a
file are reported together, and a file with a problem gives no profile at all.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from oppu.errors import DataError

_LINE_KEYS = ("user", "profile")


def read_profiles(path: Path) -> dict[str, str]:
    """{user: profile} in the order of the file. A user given as a whole number counts as its digits.

    Raises DataError for a file that cannot be read or holds no profile, for malformed JSON (with its line), and for
    a profile that is not text, empty, without a user, or a second one of its user.
    """
    entries = list(_entries(path))
    problems = list(_problems(entries)) if entries else ["there is no profile in it"]
    if problems:
        raise DataError(problems, where=str(path), fix="correct the file; nothing of it was used")
    return {str(entry.user): str(entry.profile) for entry in entries}


class _Entry(NamedTuple):
    """One profile as the file has it: not yet checked."""

    place: str
    """Where in the file, for messages; may be empty."""
    user: object
    profile: object
    problem: str = ""
    """Where and why user and profile could not even be taken out."""


def _entries(path: Path) -> Iterator[_Entry]:
    text = _read(path)
    match path.suffix.lower():
        case ".json":
            return _object_entries(path, text)
        case ".jsonl":
            return _line_entries(text)
        case suffix:
            raise DataError(
                [f"a file of profiles ends in .json or .jsonl, not '{suffix}'"],
                where=str(path),
                fix='rename it: .json for {user: text}, .jsonl for lines {"user": ..., "profile": ...}',
            )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError([f"cannot be read: {error.strerror}"], where=str(path), fix="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError([f"is not UTF-8 (byte {error.start})"], where=str(path), fix="save it as UTF-8") from error


def _object_entries(path: Path, text: str) -> Iterator[_Entry]:
    try:
        content = _parse(text)
    except ValueError as error:
        fix = 'write one JSON object {user: text}; lines {"user": ..., "profile": ...} belong in a .jsonl file'
        raise DataError([str(error)], where=str(path), fix=fix) from error
    if not isinstance(content, tuple):
        raise DataError(["is not a JSON object"], where=str(path), fix="write one JSON object {user: text}")
    return (_Entry("", user, profile) for user, profile in content)


def _line_entries(text: str) -> Iterator[_Entry]:
    # not splitlines(): that also cuts at characters that JSON allows within a text
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _line_entry(number, line)


def _line_entry(number: int, line: str) -> _Entry:
    place = f"line {number}: "
    try:
        content = _parse(line, number)
    except ValueError as error:
        return _Entry(place, None, None, str(error))
    keys = [key for key, _ in content] if isinstance(content, tuple) else []
    if sorted(keys) != sorted(_LINE_KEYS):
        return _Entry(place, None, None, place + 'is not an object with exactly "user" and "profile"')
    values = dict(content)  # type: ignore[call-overload]
    return _Entry(place, values["user"], values["profile"])


def _parse(text: str, line: int = 1) -> object:
    """JSON that starts at `line`, objects as tuples of (key, value), so that no key is lost. ValueError says where."""
    try:
        parsed: object = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {line + error.lineno - 1}: malformed JSON at column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {line}: unusable JSON: {error}") from error
    return parsed


def _problems(entries: Iterable[_Entry]) -> Iterator[str]:
    seen: set[str] = set()
    for place, user, profile, problem in entries:
        if problem:
            yield problem
            continue
        if not _is_user(user):
            yield f"{place}the user is {user!r}, not a name"
            continue
        if str(user) in seen:
            yield f"{place}user '{user}' has a second profile"
        seen.add(str(user))
        if not isinstance(profile, str):
            yield f"{place}the profile of user '{user}' is not text"
        elif not profile.strip():
            yield f"{place}the profile of user '{user}' is empty"


def _is_user(user: object) -> bool:
    if isinstance(user, str):
        return bool(user.strip())
    return isinstance(user, int) and not isinstance(user, bool)
