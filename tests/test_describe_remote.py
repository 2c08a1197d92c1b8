"""Profiles by a model behind a URL: a real server on this machine, with all that a server may answer."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from serve_house import running_server
from toys import colour_user
from writers import ASKED, chatting_base

from oppu.describe.local import LocalWriter
from oppu.describe.remote import RemoteWriter
from oppu.describe.users import describe
from oppu.errors import ConfigError, ModelError, OppuError
from oppu.store import Store


def said(text: object) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@dataclass
class Server:
    """Answers in turn, the last one again and again; and what it was asked."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], Any]] = field(default_factory=lambda: [(200, {}, said("likes red"))])
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append((self.path, dict(self.headers), body))
            status, headers, answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    try:
        yield state
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def writer(server: Server, pauses: list[float] | None = None, **more: Any) -> RemoteWriter:
    return RemoteWriter(server.url, "big", sleep=(pauses if pauses is not None else []).append, **more)


def test_a_request_is_openais_with_the_key_and_the_limit(server: Server) -> None:
    with writer(server, key="secret", answer_tokens=9) as remote:
        assert remote.write(["which colours?"]) == ["likes red"]
    ((path, headers, body),) = server.asked
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert body == {
        "model": "big",
        "messages": [{"role": "user", "content": "which colours?"}],
        "max_tokens": 9,
        "temperature": 0,
    }


def test_without_a_key_none_is_sent(server: Server) -> None:
    with writer(server) as remote:
        remote.write(["a"])
    assert "Authorization" not in server.asked[0][1]


def test_a_busy_or_failing_server_is_asked_again_after_longer_and_longer_pauses(server: Server) -> None:
    good = server.answers[0]
    asking = {"Retry-After": "7"}, {"Retry-After": "999"}
    server.answers = [(429, {}, ""), (503, {}, ""), (500, asking[0], ""), (502, asking[1], ""), good]
    pauses: list[float] = []
    with writer(server, pauses) as remote:
        assert remote.write(["a"]) == ["likes red"]
    assert pauses == [1.0, 2.0, 7.0, 60.0]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((429, {}, {"error": {"message": "be\nslow"}}), OppuError, r"keeps answering 429 .*\(be slow\) \(5 attempts"),
        ((401, {}, {"error": {"message": "bad key"}}), ConfigError, r"401 .*\(bad key\); set OPENAI_API_KEY"),
        ((404, {}, "no"), ConfigError, "404 Not Found; check --url, which usually ends in /v1, and --model"),
        ((307, {"Location": "/x"}, ""), ConfigError, "give the address that it leads to"),
        ((400, {}, {"error": {"message": "too long"}}), ModelError, r"400 Bad Request \(too long\); fewer tokens"),
        ((200, {}, "<html>"), ConfigError, "not that of OpenAI's chat completions; check --url"),
        ((200, {}, said(None)), ModelError, "answered with no text; give it more tokens with --tokens"),
        ((200, {}, {"choices": [{"message": {}}]}), ConfigError, "not that of OpenAI's chat completions"),
        ((200, {}, []), ConfigError, "not that of OpenAI's chat completions"),
    ],
)
def test_what_cannot_be_used_is_one_line(server: Server, answer: Any, error: type[OppuError], words: str) -> None:
    server.answers = [answer]
    with writer(server) as remote, pytest.raises(error, match=words) as caught:
        remote.write(["a"])
    assert type(caught.value) is error
    assert "\n" not in caught.value.line()
    assert caught.value.line().startswith(server.url)


def test_a_server_that_is_not_there_is_named_without_a_password() -> None:
    with (
        RemoteWriter("http://ann:walrus@127.0.0.1:9/v1/", "big", sleep=lambda _: None) as remote,
        pytest.raises(OppuError, match=r"cannot be reached or broke off: .* the same command goes on from") as caught,
    ):
        remote.write(["a"])
    assert caught.value.where == "http://127.0.0.1:9/v1/chat/completions"
    assert "walrus" not in caught.value.line()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://h:x/v1", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--url: no .*address"):
        RemoteWriter(url, "big")


def test_a_user_whose_request_is_refused_is_named_and_the_others_go_on(server: Server, folder_store: Store) -> None:
    server.answers = [(400, {}, {"error": {"message": "unfit"}}), server.answers[0]]
    users = [colour_user("ann", 1), colour_user("bob", 1)]
    with writer(server) as remote:
        results = list(describe(folder_store, ASKED, users, remote))
    assert [result.status for result in results] == ["failed", "made"]
    (record,) = folder_store.profiles(ASKED.name)
    assert (record.user_id, record.made, record.profiles[0].text) == ("bob", "api:big", "likes red")


def test_a_server_that_fails_for_good_ends_the_run_and_what_was_made_stays(server: Server, folder_store: Store) -> None:
    users = [colour_user("ann", 1), colour_user("bob", 1)]
    server.answers = [server.answers[0], (503, {}, "")]
    with writer(server) as remote, pytest.raises(OppuError, match="keeps answering 503"):
        list(describe(folder_store, ASKED, users, remote))
    server.answers = [(200, {}, said("likes blue"))]
    with writer(server) as remote:
        assert [r.status for r in describe(folder_store, ASKED, users, remote)] == ["kept", "made"]


def test_oppus_own_server_writes_what_its_base_writes_here(folder_store: Store) -> None:
    base = chatting_base()
    user = colour_user("ann", 4)
    requests = ["what?", "which colours, then?"]
    with (
        running_server(folder_store, base) as (client, _),
        RemoteWriter(str(client.base_url), "tiny", answer_tokens=12, context=512) as remote,
    ):
        assert remote.write(requests) == LocalWriter(base, 12).write(requests)
        assert [r.status for r in describe(folder_store, ASKED, [user], remote)] == ["made"]
    assert folder_store.ways_of_profiles(ASKED.name) == ("api:tiny",)
