"""Names as users give them, made safe for rows and paths, and JSON as the rows keep it."""

import hashlib
import json
import re
import secrets
from typing import Any

from oppu.errors import StoreError

_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def check_names(**names: str) -> None:
    """StoreError for a name that is empty, or holds what no database can keep (NUL, half a surrogate pair)."""
    for what, name in names.items():
        if not name:
            raise StoreError(f"{what} is empty", fix=f"give a {what}")
        if _NO_TEXT.search(name):
            raise StoreError(f"{what} {name!r} holds characters that are no text", fix=f"give another {what}")


def path_part(name: str) -> str:
    """One folder's name for `name`: itself where it is plain and lower-case, else readable letters and a digest."""
    if re.fullmatch(r"[a-z0-9][a-z0-9._,=+-]{0,63}", name):
        return name
    letters = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{letters or 'name'}-{_digest(name)[:12]}"


def new_module_folder(user_id: str) -> str:
    """Where a put writes a module, relative to the store's files: another folder at every put.

    A user's id never becomes a path. 4,096 folders hold the modules of all users, about 250 each for a million.
    """
    digest = _digest(user_id)
    return f"modules/{digest[:3]}/{digest[:32]}-{secrets.token_hex(8)}"


def new_checkpoint_folder(user_id: str) -> str:
    """Where a put writes a training under way; there are only as many as there are slots."""
    return f"checkpoints/{_digest(user_id)[:32]}-{secrets.token_hex(8)}"


def new_base_folder(name: str) -> str:
    """Where a put writes a base on object storage."""
    return f"bases/{path_part(name)}/{secrets.token_hex(8)}"


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
