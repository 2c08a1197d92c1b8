"""LaMP's official files -> a folder that `read_dataset` takes.

A file grows as `NAME.part` and gets its name only when it is whole and holds what it should. What a cut connection left
is continued with an HTTP range, as long as the server's file is still the same one.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from oppu.data.lamp import OUTPUTS, QUESTIONS
from oppu.errors import ConfigError, OppuError
from oppu.tasks import Task

BASE_URL = "https://ciir.cs.umass.edu/downloads/LaMP"

OnProgress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes that are there, and the bytes of the whole file where they are known."""

_FOLDERS = {"LaMP_2N": "LaMP_2", "LaMP_2M": "LaMP_2/new"}
"""Where a task's folder has another name than the task."""

_SPLITS = ("train", "dev", "test")


def download_lamp(
    task: Task,
    folder: Path,
    *,
    splits: Sequence[str] = ("train", "dev"),
    time_based: bool = True,
    base_url: str = BASE_URL,
    progress: OnProgress | None = None,
    attempts: int = 3,
    pause_s: float = 1.0,
    timeout_s: float = 30.0,
) -> tuple[Path, ...]:
    """Fetch the questions and outputs of `splits` into `folder`; files that are there already are left alone.

    LaMP's files have the same names for every task, so each task needs a folder of its own. The test split has no
    public outputs. After `attempts` cut connections an OppuError says what to do, and the next call goes on from there.
    """
    urls = lamp_urls(task, splits, time_based=time_based, base_url=base_url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with httpx.Client(timeout=timeout_s, follow_redirects=True) as client:
            for url in urls:
                fetch = _Fetch(client, url, folder / url.rsplit("/", 1)[1], progress or _silent)
                if not fetch.target.exists():
                    _fetch_whole(fetch, attempts, pause_s)
    except OSError as error:
        raise OppuError(
            f"cannot write: {error.strerror}", where=str(folder), fix="free some space or choose another folder"
        ) from None
    return tuple(folder / url.rsplit("/", 1)[1] for url in urls)


def lamp_urls(
    task: Task, splits: Sequence[str], *, time_based: bool = True, base_url: str = BASE_URL
) -> tuple[str, ...]:
    """The addresses of a task's files: time-based or user-based splits, questions before outputs."""
    unknown = sorted(set(splits) - set(_SPLITS))
    if unknown:
        raise ConfigError(f"unknown split '{unknown[0]}'", fix=f"use some of: {', '.join(_SPLITS)}")
    if not task.lamp_id:
        raise ConfigError(f"task {task.name} is not one of LaMP's; there is nothing to download for it")
    root = f"{base_url.rstrip('/')}{'/time' if time_based else ''}/{_FOLDERS.get(task.lamp_id, task.lamp_id)}"
    return tuple(
        f"{root}/{split}/{split}{kind}"
        for split in dict.fromkeys(splits)
        for kind in ((QUESTIONS,) if split == "test" else (QUESTIONS, OUTPUTS))
    )


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    """A rich progress bar with a line for each file, to be handed to `download_lamp`."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        lines = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in lines:
                lines[name] = bar.add_task(name, total=total)
            bar.update(lines[name], completed=done, total=total)

        yield show


@dataclass(frozen=True, slots=True)
class _Fetch:
    client: httpx.Client
    url: str
    target: Path
    report: OnProgress

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def version(self) -> Path:
        """Beside the part: the ETag, or the date, of the file on the server that the part belongs to."""
        return self.target.with_name(self.target.name + ".part.version")

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def _silent(name: str, done: int, total: int | None) -> None:
    """No progress shown."""


def _fetch_whole(fetch: _Fetch, attempts: int, pause_s: float) -> None:
    continued = _size(fetch.part) > 0
    _receive_with_retries(fetch, attempts, pause_s)
    try:
        _check_content(fetch)
    except OppuError:
        fetch.forget()
        if not continued:
            raise
        _receive_with_retries(fetch, attempts, pause_s)  # the part may have been of another file: once more from zero
        _check_content(fetch)
    os.replace(fetch.part, fetch.target)
    fetch.forget()


def _receive_with_retries(fetch: _Fetch, attempts: int, pause_s: float) -> None:
    for left in reversed(range(attempts)):
        try:
            _receive(fetch)
            return
        except httpx.InvalidURL as error:
            raise OppuError(f"not a usable address: {error}", where=fetch.url) from None
        except httpx.UnsupportedProtocol as error:
            raise OppuError(str(error), where=fetch.url, fix="use an http:// or https:// address") from None
        except httpx.RequestError as error:
            if left == 0:
                raise _unreachable(fetch, error) from None
            time.sleep(pause_s)


def _unreachable(fetch: _Fetch, error: httpx.RequestError) -> OppuError:
    kept = _size(fetch.part)
    reason = str(error) or type(error).__name__
    fix = f"{kept:,} bytes are kept; run the same command again to go on" if kept else "try again later"
    return OppuError(f"the server cannot be reached or broke off: {reason}", where=fetch.url, fix=fix)


def _receive(fetch: _Fetch) -> None:
    """The rest of the file behind the part, or all of it."""
    kept = _size(fetch.part)
    with fetch.client.stream("GET", fetch.url, headers=_headers(fetch, kept)) as response:
        if response.status_code in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            _append(fetch, response, _start(response, kept))
            return
        if response.headers.get("Content-Range") == f"bytes */{kept}":
            return  # nothing behind the part: it is the whole file
        if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not kept:
            status = f"{response.status_code} {response.reason_phrase}".strip()
            raise OppuError(f"the server answered {status}", where=fetch.url, fix="check the address, or try later")
    fetch.forget()  # the part is longer than the server's file: it belongs to another one
    _receive(fetch)


def _headers(fetch: _Fetch, kept: int) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes of the file, not of a compressed copy
    if kept:
        headers["Range"] = f"bytes={kept}-"
        if fetch.version.exists() and (version := fetch.version.read_text(encoding="utf-8")):
            headers["If-Range"] = version
    return headers


def _validator(response: httpx.Response) -> str:
    etag: str = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    modified: str = response.headers.get("Last-Modified", "")
    return modified


def _start(response: httpx.Response, kept: int) -> int:
    """Where the answer's bytes belong: behind the part, or at zero when the server sends the whole file."""
    if response.status_code == HTTPStatus.OK:
        return 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {kept}-"):
        raise OppuError("the server sent another part than it was asked for", where=str(response.url))
    return kept


def _append(fetch: _Fetch, response: httpx.Response, start: int) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None else None
    done = start
    if not start:
        fetch.version.write_text(_validator(response), encoding="utf-8")
    with fetch.part.open("r+b" if start else "wb") as part:
        part.seek(start)
        for chunk in response.iter_raw():
            part.write(chunk)
            done += len(chunk)
            fetch.report(fetch.target.name, done, total)
        part.flush()
        os.fsync(part.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_content(fetch: _Fetch) -> None:
    """An OppuError unless the part is JSON of the shape of LaMP's files; a wrong path answers 200 with a web page."""
    content = fetch.part.read_bytes()
    if content.lstrip()[:1] == b"<":
        raise OppuError("a web page came instead of JSON", where=fetch.url, fix="check the task and the address")
    try:
        value = json.loads(content)
    except ValueError as error:
        raise OppuError(f"what came is not JSON: {error}", where=fetch.url, fix="try again later") from None
    wanted = "questions" if fetch.target.name.endswith(QUESTIONS) else "outputs"
    if not (_are_questions(value) if wanted == "questions" else _are_outputs(value)):
        raise OppuError(f"what came is JSON, but not LaMP's {wanted}", where=fetch.url, fix="check the address")


def _are_questions(value: object) -> bool:
    return _are_objects_with(value, {"id", "input", "profile"})


def _are_outputs(value: object) -> bool:
    return isinstance(value, dict) and _are_objects_with(value.get("golds"), {"id", "output"})


def _are_objects_with(value: object, keys: set[str]) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and keys <= entry.keys() for entry in value)
