"""The worked examples of the documents, run as they stand there: a new task, retriever or study is one new file."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from shell import done, refused
from toys import tiny_base_folder

import oppu
from oppu.evaluate.study import all_studies
from oppu.model.base import load_base
from oppu.retrieval import RETRIEVERS
from oppu.store import Store
from oppu.tasks import find_task

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "oppu" / "data" / "sample"


def blocks(page: str, language: str, heading: str = "") -> list[str]:
    """The blocks of code in a language on a page, or below one of its headings."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if heading:
        (text,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(block: str, base: Path | None = None) -> list[str]:
    """What the commands of a block print; the tiny `base` stands for the embedded one."""
    printed = []
    for line in block.splitlines():
        name, command, *arguments = shlex.split(line)
        assert name == "oppu"
        given = ["--base", str(base)] if command in ("adapt", "experiment") else []
        printed.append(done(command, *arguments, *given))
    return printed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what examples import from it is forgotten."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_folder(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def tickets(place: Path) -> Path:
    """The example of the README: its data and its task."""
    (place / "tickets.jsonl").write_text(blocks("README.md", "json", "Example")[0], encoding="utf-8")
    (place / "tickets.toml").write_text(blocks("README.md", "toml", "Example")[0], encoding="utf-8")
    return place


def test_a_new_task_is_one_new_file(place: Path, tiny: Path) -> None:
    (place / "note_filing.toml").write_text("\n".join(blocks("docs/tasks.md", "toml")), encoding="utf-8")
    rows = (SAMPLE / "note_filing.jsonl").read_text(encoding="utf-8").splitlines()
    few = [row for row in rows if re.search(r'"user": "(ada|ben|base-0[1-4])"', row)]
    (place / "note_filing.jsonl").write_text("\n".join(few), encoding="utf-8")
    check, train, compare = blocks("docs/tasks.md", "sh")

    task = find_task("note_filing.toml")
    assert task.labels == find_task(str(SAMPLE / "note_filing.toml")).labels
    shown, checked = run(check)
    assert 'prompt = "note: {input} folder:"' in shown
    assert re.search(r"users.*2", checked)
    adapted, personalized, answer = run(train, tiny)
    assert adapted.startswith("base filing, ")
    assert personalized.startswith("2 trained; ")
    assert answer.strip() in task.labels
    run(compare, tiny)
    report = (place / "runs" / "out" / "filing" / "report.html").read_text(encoding="utf-8")
    assert task.title in report
    assert all(method in report for method in ("base", "rag", "oppu", "oppu+rag"))


def test_the_example_of_the_readme_runs_in_the_shell_and_in_python(
    tickets: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = find_task("tickets.toml").labels
    _, _, personalized, answer, _ = run(blocks("README.md", "sh", "Example")[0], tiny)
    assert personalized.startswith("2 trained; ")
    assert answer.strip() in labels
    shutil.rmtree(tickets / "my-store")
    monkeypatch.setattr("oppu.model.base.load_base", lambda: load_base(str(tiny)))
    exec(blocks("README.md", "python", "Example")[0], {})
    statuses, answers = capsys.readouterr().out.splitlines()
    assert statuses == "[('kim', 'trained'), ('lou', 'trained')]"
    assert re.fullmatch(rf"\{{'kim': \['({'|'.join(labels)})'\], 'lou': \[\]\}}", answers)


@pytest.mark.slow
def test_a_new_retriever_is_one_new_file_in_the_package(tickets: Path) -> None:
    """In a copy of the package, with commands in a process of their own."""
    shutil.copytree(Path(oppu.__file__).parent, tickets / "oppu", ignore=shutil.ignore_patterns("__pycache__"))
    code, _ = blocks("docs/retrieval.md", "python")
    (tickets / "oppu" / "retrieval" / "overlap.py").write_text(code, encoding="utf-8")
    tiny_base_folder(tickets / "my-base")
    commands = [shlex.split(line)[1:] for line in blocks("docs/retrieval.md", "sh")[0].splitlines()]
    script = f"from oppu.cli import app\nfor command in {commands}:\n    app(command, standalone_mode=False)"
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    trained, answer, *_ = ran.stdout.splitlines()
    assert trained.startswith("2 trained; ")
    assert answer in find_task("tickets.toml").labels
    with Store(tickets / "runs" / "out" / "overlap" / "store") as store:
        assert {record.setting for record in store.modules()} == {"overlap-k2", "plain"}
    with Store(tickets / "my-store") as store:
        assert [record.setting for record in store.modules()] == ["overlap-k2"] * 2
    for command in (commands[0], commands[2]):
        assert "unknown retriever 'overlap'; use one of: bm25, random, recent" in refused(*command)


def test_a_retriever_of_a_program_of_ones_own_finds_what_it_says(
    tickets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, program = blocks("docs/retrieval.md", "python")
    (tickets / "my_retrievers.py").write_text(code, encoding="utf-8")
    with patch.dict(RETRIEVERS):
        exec(program, {})
        texts, times = ["a red cat", "the dog", "a red dog", "red red red"], [3.0, 1.0, 2.0, 4.0]
        overlap = RETRIEVERS["overlap"](texts, times, 0)
        assert overlap.top("A red dog", 3) == (2, 0, 3)
        assert overlap.top("A red dog", 3, before=3.0) == (2, 1)
        assert overlap.top("nothing", 9) == (3, 0, 2, 1)
    assert "overlap" not in RETRIEVERS
    shown, question = capsys.readouterr().out.splitlines()[-2:]
    assert shown == "ticket: The parcel has not arrived. queue: shipping"
    assert question.startswith("ticket: Please refund the postage. queue:")


def test_a_new_study_is_one_new_file_anywhere(place: Path) -> None:
    heading = "A study of one's own"
    (place / "squares.py").write_text(blocks("docs/studies.md", "python", heading)[0], encoding="utf-8")
    helped, printed = run(blocks("docs/studies.md", "sh", heading)[0])
    assert "--sizes" in helped
    assert "Square sizes." in helped
    assert "The greatest square is 9." in printed
    out = place / "runs" / "out" / "squares"
    assert (out / "squares.csv").read_text() == "size,square\n2,4\n3,9\n"
    assert "Nothing is said of squares." in (out / "report.html").read_text(encoding="utf-8")
    assert "squares" not in [study.name for study in all_studies()]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "none.py: there is no such file; see `oppu study` for the studies there are"),
        ("empty.py", "", "empty.py: has no STUDY; end it with `STUDY = Study(...)`"),
        ("broken.py", "import no_such_thing", "broken.py: cannot be run (ModuleNotFoundError: No module named"),
        ("half.py", "STUDY = (", "half.py: cannot be run (SyntaxError: '(' was never closed (half.py, line 1))"),
        ("json.py", "", "json.py: a module is called json already; give the file another name"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_study_is_refused(place: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (place / name).write_text(text, encoding="utf-8")
    assert refused("study", name, "--out", "out").startswith(message)
    assert not (place / "out").exists()
