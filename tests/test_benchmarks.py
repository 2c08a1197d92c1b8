"""The benchmarks run, their sides do the same on a tiny base with random weights, and say what they measured."""

import importlib.util
import io
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from toys import tiny_base_folder, write_release

from oppu.errors import ConfigError
from oppu.model.bank import Bank
from oppu.model.base import make_base
from oppu.model.kinds import LoraConfig
from oppu.model.module import Module, write_module
from oppu.model.tokens import Encoded
from oppu.model.workers import Workers
from oppu.predict import Question
from oppu.records import Example, HistoryItem, Query, User
from oppu.tasks import LAMP_TASKS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CATEGORIES = ("politics", "travel", "crime")


def reader(name: str) -> User:
    items = [
        HistoryItem(f"{name}{n}", {"text": f"{name} reads of {n} things", "category": CATEGORIES[n % 3]}, float(n))
        for n in range(5)
    ]
    text = f"{name} reads of more"
    return User(
        name, tuple(items), (Query(f"{name}-q", f"Which category? [crime] article: {text}", {"text": text}, "crime"),)
    )


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = program("training", monkeypatch)
    monkeypatch.setattr(module, "machine_rate", partial(module.machine_rate, seconds=0.05))
    return module


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Any:
    return program("operations", monkeypatch)


@pytest.fixture
def generation(monkeypatch: pytest.MonkeyPatch) -> Any:
    return program("generation", monkeypatch)


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_all_sides_of_the_training_benchmark_see_the_same_losses(
    training: Any, tmp_path: Path, dtype: str, allowed: float
) -> None:
    data = write_release(tmp_path / "news", [reader("ann"), reader("ben")], [reader("cem")], task="LaMP_2N")
    case = training.Case("news_categorize", str(data), 0, 2, 5, 1, 2, "random:tiny", device="cpu", dtype=dtype)
    found = {side: training.measure(side, case) for side in ("peer", "published", "oppu")}
    losses = [found["peer"]["losses"][user][0] for user in ("ann", "ben")]
    for side in found.values():
        assert [side["losses"][user][0] for user in ("ann", "ben")] == pytest.approx(losses, rel=allowed)
        assert side["users_per_hour"] == pytest.approx(2 * 3600 / side["seconds"])
    assert found["oppu"]["machine_gflops"] > 0


