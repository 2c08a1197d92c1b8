"""The benchmark of a million users runs with a few, and drives what oppu itself runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from store_samples import notes

from oppu.store import Store

MILLION = Path(__file__).parent.parent / "benchmarks" / "million.py"


@pytest.mark.slow
def test_the_benchmark_of_a_million_users_drives_ledger_loop_and_store(tmp_path: Path) -> None:
    command = [sys.executable, MILLION, "--folder", tmp_path, "--json", tmp_path / "found.json"]
    command += ["--users", "60", "--batch", "20", "--personalized", "40", "--lookups", "20"]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["import"]["users"] == 60
    assert found["schedule"]["per_s"] > 0
    assert min(found["personalize"][name]["per_s"] for name in ("first", "again")) > 0
    assert found["look-ups"]["find_and_load"]["p50_ms"] <= found["look-ups"]["find_and_load"]["p99_ms"]
    with Store(tmp_path / "store") as store:
        records = store.modules()
        assert sorted(record.setting for record in records) == ["bm25-k1"] * 40 + ["plain"] * (60 - 10)  # 10 deleted
        assert {record.version for record in records} == {1}
        assert notes(store) == 0
