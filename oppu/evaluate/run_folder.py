"""The folder of an experiment: whose it is, and what of an earlier run may stay in it."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from oppu.errors import ConfigError
from oppu.evaluate.results import RESULTS_FILE, TASK_FILE
from oppu.evaluate.under_way import FOLDER as UNDER_WAY
from oppu.store.files import make_folders, os_errors, write_atomically

_RECORD = "run.json"
"""Says in a folder that a run works there, and with what."""


def record_for(out: Path, fingerprint: str, modules: str | None, fresh: bool) -> Mapping[str, Any]:
    """What the folder's record is to say; ConfigError for another run's: its cells are not taken for this one's.

    `modules`: the fingerprint with the settings of modules; None where there are none, so that they may change.
    """
    with os_errors(out):
        there = _recorded(out)
    if fresh:
        there = {}
    if there.get("fingerprint", fingerprint) != fingerprint or modules not in (None, there.get("modules", modules)):
        raise ConfigError(
            "holds another run: its data, users, base or settings differ",
            where=str(out),
            fix="use --fresh to start anew, or another --out",
        )
    return there | {"fingerprint": fingerprint} | ({"modules": modules} if modules is not None else {})


def prepare(out: Path, record: Mapping[str, Any], fresh: bool, is_outdated: bool) -> None:
    """Make the run's folder, without what an earlier run left if `fresh`; without its results if they are outdated."""
    with os_errors(out):
        if fresh:
            for part in ("cells", "predictions", "store", UNDER_WAY):
                if (out / part).exists():
                    shutil.rmtree(out / part)
            (out / TASK_FILE).unlink(missing_ok=True)
        if fresh or is_outdated:  # else an interrupted run would look finished, with old and new cells in its table
            for file in (RESULTS_FILE, "report.html"):
                (out / file).unlink(missing_ok=True)
        make_folders(out)
    write_atomically(out / _RECORD, json.dumps(record).encode())


def _recorded(out: Path) -> dict[str, Any]:
    """What the record says of the run in the folder; empty: there is none. ConfigError where other things lie there.

    A run writes the record before all else, so a folder with files and without one is no run's.
    """
    record = out / _RECORD
    if record.is_file():
        with suppress(ValueError, TypeError):
            there = dict(json.loads(record.read_bytes()))
            if "fingerprint" in there:
                return there
    if out.exists() and any(not file.match(f".{_RECORD}.*.tmp") for file in out.iterdir()):
        raise ConfigError("holds something else than an experiment", where=str(out), fix="use another --out")
    return {}
