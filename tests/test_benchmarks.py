"""The training benchmark runs, and its sides train the same: on a tiny base with random weights."""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toys import write_release

from oppu.records import HistoryItem, Query, User

TRAINING = Path(__file__).parent.parent / "benchmarks" / "training.py"
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


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TRAINING.parent))
    spec = importlib.util.spec_from_file_location("training_benchmark", TRAINING)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "machine_rate", partial(module.machine_rate, seconds=0.05))
    return module


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
