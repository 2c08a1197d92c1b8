"""What puts of the first version of a store's folder left under tmp/ when they were killed.

Such a put wrote into a work folder and renamed its module to its place before the row was committed; the work folder's
file `target` names the place. Newer puts leave notes instead (notes.py).
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from oppu.store.database import Database
from oppu.store.files import is_garbage, remove_tree
from oppu.store.schema import MODULES

_MODULE_FOLDER = re.compile(r"modules/[0-9a-f]{2}/[0-9a-f]{32}/[^/]+/[^/]+/[0-9a-f]{12}/v\d{4,}")


def settle_old_work_folders(database: Database, folder: Path) -> None:
    """Clears the work folders of dead processes, and the modules among them that have their place but no row."""
    if not (folder / "tmp").is_dir():
        return
    for work in (folder / "tmp").iterdir():
        if is_garbage(work):
            path = _place_of(work)
            if path is not None:
                with database.writing() as connection:
                    if connection.scalar(select(MODULES.c.version).where(MODULES.c.path == path)) is None:
                        remove_tree(folder / path, root=folder / "modules")
            shutil.rmtree(work, ignore_errors=True)


def _place_of(work: Path) -> str | None:
    """Where the work folder's module went; None if it did not, or if another process has cleared the work folder."""
    with suppress(FileNotFoundError):
        path = (work / "target").read_text(encoding="ascii")
        if not (work / "module").exists() and _MODULE_FOLDER.fullmatch(path):
            return path
    return None