@pytest.mark.parametrize("count", [1, 3])
def test_the_machines_rate_is_that_of_passes_for_the_workers_there_are(
    operations: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """An accelerator has one worker, however many threads the CPU has."""
    asked: list[int] = []

    @contextmanager
    def workers(device: torch.device) -> Iterator[Workers]:
        yield Workers(count, 5, None)

    monkeypatch.setattr(operations, "workers_for", workers)
    monkeypatch.setattr(operations, "useful_tokens", lambda device, number: asked.append(number) or 12 * number)
    assert operations.machine_rate(make_base("tiny", tiny_model(), tiny_tokenizer()), 0.05) > 0
    assert asked == [count]


def test_a_step_needs_each_distinct_token_once_and_head_and_last_feedforward_for_answers_alone(operations: Any) -> None:
    model = tiny_model()
    config = model.config
    batch = [Encoded((5, 6, 7, 8, 9, 1), 4), Encoded((5, 6, 7, 8, 4), 4)]
    # 5 6 7 8 stand once, then 9; seen: 1 + 2 + 3 + 4 + 5; an answer comes after 8 in both, and after 9
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    feedforward = 3 * config.hidden_size * config.intermediate_size
    layers = 5 * config.num_hidden_layers * layer - 3 * feedforward
    attention = config.num_hidden_layers * config.hidden_size * 15
    head = 2 * config.vocab_size * config.hidden_size
    expected = 4 * (layers + head) + 12 * attention
    assert operations.needed(make_base("tiny", model, tiny_tokenizer()), [batch]) == (5, expected)


def test_company_that_is_no_multiple_of_the_users_is_refused(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def figures(side: str, case: Any) -> dict[str, Any]:
        trained.append(3 * case.copies)
        return {"seconds": 6.0, "users": 3 * case.copies, "peak_memory_mib": 1.0}

    monkeypatch.setattr(training, "in_own_process", figures)
    case = training.Case("news_categorize", "nowhere", 0, 3, 5, 1, 2, "random:tiny")
    with pytest.raises(ConfigError, match="--company: 8, 4 cannot be had by copying 3 users; use multiples of --users"):
        training.company(case, [3, 8, 4], 1)
    assert trained == []
    found = training.company(case, [3, 6], 1)
    assert [(line["users"], line["seconds_per_user"]) for line in found] == [(3, 2.0), (6, 1.0)]
    with pytest.raises(ConfigError, match="nowhere has 3 users; use 3"):
        training.company(training.replace(case, users=4), [8], 1)


TEXT = next(task for task in LAMP_TASKS if task.kind == "text").model_copy(update={"max_answer_tokens": 4})
PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def made_modules() -> list[Module]:
    bank = Bank(tiny_model(), LoraConfig(2, 4.0), 2)
    bank.values.copy_(0.3 * torch.randn(bank.values.shape, generator=torch.Generator().manual_seed(0)))
    return [bank.module(slot) for slot in range(2)]


@pytest.mark.parametrize("device", PLACES)
def test_both_sides_of_the_generation_benchmark_write_the_same_where_the_base_lies(
    generation: Any, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    questions = [Question(n % 2, Example("u", str(n), f"{'so ' * n}what now?", None)) for n in range(5)]
    texts = []
    for side in (generation.oppu_side, generation.peer_side):
        base = make_base("tiny", tiny_model().to(device), tiny_tokenizer())
        texts.append(side(base, TEXT, made_modules())(questions, 3))
    assert texts[0] == texts[1]


def test_what_ends_a_line_is_looked_up_where_the_base_lies(generation: Any) -> None:
    base = make_base("tiny", tiny_model(), tiny_tokenizer())
    base.model.to("meta")
    ends = generation.EndsLine(base).start(3)
    assert {table.device.type for table in (ends.breaks, ends.letters, ends.begins_and_breaks, ends.begun)} == {"meta"}


def test_a_side_lies_on_the_device_that_was_asked_for_and_each_run_has_a_peak_of_its_own(
    generation: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_release(tmp_path / "news", [reader("ann"), reader("ben")], [reader("cem")], task="LaMP_2N")
    for name, module in zip(("ann", "ben"), made_modules(), strict=True):
        write_module(module, tmp_path / "modules" / name)
    peaks: list[int] = []
    monkeypatch.setattr(generation, "forget_peak", lambda device: peaks.append(0))
    monkeypatch.setattr(generation, "peak_mib", lambda device: peaks[-1])

    def side(base: Any, *_: Any) -> Any:
        assert (base.device.type, base.model.dtype) == ("cpu", torch.bfloat16)

        def answer(questions: list[Question], batch_size: int) -> list[str]:
            if peaks:
                peaks[-1] = batch_size
            return ["so"] * len(questions)

        return answer

    monkeypatch.setattr(generation, "oppu_side", side)
    monkeypatch.setattr(sys, "stdin", io.StringIO("48\n16\n"))
    place = str(tiny_base_folder(tmp_path / "base"))
    given = ["generation.py", "--device", "cpu", "--dtype", "bfloat16", "--base", place, "--task", "news_categorize"]
    monkeypatch.setattr(sys, "argv", [*given, "--data", str(data), "--modules", str(tmp_path / "modules")])
    args = generation.arguments()
    capsys.readouterr()
    generation.serve_side(Namespace(**vars(args) | {"side": "oppu", "users": 2}))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["peak_memory_mb"] for line in lines] == [48, 16]


def test_finished_settings_are_taken_of_the_same_users_pairs_and_base_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = program("settings", monkeypatch)
    inputs = {"held_out": 50, "pairs": 400, "base": "f"}
    lines = [
        {"name": "same", **inputs, "nll": 1.0},
        {"name": "of before"},
        *(
            {"name": f"other {key}", **inputs, key: value}
            for key, value in {"held_out": 9, "pairs": 9, "base": "g"}.items()
        ),
    ]
    file = tmp_path / "news-rates.jsonl"
    assert settings.finished_ways(file, inputs) == {}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert settings.finished_ways(file, inputs) == {"same": lines[0]}
