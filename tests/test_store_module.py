"""Reading and writing a module folder: exact, and nothing is trusted."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from store_samples import CONFIG, same, tiny_module

from oppu.errors import StoreError
from oppu.model.module import Module, read_module, write_module

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_module(tiny_module(), tmp_path / "module")
    return tmp_path / "module"


def refusal(folder: Path) -> str:
    with pytest.raises(StoreError) as caught:
        read_module(folder)
    line = caught.value.line()
    assert "\n" not in line
    assert str(folder) in line
    return line


def write_raw(folder: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_module_comes_back_bit_for_bit(folder: Path) -> None:
    assert same(read_module(folder), tiny_module())
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    module = Module({name: tensor.to(dtype) for name, tensor in tiny_module().tensors.items()}, CONFIG)
    write_module(module, tmp_path)
    assert same(read_module(tmp_path), module)


def test_slices_of_one_buffer_and_a_set_of_targets_are_written(tmp_path: Path) -> None:
    buffer = torch.arange(20.0)
    module = Module({A: buffer[:10].view(5, 2).T, B: buffer[10:16].view(3, 2)}, CONFIG | {"target_modules": {"q_proj"}})
    write_module(module, tmp_path)
    found = read_module(tmp_path)
    assert torch.equal(found.tensors[A], module.tensors[A])
    assert found.config["target_modules"] == ["q_proj"]


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "cut short" in refusal(folder)


def test_a_file_with_bytes_at_its_end_is_refused(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "too long" in refusal(folder)


@pytest.mark.parametrize("header", [b"no json", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_a_header_that_is_no_header_is_refused(folder: Path, header: bytes) -> None:
    write_raw(folder, header)
    assert "header" in refusal(folder)


def test_every_lying_header_entry_is_named_in_one_line(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [2, 5], "data_offsets": [0, 40]}
    entries = {
        "wrong.size": entry | {"shape": [2, 6]},
        "wrong.dtype": entry | {"dtype": "I64"},
        "wrong.count": entry | {"shape": [True, -5]},
        "wrong.entry": [1],
    }
    write_raw(folder, {**entries, "fine": entry}, bytes(40))
    line = refusal(folder)
    assert "4 bad tensors" in line
    assert all(name in line for name in entries)
    assert "fine" not in line


def test_overlapping_tensors_are_refused(folder: Path) -> None:
    half = {"dtype": "F32", "shape": [2, 5], "data_offsets": [0, 40]}
    write_raw(folder, {A: half, B: half}, bytes(40))
    assert "overlap" in refusal(folder)


def test_every_tensor_of_a_wrong_name_or_shape_is_named_in_one_line(folder: Path) -> None:
    tensors = dict(tiny_module().tensors)
    tensors |= {A: torch.zeros(3, 5), B: torch.zeros(6), "lm_head.weight": torch.zeros(2, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    line = refusal(folder)
    assert "3 bad tensors" in line
    assert f"{A} (rank 3 instead of 2)" in line
    assert f"{B} (shape [6], not two-dimensional)" in line
    assert "lm_head.weight (not the name" in line


def test_half_a_pair_is_refused(folder: Path) -> None:
    save_file({A: tiny_module().tensors[A]}, folder / "adapter_model.safetensors")
    assert f"{A} (has no lora_B beside it)" in refusal(folder)


def test_a_module_of_another_rank_than_its_config_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": 8}))
    assert "4 bad tensors" in refusal(folder)


def test_tensors_of_modules_that_are_no_targets_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"target_modules": ["v_proj"]}))
    assert "4 bad tensors" in refusal(folder)


def test_targets_may_be_a_regular_expression(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"target_modules": r".*layers\.\d\..*q_proj"}))
    assert len(read_module(folder).tensors) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    tensors = dict(tiny_module().tensors)
    tensors[B] = torch.full((3, 2), value)
    save_file(tensors, folder / "adapter_model.safetensors")
    assert f"1 bad tensor: {B} (NaN or infinite)" in refusal(folder)
    with pytest.raises(StoreError, match="NaN or infinite"):
        write_module(Module(tensors, CONFIG), folder.parent / "new")
    assert not (folder.parent / "new").exists()


def test_values_beyond_the_range_of_float32_are_refused(folder: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in tiny_module().tensors.items()}
    tensors[A][0, 0] = 1e300
    save_file(tensors, folder / "adapter_model.safetensors")
    assert f"1 bad tensor: {A} (NaN or infinite)" in refusal(folder)


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e300", "null", '"8"', "true", "[8]"])
def test_an_alpha_that_is_no_finite_number_is_refused(folder: Path, alpha: str) -> None:
    file = folder / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 4', f'"lora_alpha": {alpha}'))
    assert "not a finite number of float32's range; restore it" in refusal(folder)
    with pytest.raises(StoreError, match="lora_alpha is "):
        write_module(tiny_module(lora_alpha=json.loads(alpha)), folder.parent / "new")


@pytest.mark.parametrize("kind", ["LORA", "LORA_XS"])
def test_a_module_without_alpha_is_refused(folder: Path, kind: str) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({key: value for key, value in CONFIG.items() if key != "lora_alpha"} | {"peft_type": kind})
    )
    if kind == "LORA_XS":
        save_file({"cores": torch.zeros(1, 2, 2)}, folder / "adapter_model.safetensors")
    assert "lora_alpha is missing" in refusal(folder)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("the pickle was opened",))


@pytest.mark.parametrize("beside", [True, False])
def test_a_pickle_is_refused_and_never_opened(folder: Path, beside: bool, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    if not beside:
        (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.bin" in refusal(folder)
    assert capsys.readouterr().out == ""


def test_a_pickle_under_a_safetensors_name_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(_Bomb()))
    assert "no safetensors file" in refusal(folder)
    assert capsys.readouterr().out == ""


def test_unknown_files_are_refused_and_a_model_card_is_not(folder: Path) -> None:
    (folder / "README.md").write_text("a card")
    assert same(read_module(folder), tiny_module())
    (folder / "adapter_model-2.safetensors").write_bytes(b"")
    assert "adapter_model-2.safetensors" in refusal(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} missing" in refusal(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "is no folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"peft_type": "POLY"}', "{}"])
def test_a_config_that_cannot_be_used_is_refused(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)
    assert refusal(folder)


@pytest.mark.parametrize("targets", [3, ["q_proj", 4], "("])
def test_targets_that_are_neither_names_nor_an_expression_are_refused(folder: Path, targets: object) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"target_modules": targets}))
    assert "target_modules" in refusal(folder)


def test_a_config_that_is_no_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no JSON"):
        write_module(tiny_module(path=tmp_path), tmp_path / "module")
