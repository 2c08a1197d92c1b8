"""Exports load in PEFT and answer the same; imports take exports and what PEFT itself writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from store_samples import same, tiny_module, whose

from oppu.errors import StoreError
from oppu.model.module import CONFIG, WEIGHTS
from oppu.store import ModuleRecord, Store
from oppu.store.modules import read_files

_IDS = torch.tensor([[5, 9, 17, 3, 44]])


@pytest.fixture
def record(store: Store) -> ModuleRecord:
    store.put_module(tiny_module(0), **whose("ann"))
    return store.put_module(tiny_module(1), **whose("ann"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=_IDS).logits


def peft_model(kind: str) -> Any:
    """A tiny Llama with a trained-looking adapter of the kind."""
    configs = {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        "rank_pattern": LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}, task_type="CAUSAL_LM"
        ),
        "ia3": IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
        "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }
    model = get_peft_model(tiny_model(), configs[kind])
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("kind", ["lora", "rank_pattern", "ia3", "prompt"])
def test_what_peft_saved_is_imported_exported_and_loaded_by_peft_with_the_same_answers(
    store: Store, tmp_path: Path, kind: str
) -> None:
    model = peft_model(kind)
    expected = logits(model)
    model.save_pretrained(tmp_path / "from-peft")
    who = whose("ann")
    del who["training"]
    record = store.import_module(tmp_path / "from-peft", **who)
    store.export_module(record, tmp_path / "exported")
    again = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "exported"))
    assert torch.equal(logits(again), expected)
    assert not torch.allclose(logits(tiny_model())[:, -1], expected[:, -1])


def test_an_export_says_whose_it_is_and_is_imported_as_it_was(
    store: Store, record: ModuleRecord, tmp_path: Path
) -> None:
    exported = store.export_module(record, tmp_path / "deep" / "folder")
    assert sorted(path.name for path in exported.iterdir()) == [CONFIG, WEIGHTS, "oppu.json"]
    card = json.loads((exported / "oppu.json").read_text())
    assert (card["user_id"], card["task"], card["setting"], card["version"]) == ("ann", "movie_tagging", "k0", 2)
    assert card["base_fingerprint"] == record.base_fingerprint
    with Store(tmp_path / "other") as other:
        found = other.import_module(exported)
        assert found == replace(record, version=1, created=found.created, path=found.path, location=found.location)
        assert same(other.load_module(found), tiny_module(1))


def test_what_is_given_goes_before_what_the_export_says(store: Store, record: ModuleRecord, tmp_path: Path) -> None:
    store.export_module(record, tmp_path / "out")
    found = store.import_module(tmp_path / "out", user_id="bob", setting="k1")
    assert (found.user_id, found.setting, found.version, found.task) == ("bob", "k1", 1, "movie_tagging")
    assert not any(b"ann" in data for data in read_files(store._place, found).values())


def test_a_plain_folder_without_its_owner_names_all_that_is_missing(
    store: Store, record: ModuleRecord, tmp_path: Path
) -> None:
    store.export_module(record, tmp_path / "out")
    (tmp_path / "out" / "oppu.json").unlink()
    with pytest.raises(StoreError, match=r"no oppu\.json says user_id, task, setting, base_fingerprint"):
        store.import_module(tmp_path / "out")
    found = store.import_module(
        tmp_path / "out", user_id="bob", task="movie_tagging", setting="k0", base_fingerprint="f"
    )
    assert (found.base_name, found.training) == ("tiny", {})


def test_an_export_goes_into_an_empty_folder_and_never_over_files(
    store: Store, record: ModuleRecord, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    store.export_module(record, tmp_path / "empty")
    with pytest.raises(StoreError, match="is there already"):
        store.export_module(record, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        store.export_module(record, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_export_leaves_nothing(
    store: Store, record: ModuleRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            store.export_module(record, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_an_export_with_a_changed_file_is_not_imported(
    store: Store, record: ModuleRecord, tmp_path: Path, name: str
) -> None:
    path = store.export_module(record, tmp_path / "out") / name
    path.write_bytes(path.read_bytes()[:-2] + b"\n\n")
    with pytest.raises(StoreError, match=rf"{name}: is not the file that oppu\.json describes"):
        store.import_module(tmp_path / "out")
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        store.import_module(tmp_path / "out")
    assert store.modules()[-1] == record


def test_a_card_that_cannot_be_used_names_every_fault(store: Store, record: ModuleRecord, tmp_path: Path) -> None:
    card = store.export_module(record, tmp_path / "out") / "oppu.json"
    whole = json.loads(card.read_text())
    for text, words in (
        ("{", "is no valid JSON"),
        ("[]", "cannot be used"),
        (json.dumps(whole | {"format": 2}), "made by a newer oppu; update oppu"),
        (json.dumps(whole | {"version": "two", "surprise": 1}), r"version \(.*surprise \("),
    ):
        card.write_text(text)
        with pytest.raises(StoreError, match=words.replace("oppu; ", ".*")) as caught:
            store.import_module(tmp_path / "out")
        assert "\n" not in caught.value.line()


def test_a_damaged_module_is_not_exported(folder_store: Store, tmp_path: Path) -> None:
    record = folder_store.put_module(tiny_module(), **whose("ann"))
    weights = record.path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(StoreError, match="bytes instead of"):
        folder_store.export_module(record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_said_of_a_training_goes_where_a_given_value_takes_its_place(store: Store, tmp_path: Path) -> None:
    training = {"task": {"name": "movie_tagging"}, "setting": {"k": 0}, "quantize": "8bit", "seed": 1}
    record = store.put_module(tiny_module(), **whose("ann", training=training))
    store.export_module(record, tmp_path / "out")
    assert store.import_module(tmp_path / "out").training == training
    renamed = store.import_module(tmp_path / "out", task="news_headline", setting="profile")
    assert renamed.training == {"quantize": "8bit", "seed": 1}
    others = store.import_module(tmp_path / "out", base_name="b", base_fingerprint="0" * 64, quantize="4bit")
    assert others.training == training | {"quantize": "4bit"}
