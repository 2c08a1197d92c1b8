"""Downloads of LaMP's files, against a small server with ranges on this machine."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from oppu.data import download_lamp, progress_bar, read_dataset
from oppu.data.download import lamp_urls
from oppu.errors import ConfigError, OppuError
from oppu.tasks import BUILT_IN

NEWS = BUILT_IN["news_categorize"]
_ITEMS = [{"id": str(i), "text": f"story {i} " * 50, "category": "travel", "date": "2018-03-02"} for i in range(200)]
QUESTIONS = json.dumps([{"id": "q", "input": "Which? categories: [travel] article: sea", "profile": _ITEMS}]).encode()
OUTPUTS = json.dumps({"task": "LaMP_2", "golds": [{"id": "q", "output": "travel"}]}).encode()
PAGE = b"<!DOCTYPE html><html><body>Welcome</body></html>"
QUESTIONS_URL = "/time/LaMP_2/dev/dev_questions.json"
OUTPUTS_URL = "/time/LaMP_2/dev/dev_outputs.json"


@dataclass
class Server:
    """What the server has and how it behaves; `asked` is what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"1"'
    ranges: bool = True
    cut_after: int | None = None
    """The next answer ends after so many bytes, without the rest that it promised."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            content = server.files.get(self.path)
            server.asked.append((self.path, self.headers.get("Range")))
            if content is None:
                self.send_error(404)
                return
            start = self._start()
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if server.etag is not None:
                self.send_header("ETag", server.etag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) if server.cut_after is None else start + server.cut_after
            server.cut_after = None
            self.wfile.write(content[start:end])

        def _start(self) -> int:
            asked = self.headers.get("Range")
            same = self.headers.get("If-Range", server.etag) == server.etag
            return int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges and same else 0

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    behaviour = Server(files={QUESTIONS_URL: QUESTIONS, OUTPUTS_URL: OUTPUTS})
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(behaviour)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        behaviour.url = f"http://127.0.0.1:{http.server_address[1]}"
        yield behaviour
        http.shutdown()
        thread.join()


def download(server: Server, folder: Path, attempts: int = 1, **options: Any) -> tuple[Path, ...]:
    options = {"splits": ("dev",), "base_url": server.url, "pause_s": 0.0, **options}
    return download_lamp(NEWS, folder, attempts=attempts, **options)


def test_a_download_gives_a_folder_that_the_reader_takes_and_leaves_nothing_else(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    paths = download(server, folder)
    assert [path.name for path in paths] == ["dev_questions.json", "dev_outputs.json"]
    assert paths[0].read_bytes() == QUESTIONS
    assert sorted(os.listdir(folder)) == ["dev_outputs.json", "dev_questions.json"]
    (user,) = read_dataset(folder, NEWS).users
    assert (len(user.history), user.queries[0].gold) == (200, "travel")


def test_progress_grows_to_the_whole_size_of_each_file(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    download(server, tmp_path, progress=lambda *step: seen.append(step))
    of_questions = [(done, total) for name, done, total in seen if name == "dev_questions.json"]
    assert of_questions == sorted(of_questions)
    assert of_questions[-1] == (len(QUESTIONS), len(QUESTIONS))
    assert seen[-1] == ("dev_outputs.json", len(OUTPUTS), len(OUTPUTS))


def test_the_progress_bar_takes_every_step(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        download(server, tmp_path, progress=progress)
    assert "dev_questions.json" in capsys.readouterr().out


def test_files_that_are_there_are_not_fetched_again(server: Server, tmp_path: Path) -> None:
    download(server, tmp_path)
    server.asked.clear()
    download(server, tmp_path)
    assert server.asked == []


def test_the_next_call_continues_behind_a_cut_connection(server: Server, tmp_path: Path) -> None:
    server.cut_after = 70_000
    with pytest.raises(OppuError, match="70,000 bytes are kept; run the same command again to go on"):
        download(server, tmp_path)
    assert not (tmp_path / "dev_questions.json").exists()
    download(server, tmp_path)
    assert (tmp_path / "dev_questions.json").read_bytes() == QUESTIONS
    assert server.asked[:2] == [(QUESTIONS_URL, None), (QUESTIONS_URL, "bytes=70000-")]
    assert sorted(os.listdir(tmp_path)) == ["dev_outputs.json", "dev_questions.json"]


def test_a_cut_connection_is_continued_within_one_call_too(server: Server, tmp_path: Path) -> None:
    server.cut_after = 70_000
    download(server, tmp_path, attempts=2)
    assert (tmp_path / "dev_questions.json").read_bytes() == QUESTIONS
    assert server.asked[1] == (QUESTIONS_URL, "bytes=70000-")


def test_a_server_without_ranges_is_read_again_from_the_start(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.ranges = 70_000, False
    download(server, tmp_path, attempts=2)
    assert (tmp_path / "dev_questions.json").read_bytes() == QUESTIONS


def test_a_file_that_changed_on_the_server_is_not_joined_to_the_old_part(server: Server, tmp_path: Path) -> None:
    server.cut_after = 70_000
    with pytest.raises(OppuError):
        download(server, tmp_path)
    newer = QUESTIONS.replace(b"story", b"STORY")
    server.files[QUESTIONS_URL], server.etag = newer, '"2"'
    download(server, tmp_path)
    assert (tmp_path / "dev_questions.json").read_bytes() == newer


def test_without_etags_a_part_that_does_not_fit_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.etag = None
    (tmp_path / "dev_questions.json.part").write_bytes(b"[[[")
    download(server, tmp_path)
    assert (tmp_path / "dev_questions.json").read_bytes() == QUESTIONS


def test_a_part_that_is_the_whole_file_already_only_gets_its_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "dev_questions.json.part").write_bytes(QUESTIONS)
    download(server, tmp_path)
    assert (tmp_path / "dev_questions.json").read_bytes() == QUESTIONS
    assert [asked for asked in server.asked if asked[0] == QUESTIONS_URL] == [
        (QUESTIONS_URL, f"bytes={len(QUESTIONS)}-")
    ]


def test_a_part_longer_than_the_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "dev_questions.json.part").write_bytes(QUESTIONS + b"[]")
    download(server, tmp_path)
    assert (tmp_path / "dev_questions.json").read_bytes() == QUESTIONS


def test_a_web_page_instead_of_json_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.files[QUESTIONS_URL] = PAGE
    with pytest.raises(OppuError, match=r"dev_questions\.json: a web page came instead of JSON; check the task"):
        download(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_half_a_json_value_is_refused(server: Server, tmp_path: Path) -> None:
    server.files[QUESTIONS_URL] = QUESTIONS[:-1]
    with pytest.raises(OppuError, match="what came is not JSON"):
        download(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_json_of_another_shape_is_refused(server: Server, tmp_path: Path) -> None:
    server.files[OUTPUTS_URL] = QUESTIONS
    with pytest.raises(OppuError, match="JSON, but not LaMP's outputs"):
        download(server, tmp_path)
    assert os.listdir(tmp_path) == ["dev_questions.json"]


def test_a_missing_file_on_the_server_is_told_with_its_address(server: Server, tmp_path: Path) -> None:
    del server.files[QUESTIONS_URL]
    with pytest.raises(OppuError, match=r"LaMP_2/dev/dev_questions.json: the server answered 404 Not Found"):
        download(server, tmp_path, attempts=3)
    assert len(server.asked) == 1, "a missing file is not asked for again"


def test_a_server_that_is_down_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        address = f"http://127.0.0.1:{closed.server_address[1]}"
    with pytest.raises(OppuError, match=r"the server cannot be reached or broke off: .*; try again later"):
        download(server, tmp_path, base_url=address)


def test_a_folder_that_cannot_be_written_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OppuError, match=r"cannot write: .*; free some space or choose another folder"):
        download(server, tmp_path / "file")


def test_the_addresses_are_those_of_the_official_files() -> None:
    base = "https://ciir.cs.umass.edu/downloads/LaMP"
    assert lamp_urls(BUILT_IN["citation"], ["dev"]) == (
        f"{base}/time/LaMP_1/dev/dev_questions.json",
        f"{base}/time/LaMP_1/dev/dev_outputs.json",
    )
    assert lamp_urls(NEWS, ["test"], time_based=False) == (f"{base}/LaMP_2/test/test_questions.json",)
    (tags, *_) = lamp_urls(BUILT_IN["movie_tagging"], ["train"])
    assert tags == f"{base}/time/LaMP_2/new/train/train_questions.json"


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown split 'valid'; use some of: train, dev, test"):
        lamp_urls(NEWS, ["dev", "valid"])


def test_a_task_of_ones_own_has_nothing_to_download() -> None:
    own = NEWS.model_copy(update={"name": "own", "lamp_id": ""})
    with pytest.raises(ConfigError, match="task own is not one of LaMP's"):
        lamp_urls(own, ["dev"])
