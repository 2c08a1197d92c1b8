"""The server as a process: it starts, ends in good order on SIGTERM, and says in one line when its port is taken."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serve_house import TITLE, put_user, wait_until

from oppu.errors import ConfigError
from oppu.model.base import Base, load_base, save_base
from oppu.serve.app import listen, serve
from oppu.store import Store

SCRIPT = """
import sys
from pathlib import Path
import torch
from oppu.serve.app import serve
torch.set_num_threads(1)
serve(Path(sys.argv[1]), sys.argv[2], port=0, on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture
def process(base: Base, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    save_base(base, tmp_path / "base")
    with Store(tmp_path / "store") as store:
        put_user(store, load_base(str(tmp_path / "base")), "ann", TITLE, 1)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(tmp_path / "base")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_under_way_be_finished(process: subprocess.Popen[str], ending: signal.Signals) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url), process.stderr and process.stderr.read()
    body = {"model": "user:ann", "prompt": "what now?", "max_tokens": 400}
    whole: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: whole.append(httpx.post(f"{url}/completions", json=body, timeout=60)))
    with httpx.stream("POST", f"{url}/completions", json=body | {"stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        asking.start()
        wait_until(lambda: httpx.get(url.removesuffix("v1") + "health").json()["active"] == 2)
        process.send_signal(ending)
        rest = [line for line in lines if line]
    asking.join()
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
    assert whole[0].status_code == 200
    assert whole[0].json()["usage"]["completion_tokens"] > 1
    assert process.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_a_port_in_use_is_one_clear_line_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as found:
            serve(tmp_path / "no store", "no base", port=port)
    assert str(found.value) == (
        f"127.0.0.1: port {port} is in use; give another with --port, or end the program that listens there"
    )


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("256.1.1.1", 0)])
def test_an_address_that_cannot_be_had_is_one_clear_line(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(host)}: cannot listen on port {port}: .*; give another"):
        listen(host, port)
