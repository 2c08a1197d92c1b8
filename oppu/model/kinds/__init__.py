"""Kinds of personal modules, one file each. A new kind is a file beside these and a line in `_KINDS`."""

from collections.abc import Callable, Sequence

from oppu.errors import ConfigError, ModelError
from oppu.model.kinds.ia3 import Ia3Config
from oppu.model.kinds.kind import Kind, Lines
from oppu.model.kinds.lora import LoraConfig
from oppu.model.kinds.prompt import PromptConfig
from oppu.model.module import Module

ModuleConfig = LoraConfig | Ia3Config | PromptConfig

_KINDS: dict[str, tuple[str, Callable[[], ModuleConfig], Callable[[Module], ModuleConfig]]] = {
    "lora": ("LORA", LoraConfig, LoraConfig.of),
    "ia3": ("IA3", Ia3Config, Ia3Config.of),
    "prompt": ("PROMPT_TUNING", PromptConfig, PromptConfig.of),
}
"""By the name in options: PEFT's name, the default settings, the settings of a module."""

KINDS = tuple(_KINDS)


def default_config(kind: str) -> ModuleConfig:
    """The default settings of a kind; ConfigError for an unknown one."""
    if kind not in _KINDS:
        raise ConfigError(f"unknown kind of module '{kind}'", where="--kind", fix=f"use one of: {', '.join(KINDS)}")
    return _KINDS[kind][1]()


def config_of(module: Module) -> ModuleConfig:
    """The settings of a module; ModelError for a kind that is not known here."""
    for peft_type, _, of in _KINDS.values():
        if module.config.get("peft_type") == peft_type:
            return of(module)
    known = ", ".join(peft_type for peft_type, _, _ in _KINDS.values())
    raise ModelError(f"the module is {module.config.get('peft_type')}", fix=f"use one of: {known}")


def largest(configs: Sequence[ModuleConfig]) -> ModuleConfig:
    """Settings of a bank that takes in modules of all these; ModelError where no bank can hold them together."""
    top = max(configs, key=lambda config: config.rank if isinstance(config, LoraConfig) else 0)
    others = [config for config in configs if not top.holds(config)]
    if others:
        raise ModelError(f"modules of different kinds or layers: {top} and {others[0]}", fix="train them anew alike")
    return top


def virtual_tokens(config: ModuleConfig) -> int:
    """How many virtual tokens stand before a user's text."""
    return config.virtual_tokens if isinstance(config, PromptConfig) else 0


__all__ = [
    "KINDS",
    "Ia3Config",
    "Kind",
    "Lines",
    "LoraConfig",
    "ModuleConfig",
    "PromptConfig",
    "config_of",
    "default_config",
    "largest",
    "virtual_tokens",
]
