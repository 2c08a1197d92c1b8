"""A decoding step of many users: a module that makes the model overflow is its own user's trouble alone."""

import math
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer

from oppu.model.bank import Bank
from oppu.model.base import Base, make_base
from oppu.model.decode import Decoder, Prompt
from oppu.model.kinds import Ia3Config, LoraConfig, LoraXsConfig, ModuleConfig, PromptConfig

LORA = LoraConfig(rank=2, alpha=3.0, targets=("q_proj", "k_proj", "v_proj"))
KINDS: dict[str, ModuleConfig] = {
    "lora": LORA,
    "lora-xs": LoraXsConfig(2, 3.0, LORA.targets),
    "ia3": Ia3Config(),
    "prompt": PromptConfig(3),
}
TEXT, LONGER = (7, 8, 9), tuple(range(5, 70))


def filled(base: Base, config: ModuleConfig) -> Bank:
    """Random modules in three slots."""
    bank = Bank(base.model, config, 3)
    for slot in range(3):
        bank.reset(slot, seed=slot)
    bank.values += 0.1 * torch.randn(bank.values.shape, generator=torch.Generator().manual_seed(7))
    return bank


def prompt(key: int, slot: int, bank: Bank, text: tuple[int, ...] = TEXT) -> Prompt:
    virtual = range(-bank.config.virtual_tokens, 0) if slot >= 0 else ()
    return Prompt(key, slot, (*virtual, *text))


def diverge(bank: Bank) -> None:
    bank.values[0] = 3e38


def spoil_scale(bank: Bank) -> None:
    bank._configs[0] = LoraConfig(2, math.nan, targets=LORA.targets)


def spoil_b(bank: Bank) -> None:
    for name, view in bank._kind.views(bank.values[0], LORA).items():
        if "lora_B" in name:
            view[1, 0] = math.inf


SPOILS = {"numbers": diverge, "scale": spoil_scale, "b": spoil_b}


@pytest.mark.parametrize(("kind", "spoil"), [*((kind, "numbers") for kind in KINDS), ("lora", "scale"), ("lora", "b")])
def test_a_module_that_gives_no_numbers_reaches_no_neighbour_of_its_step(base: Base, kind: str, spoil: str) -> None:
    def logits(change: Callable[[Bank], None]) -> torch.Tensor:
        bank = filled(base, KINDS[kind])
        change(bank)
        decoder = Decoder(base.model)
        with bank.attach():
            decoder.admit([prompt(0, 1, bank), prompt(1, 0, bank), prompt(2, -1, bank), prompt(3, 2, bank, LONGER)])
            return decoder.step([5, 5, 5, 5])

    alone, beside = logits(lambda _: None), logits(SPOILS[spoil])
    torch.testing.assert_close(beside[[0, 2, 3]], alone[[0, 2, 3]], rtol=0, atol=0)
    assert kind == "prompt" or not beside[1].isfinite().any()


@pytest.mark.parametrize("last", [False, True], ids=["its line is filled from the end", "its line is the last"])
def test_who_gets_the_line_of_another_meets_nothing_that_was_in_it(base: Base, last: bool) -> None:
    bank = filled(base, LORA)
    bank.values[0] = 1e18  # its keys are infinite
    decoder = Decoder(base.model)
    other, bad = prompt(0, 1, bank, LONGER), prompt(1, 0, bank, LONGER)
    with bank.attach():
        decoder.admit([other, bad] if last else [bad, other])
        decoder.step([5, 5])
        decoder.drop([1])
        decoder.admit([prompt(2, 2, bank)])
        found = decoder.step([5, 5])[1]
        alone = Decoder(base.model)
        alone.admit([prompt(2, 2, bank)])
        torch.testing.assert_close(found, alone.step([5])[0])


def test_a_sequence_that_moves_leaves_nothing_behind(base: Base) -> None:
    bank = filled(base, LORA)
    bank.values[0] = 1e18
    decoder = Decoder(base.model)
    with bank.attach():
        decoder.admit([prompt(0, 1, bank, LONGER), prompt(1, 0, bank, LONGER)])
        decoder.drop([0])  # the other one, whose keys are infinite, takes its line
        decoder.admit([prompt(2, 2, bank)])
        assert decoder.step([5, 5])[1].isfinite().all()
    for cached in decoder._cache._layers[0]:
        assert not cached[1, :, 4:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_makes_no_tensors_of_lists_layer_by_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each is a copy for which the step waits."""
    original = torch.tensor

    def made(layers: int) -> int:
        base = make_base("tiny", tiny_model(layers=layers), tiny_tokenizer())
        bank, decoder, calls = filled(base, KINDS[kind]), Decoder(base.model), []
        with bank.attach(), monkeypatch.context() as patch:
            decoder.admit([prompt(key, key - 1, bank) for key in range(3)])
            decoder.step([5, 5, 5])
            patch.setattr(torch, "tensor", lambda *given, **how: calls.append(1) or original(*given, **how))
            decoder.step([5, 5, 5])
        return len(calls)

    assert made(2) == made(6)
