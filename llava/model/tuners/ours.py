"""What PEFT wants of a method that changes linear layers, for those of ours: one module beside each layer.

A method is a configuration and a layer, registered by `register`; from then on PEFT injects, saves, loads and merges it
as its own methods, under the name in `adapter_config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn


@dataclass
class OurConfig(PeftConfig):
    """Settings of a method of ours.

    Attributes:
        r: the size of what is added, see the method's layer.
        target_modules, exclude_modules: which layers, as in PEFT's own configurations.
    """

    r: int = 64
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None


class OurLayer(nn.Module, BaseTunerLayer):
    """A linear layer with one module for each adapter beside it; a method says what these are and what they do."""

    def __init__(self, base_layer: nn.Linear, adapter: str, config: OurConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())
        self.update_layer(base_layer, adapter, config)
        self._active_adapter = adapter

    @property
    def added(self) -> Any:
        """The modules by adapter."""
        return getattr(self, self.adapter_layer_names[0])

    def update_layer(self, layer: nn.Linear, adapter: str, config: OurConfig) -> None:
        """Add an adapter of that name, which changes nothing yet."""
        self.added[adapter] = self.make(layer, config.r)
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(adapter, inference_mode=config.inference_mode)

    def make(self, layer: nn.Linear, r: int) -> nn.Module:
        """The module of an adapter of size `r` for this layer."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Of x [..., in], as the layer's [..., out]."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            result = result + self.change(self.added[name], x, result)
        return result.to(dtype)

    def change(self, added: nn.Module, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """What an adapter adds to the `result` [..., out] for x [..., in]; in its own dtype."""
        raise NotImplementedError


class OurTuner(BaseTuner):
    """Puts the layers of a method into a model."""

    tuner_layer_cls: type[OurLayer]
    target_module_mapping: Any = {}  # noqa: RUF012  # PEFT's: no defaults for known models

    def _create_and_replace(  # type: ignore[override]  # newer ones give a further argument
        self, peft_config: OurConfig, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(target.base_layer, adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def register(kind: str, config: type[OurConfig], layer: type[OurLayer]) -> None:
    """Make a method known to PEFT as `kind`, the `peft_type` of its configuration.

    PEFT's own function for this asks for a member of its enumeration; the names of members are all that it looks up.
    """
    if kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    prefix = f"{kind.lower()}_"
    tuner = type(f"{layer.__name__}Tuner", (OurTuner,), {"prefix": prefix, "tuner_layer_cls": layer})
    name: Any = kind
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = prefix
