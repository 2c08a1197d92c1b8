"""The bank: many users' modules over one frozen base, one slot per user.

All parameters lie in one matrix [U, P], a user's in one line of it, so that clipping and the optimizer are operations
on lines. What a line means is the kind's business (`kinds/`). Glossary: U slots, P parameters of a user.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from oppu.errors import ModelError
from oppu.model.kinds import Kind, Lines, ModuleConfig, config_of
from oppu.model.module import Module, is_peft
from oppu.model.quantize import check_mergeable


class Bank:
    """The modules of U users over one base model. `attach()` plugs them in; the base itself is never changed."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: ModuleConfig,
        slots: int,
        *,
        kind: Kind | None = None,
        stacked: bool | None = None,
    ) -> None:
        """`config`: the kind, and the largest shape that a module in this bank may have.

        `kind`: `config` as laid out for the model, where that is done already. `stacked`: whether the products of all
        users of a pass are computed together; None: as it is faster.
        """
        self.config = config
        self.slots = slots
        self._model = model
        self._kind: Kind = kind if kind is not None else config.lay_out(model)
        device = model.device
        self.values = torch.zeros(slots, self._kind.size, device=device)
        """[U, P] parameters, float32."""
        self.grads = torch.zeros(slots, self._kind.size, device=device)
        """[U, P] gradients, summed by backward until `zero_grad`."""
        anchor = torch.zeros(1, device=device, requires_grad=True)
        self._configs: list[ModuleConfig] = [config] * slots
        self._streams: dict[int, torch.Generator] = {}
        self._lines = Lines(
            self.values,
            self.grads,
            anchor,
            self._configs,
            self._streams,
            torch.full((slots,), config.scale, device=device),
            torch.full((slots,), config.rank, device=device),
            stacks_on(device) if stacked is None else stacked,
        )

    @property
    def size(self) -> int:
        """P: parameters of one user's module."""
        return self.values.shape[1]

    def reset(self, slot: int, seed: int, config: ModuleConfig | None = None) -> None:
        """A fresh module and a fresh dropout stream, from the user's seed; `config`: a smaller shape."""
        generator = torch.Generator().manual_seed(seed)
        for name, view in self._clear(slot, config or self.config).items():
            view.copy_(self._kind.fresh(name, view, generator))
        self.grads[slot] = 0
        self._streams[slot] = torch.Generator(self.values.device).manual_seed(seed)

    def wipe(self, slot: int) -> None:
        """Overwrite a slot's numbers, and what was prepared from them, with zeros."""
        self.values[slot] = 0
        for let_go in self._lines.on_wipe:
            let_go()

    def stream(self, slot: int) -> torch.Tensor:
        """The state of a slot's dropout stream, bytes on the CPU."""
        return self._streams[slot].get_state()

    def go_on(self, slot: int, values: torch.Tensor, stream: torch.Tensor) -> None:
        """After `reset`: the values [P] and the dropout stream of a training that was interrupted."""
        self.values[slot] = values
        if self.config.dropout:
            self._streams[slot].set_state(stream)

    def load(self, slot: int, module: Module) -> None:
        """Put a user's module into a slot; ModelError says what does not fit: the first three points, and how many."""
        problems = self._kind.misfits(module.config)
        # a module that says it is another can still be compared tensor by tensor
        config = self.config if problems else self.config.shaped_as(config_of(module))
        problems += self._wrong_tensors(module, config)
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ModelError(
                f"the module does not fit: {'; '.join(problems[:3])}{more}",
                fix="use it with the base, rank and targets that it was trained with",
            )
        for name, view in self._clear(slot, config).items():
            view.copy_(module.tensors[name])

    def copy(self, slot: int, to: int) -> None:
        """The module of one slot in another, too."""
        self.values[to] = self.values[slot]
        self._shape(to, self._configs[slot])

    def module(self, slot: int) -> Module:
        """A copy of a slot's module, as it is stored."""
        return self._kind.module(self.values[slot], self._configs[slot])

    def portable(self, slot: int) -> Module:
        """A copy of a slot's module that PEFT loads, where its own kind is one that PEFT does not have."""
        return self._kind.portable(self.values[slot], self._configs[slot])

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.grads.zero_()

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Within this context the model works with the modules of the current layout's slots."""
        hooks = self._kind.hooks(self._lines)
        try:
            yield
        finally:
            self._lines.on_wipe.clear()
            for hook in hooks:
                hook.remove()

    def merge(self, slot: int) -> None:
        """Add a slot's module into the base's own weights, for good (section 2.2). ModelError where it is quantized."""
        check_mergeable(self._model)
        self._kind.merge(self.values[slot], self._configs[slot])

    def _clear(self, slot: int, config: ModuleConfig) -> dict[str, torch.Tensor]:
        """Empty a slot's line and give it a shape; returns its tensors as views."""
        self._shape(slot, config)
        self.values[slot] = 0
        return self._kind.views(self.values[slot], config)

    def _shape(self, slot: int, config: ModuleConfig) -> None:
        self._configs[slot] = config
        self._lines.scales[slot] = config.scale
        self._lines.ranks[slot] = config.rank

    def _wrong_tensors(self, module: Module, config: ModuleConfig) -> list[str]:
        """What of the tensors does not fit, by name."""
        expected = {n: tuple(view.shape) for n, view in self._kind.views(self.values[0], config).items()}
        wrong = [f"{name} is missing" for name in expected.keys() - module.tensors.keys()]
        wrong += [f"{name} is not known" for name in module.tensors.keys() - expected.keys()]
        for name in expected.keys() & module.tensors.keys():
            found, shape = tuple(module.tensors[name].shape), expected[name]
            wrong += [f"{name} is {list(found)}, not {list(shape)}"] if found != shape else []
        return sorted(wrong)


def stacks_on(device: torch.device) -> bool:
    """Whether products of many users are faster stacked there: on CUDA each launch costs, on a CPU each copy."""
    return device.type == "cuda"


def portable(model: PreTrainedModel, module: Module) -> Module:
    """The module as PEFT loads it; one of a kind that PEFT does not have is written as one that it has."""
    if is_peft(module):
        return module
    bank = Bank(model, config_of(module), 1)
    bank.load(0, module)
    return bank.portable(0)


def check_fits(model: PreTrainedModel, module: Module) -> None:
    """ModelError, as from `Bank.load`, for a module that was made for a model of other layers."""
    Bank(model, config_of(module), 1).load(0, module)


def user_seed(seed: int, user_id: str) -> int:
    """The seed of a user's own random streams: the same in every process, whoever the neighbours are.

    Of 32 bits, for torch's generators on a CPU look at no others. Different seeds give a user different ones.
    """
    return zlib.crc32(user_id.encode(), seed & 0xFFFFFFFF)
