"""Kinds of personal modules, one file each. A new kind is a file beside these: it is found by its ModuleConfig."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oppu.errors import ConfigError, ModelError
from oppu.model.kinds.ia3 import Ia3Config
from oppu.model.kinds.kind import Kind, Lines, ModuleConfig
from oppu.model.kinds.lora import LoraConfig
from oppu.model.kinds.lora_xs import LoraXsConfig
from oppu.model.kinds.prompt import PromptConfig
from oppu.model.module import Module, Shape


def _found() -> Iterator[type[ModuleConfig]]:
    """The ModuleConfig of each file here."""
    for file in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{file.name}")).values():
            if isinstance(value, type) and issubclass(value, ModuleConfig) and value is not ModuleConfig:
                yield value


_BY_TYPE = {config.peft_type: config for config in _found()}
_BY_NAME = {config().kind: config for config in _BY_TYPE.values()}

KINDS = tuple(sorted(_BY_NAME))
"""The names in options."""


def default_config(kind: str) -> ModuleConfig:
    """The default settings of a kind; ConfigError for an unknown one."""
    if kind not in _BY_NAME:
        raise ConfigError(f"unknown kind of module '{kind}'", where="--kind", fix=f"use one of: {', '.join(KINDS)}")
    return _BY_NAME[kind]()


def config_of(module: Module) -> ModuleConfig:
    """The settings of a module; ModelError for a kind that is not known here."""
    peft_type = str(module.config.get("peft_type"))
    if peft_type not in _BY_TYPE:
        raise ModelError(f"the module is {peft_type}", fix=f"use one of: {', '.join(sorted(_BY_TYPE))}")
    return _BY_TYPE[peft_type].of(module)


def misfits_in_file(peft_type: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str] | None:
    """See ModuleConfig; None for an unknown kind."""
    known = _BY_TYPE.get(peft_type)
    return known.misfits_in_file(config, shapes) if known is not None else None


def largest(configs: Sequence[ModuleConfig]) -> ModuleConfig:
    """Those settings among `configs` whose bank takes in modules of all; ModelError where no bank can hold them all."""
    for config in configs:
        if all(config.holds(other) for other in configs):
            return config
    words = sorted({_in_words(config) for config in configs})
    raise ModelError(f"modules of different kinds or layers: {'; '.join(words)}", fix="train them anew alike")


def _in_words(config: ModuleConfig) -> str:
    return config.kind + (f" on {', '.join(config.targets)}" if config.targets is not None else "")


__all__ = [
    "KINDS",
    "Ia3Config",
    "Kind",
    "Lines",
    "LoraConfig",
    "LoraXsConfig",
    "ModuleConfig",
    "PromptConfig",
    "config_of",
    "default_config",
    "largest",
    "misfits_in_file",
]
