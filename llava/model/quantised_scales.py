"""The scales of a language model's layers in 4 or 8 bits as parameters of their own: what QZO trains.

A weight in 4 bits is code * scale, with a scale ("absmax") for each block of 64, in 8 bits code * scale / 127 with a
scale for each row. The codes stay, the scales are perturbed and updated (QZO: Shang et al. 2025, "Fine-tuning Quantized
Neural Networks with Zeroth-order Optimization"). bitsandbytes has them as float32 vectors beside the codes, unless they
are quantised themselves (double quantisation). As a parameter `scales` of its layer such a vector has a name, a number
and noise of its own, and the perturbed forward reads it as any other.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.errors import InputError
from llava.model.quantised import FOUR, SCALED, kind_of, quantised_layers

logger = logging.getLogger(__name__)

SCALES_FILE = "quantized_scales.safetensors"
SCALES = "scales"
START = "scales_start_sha256"
"""Entry of config.json: a fingerprint of the scales before the first step, that is of the base in these bits.

A scale is the largest number of its block, so that every device has the same; codes may differ by how it rounds.
"""


def train_scales(model: Any) -> frozenset[str]:
    """Give every layer in 4 or 8 bits its scales as a parameter, the only ones of the model that are trained.

    The parameter is the memory that bitsandbytes reads, so that the model is at any time what its scales say.

    Returns:
        The parameters' names.

    Raises:
        InputError: nothing is quantised, or the scales are quantised themselves.
    """
    model.requires_grad_(False)
    layers = quantised_layers(model)
    if not layers:
        raise InputError("--zo_quantized_scales True: the model has no layer in 4 or 8 bits")
    for layer in layers.values():
        layer.register_parameter(SCALES, nn.Parameter(scales_of(layer)))
        layer.__class__ = _class_of(type(layer).__name__)
    setattr(model.config, START, _fingerprint(layers))
    return frozenset(f"{name}.{SCALES}" for name in layers)


def _fingerprint(layers: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, layer in sorted(layers.items()):
        digest.update(name.encode() + scales_of(layer).detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def scales_of(layer: Any) -> torch.Tensor:
    """float32: in 4 bits [blocks], of 64 weights in the order of the rows each; in 8 bits [rows].

    Raises:
        InputError: they are quantised themselves.
    """
    if kind_of(layer) == FOUR:
        state = layer.weight.quant_state
        if state.nested:
            raise InputError("--zo_quantized_scales True: these scales are in 8 bits themselves: --double_quant False")
        scales: torch.Tensor = state.absmax
        return scales
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    return layer.state.SCB


@functools.cache
def _class_of(kind: str) -> type[Any]:
    """bitsandbytes' class of this name with a forward that reads the parameter."""
    from bitsandbytes import nn as layers

    forward = _forward_in_4_bits if kind == FOUR else _forward_in_8_bits
    return type(f"{SCALED}{kind}", (getattr(layers, kind),), {"forward": forward})


def _forward_in_4_bits(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """As the class it stands for, except that on a CPU with AVX-512 weights and scales keep their layout."""
    import bitsandbytes

    state = copy.copy(layer.weight.quant_state)
    state.absmax = layer.scales
    dtype = layer.compute_dtype or x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    output: torch.Tensor = bitsandbytes.matmul_4bit(x.to(dtype), layer.weight, bias=bias, quant_state=state)
    return output.to(x.dtype)


def _forward_in_8_bits(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """As the class it stands for in evaluation mode."""
    import bitsandbytes

    state = copy.copy(layer.state)
    state.SCB, state.is_training = layer.scales, False
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    output: torch.Tensor = bitsandbytes.matmul(x, layer.weight, bias=bias, state=state)
    return output


@torch.no_grad()
def load_scales(
    model: Any, tensors: dict[str, torch.Tensor], source: Path, base: str, trained_in: str | None
) -> dict[str, torch.Tensor]:
    """Copy scales, by the names of their parameters, into the layers of a model; gives back the other tensors.

    Args:
        base: name of the model, for what is said.
        trained_in: the run's dtype. In another one the scales of the same base may be others, which is a warning.

    Raises:
        InputError: the model's layers are others, are not quantised, or in another way, or hold another base.
    """
    layers, others = quantised_layers(model), {}
    start = _fingerprint(layers)
    found = set()
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        if last != SCALES:
            others[name] = tensor
            continue
        scales = scales_of(layers[owner]) if owner in layers else None
        if scales is None or scales.shape != tensor.shape:
            raise InputError(f"{source}: {name} is not of this base, quantised as it is: load it as in training")
        scales.copy_(tensor)
        found.add(owner)
    if found != set(layers):
        raise InputError(f"{source} lacks the scales of {min(set(layers) - found)}")
    trained_on = vars(model.config).pop(START, start)  # runs of before do not say
    if trained_on != start:
        said = f"{source}: the scales are of another base than {base}"
        if trained_in in (None, str(model.dtype).removeprefix("torch.")):
            raise InputError(f"{said}: give the model that the run was started with")
        logger.warning("%s, or of it in %s, as the run had it", said, trained_in)
    return others
