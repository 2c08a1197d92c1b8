"""Names as users give them, made safe for rows and paths, and JSON as the rows keep it."""

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

from oppu.errors import StoreError


def check_names(**names: str) -> None:
    """StoreError for a name that is empty, or holds what no database can keep (NUL, half a surrogate pair)."""
    for what, name in names.items():
        if not name:
            raise StoreError(f"{what} is empty", fix=f"give a {what}")
        if any(letter == "\0" or 0xD800 <= ord(letter) < 0xE000 for letter in name):
            raise StoreError(f"{what} {name!r} holds characters that are no text", fix=f"give another {what}")


def path_part(name: str) -> str:
    """One folder's name for `name`: itself where it is plain and lower-case, else readable letters and a digest."""
    if re.fullmatch(r"[a-z0-9][a-z0-9._,=+-]{0,63}", name):
        return name
    letters = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{letters or 'name'}-{_digest(name)[:12]}"


def user_folder(user_id: str) -> PurePosixPath:
    """Where a user's modules lie, relative to the store; a user's id never becomes a path."""
    digest = _digest(user_id)
    return PurePosixPath("modules", digest[:2], digest[:32])


def module_folder(user_id: str, task: str, setting: str, base_fingerprint: str, version: int) -> PurePosixPath:
    """Where one version of a module lies, relative to the store."""
    plain = re.fullmatch(r"[0-9a-f]{12,}", base_fingerprint)
    base = base_fingerprint[:12] if plain else _digest(base_fingerprint)[:12]
    return user_folder(user_id) / path_part(task) / path_part(setting) / base / f"v{version:04d}"


def to_json(what: str, value: object) -> str:
    """ASCII JSON; StoreError, naming `what`, for a value that JSON does not know."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what} is no JSON ({error})", fix="use text, numbers, lists and objects only") from error


def from_json(text: str) -> dict[str, Any]:
    """The object that to_json wrote."""
    value: dict[str, Any] = json.loads(text)
    return value


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
