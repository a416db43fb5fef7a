"""A language model in 4 or 8 bits (bitsandbytes): which base a run had, adapters on it, and the way back to 16 bits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

logger = logging.getLogger(__name__)

SETTINGS = "quantization_config"
"""Entry of config.json, and argument of `from_pretrained`."""
FOUR, EIGHT = "Linear4bit", "Linear8bitLt"
"""bitsandbytes' layers, and PEFT's around them."""
SCALED = "Scaled"
"""In front of these names, in `quantised_scales.py`."""


def bits_of(settings: Any) -> int:
    """4, 8 or, without settings or with others than bitsandbytes', 16.

    Args:
        settings: of config.json, or as a `BitsAndBytesConfig`.
    """
    if settings is None:
        return 16
    values = settings if isinstance(settings, Mapping) else settings.to_dict()
    return 4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else 16


def base_arguments(of_run: Mapping[str, Any] | None, asked: Any, path: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the base of an adapter or a projector: as it was in training if it can be.

    Args:
        of_run: the settings in the config.json beside the adapter; None for a base that was not quantised.
        asked: settings that the caller gives, or None.
        path: of the adapter, for what is said.
    """
    trained, wanted = bits_of(of_run), bits_of(asked)
    if trained == wanted:
        return {} if of_run is None else {SETTINGS: BitsAndBytesConfig.from_dict(dict(of_run))}
    logger.warning(
        "%s was trained on its base in %d bits, and is put on the base in %d, where its answers differ a little",
        path,
        trained,
        wanted,
    )
    return {} if asked is None else {SETTINGS: asked}


def quantised_layers(model: nn.Module) -> dict[str, Any]:
    """bitsandbytes' layers by name; PEFT's, which hold one each, are none of them."""
    return {n: m for n, m in model.named_modules() if kind_of(m) is not None and isinstance(m, nn.Linear)}


def kind_of(layer: nn.Module) -> str | None:
    """`FOUR` or `EIGHT`, also where its scales are trained; None for any other layer."""
    name = type(layer).__name__.removeprefix(SCALED)
    return name if name in (FOUR, EIGHT) else None


def is_quantised(model: nn.Module) -> bool:
    """Whether any layer is in 4 or 8 bits."""
    return bool(quantised_layers(model))


def keep_layout(model: nn.Module) -> None:
    """Let layers in 4 bits stay as they were loaded.

    On a CPU that computes in bfloat16 bitsandbytes lays codes out anew in the first forward in evaluation mode, and
    rounds scales to bfloat16: another model from there on, which PEFT's DoRA and merging read as if it were the first.
    """
    for layer in quantised_layers(model).values():
        if kind_of(layer) == FOUR:
            layer.support_avx512bf16_for_cpu = False


def ready_for_adapters(model: nn.Module) -> nn.Module:
    """The model, whose layers in 8 bits never give up their scales.

    PEFT's DoRA moves a layer's weight whenever it asks for it. On a CPU that makes a new one that has no scales, and
    the layer's next forward would take these for its own.
    """
    for layer in quantised_layers(model).values():
        if kind_of(layer) == EIGHT:
            layer.init_8bit_state = partial(_take_scales, layer)
    return model


def _take_scales(layer: Any) -> None:
    if layer.weight.SCB is not None:
        layer.state.CB, layer.state.SCB = layer.weight.CB, layer.weight.SCB
    layer.weight.CB = layer.weight.SCB = None


def keep_dtypes(model: nn.Module) -> nn.Module:
    """The model, whose adapted layers give the dtype that they are given.

    PEFT's IA3 on a quantised layer gives float32, which attention refuses beside queries in 16 bits.
    """
    for layer in model.modules():
        if kind_of(layer) is not None and hasattr(layer, "ia3_l"):
            layer.register_forward_hook(_as_given)
    return model


def _as_given(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(inputs[0].dtype)


@torch.no_grad()
def dequantise(model: Any) -> None:
    """Replace layers in 4 or 8 bits by ordinary ones of the model's dtype, with the weights they stand for."""
    dtype = model.dtype
    for name, layer in quantised_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight_of(layer).to(dtype), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
        model.set_submodule(name, plain)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        setattr(model, name, False)
    for owner, name in ((model, "quantization_method"), (model, "hf_quantizer"), (model.config, SETTINGS)):
        if hasattr(owner, name):
            delattr(owner, name)


def weight_of(layer: Any) -> torch.Tensor:
    """What the weight [out, in] of a layer in 4 or 8 bits stands for."""
    from bitsandbytes import functional

    if kind_of(layer) == FOUR:
        weight: torch.Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return functional.int8_vectorwise_dequant(layer.weight.data, scales)
