"""A real Chromium without a window, spoken to over a pipe in its DevTools protocol; skipped where there is none."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--no-sandbox",  # root and containers have none; the pages are our own
    "--hide-scrollbars", "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Look:
    """How a page is looked at."""

    name: str
    width: int
    height: int
    scheme: str = "light"
    media: str = ""
    is_phone: bool = False


LOOKS = (
    Look("light", 1280, 900),
    Look("dark", 1280, 900, scheme="dark"),
    Look("phone", 390, 844, is_phone=True),
    Look("phone, dark", 390, 844, scheme="dark", is_phone=True),
    Look("A4", 718, 1000, media="print"),  # 210 mm less Chromium's margins
)


@dataclass
class Seen:
    """What a page was and did."""

    width: int
    """Of all that it shows, in CSS pixels."""
    background: str
    errors: list[str] = field(default_factory=list)
    """Of console and scripts."""
    requests: list[str] = field(default_factory=list)
    """Everything fetched besides the page itself."""
    too_wide: list[str] = field(default_factory=list)
    """Elements that stick out."""
    screenshot: bytes = b""


_TOO_WIDE = """[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.box') && e.getBoundingClientRect().right > WIDTH + 0.5)
  .slice(0, 5).map(e => e.outerHTML.slice(0, 120))"""


class Browser:
    """One Chromium."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest = b""
        self._last = 0
        self._events: list[dict[str, Any]] = []

    def look(self, page: Path, how: Look, *, whole: bool = False) -> Seen:
        """Opens a page in a tab of its own; `whole`: with a screenshot of all of it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", tab)
        scheme = {"name": "prefers-color-scheme", "value": how.scheme}
        self.call("Emulation.setEmulatedMedia", tab, media=how.media, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            tab,
            width=how.width,
            height=how.height,
            deviceScaleFactor=2 if how.is_phone else 1,
            mobile=how.is_phone,
        )
        self._events.clear()
        url = page.resolve().as_uri()
        self.call("Page.navigate", tab, url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        seen = Seen(
            self._value(tab, "document.documentElement.scrollWidth"),
            self._value(tab, "getComputedStyle(document.body).backgroundColor"),
            too_wide=self._value(tab, _TOO_WIDE.replace("WIDTH", str(how.width))),
        )
        for event in self._events:
            match event["method"], event.get("params", {}):
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    seen.errors.append(str(details.get("text")))
                case "Runtime.consoleAPICalled", {"type": "error" | "warning" as kind, "args": arguments}:
                    seen.errors.append(f"{kind}: {arguments}")
                case "Log.entryAdded", {"entry": {"level": "error" | "warning", "text": text}}:
                    seen.errors.append(str(text))
                case "Network.requestWillBeSent", {"request": {"url": asked}} if asked.split("#")[0] != url:
                    if not asked.startswith("data:"):  # a picture that the page holds itself
                        seen.requests.append(str(asked))
                case _:
                    pass
        if whole:
            picture = self.call("Page.captureScreenshot", tab, captureBeyondViewport=True)
            seen.screenshot = base64.b64decode(picture["data"])
        self.call("Target.closeTarget", targetId=target)
        return seen

    def print(self, page: Path) -> bytes:
        """The page as a PDF on A4."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable", tab)
        self._events.clear()
        self.call("Page.navigate", tab, url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        found = self.call("Page.printToPDF", tab, paperWidth=8.27, paperHeight=11.69)
        self.call("Target.closeTarget", targetId=target)
        return base64.b64decode(found["data"])

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's result; what happens meanwhile is kept as events."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read(self._last)) is None:
            pass
        assert "error" not in answer, (method, answer["error"])
        found: dict[str, Any] = answer["result"]
        return found

    def _value(self, tab: str, expression: str) -> Any:
        return self.call("Runtime.evaluate", tab, expression=expression, returnByValue=True)["result"]["value"]

    def _read(self, wanted: int | None = None) -> dict[str, Any] | None:
        """One message: the wanted answer, or None for anything else."""
        end = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self._answers, 1 << 20) if ready else b""
            assert more, "Chromium said nothing more"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if wanted is not None and message.get("id") == wanted:
            return message
        if "method" in message:
            self._events.append(message)
        return None


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts it and ends it."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("there is no Chromium here (on Debian: apt-get install chromium)")
    ours_out, theirs_in = os.pipe()  # their answers
    theirs_out, ours_in = os.pipe()  # our commands
    # above 9, so that giving them the numbers 3 and 4 overwrites neither
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_out, theirs_in)]
    os.close(theirs_out)
    os.close(theirs_in)
    with TemporaryDirectory(prefix="oppu-chromium-", ignore_cleanup_errors=True) as profile:
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        process = os.posix_spawn(
            program,
            [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            os.environ,
            file_actions=[*quiet, (os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)],
        )
        for end in ends:
            os.close(end)
        browser = Browser(ours_in, ours_out)
        try:
            yield browser
        finally:
            with suppress(OSError, AssertionError):
                browser.call("Browser.close")
            os.close(ours_in)
            os.close(ours_out)
            _end(process)


def _end(process: int) -> None:
    """Waits some seconds for the process, then kills it."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
