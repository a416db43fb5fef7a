"""PiSSA and MiLoRA: LoRA that starts from singular vectors of the weights, which are taken off them.

    W x + s B A x - s B0 A0 x

PiSSA (Meng et al. 2024, <https://arxiv.org/abs/2404.02948>, equations 2 to 4) starts A and B, and A0 and B0, at the
principal singular vectors of W, MiLoRA (Wang et al. 2024, <https://arxiv.org/abs/2406.09044>, section 3) at the minor
ones. Both write W - s B0 A0 over W. Here W stays, and A0 and B0 are a second adapter, "initial", with the negative of
B0, which is frozen and saved beside the first: the adapter belongs to the original base, starts as exactly that, and
does not depend on a machine's singular value decomposition once it is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from llava.errors import InputError
from llava.model.adapter_kinds import INITIAL


@torch.no_grad()
def start_from_weights(model: Any, kind: str) -> None:
    """Set LoRA's matrices of a fresh PEFT model as `kind` says, and add the adapter that takes them off again.

    Raises:
        InputError: a layer has fewer singular vectors than the rank asks for.
    """
    _check_rank(model, kind)
    for layer in _layers(model):
        if kind == "pissa":
            weight = layer.get_base_layer().weight
            values = weight.data
            layer.pissa_init("default", "pissa")
            weight.data = values  # PEFT writes the rest over it
        else:
            _minor_vectors(layer)
    model.peft_config["default"].init_lora_weights = kind  # any reader but ours has to do this, or refuse
    _add_initial(model)
    for layer in _layers(model):
        layer.lora_A[INITIAL].weight.data = layer.lora_A["default"].weight.detach().clone()
        layer.lora_B[INITIAL].weight.data = -layer.lora_B["default"].weight.detach()


def _check_rank(model: Any, kind: str) -> None:
    r = model.peft_config["default"].r
    smallest = min((layer.get_base_layer().weight for layer in _layers(model)), key=lambda weight: min(weight.shape))
    if r > min(smallest.shape):
        raise InputError(
            f"--adapter_r {r}: --adapter {kind} starts from as many singular vectors of each layer, and the smallest, "
            f"of {smallest.shape[1]} inputs and {smallest.shape[0]} outputs, has {min(smallest.shape)}: give as many "
            "at most"
        )


def _minor_vectors(layer: Any) -> None:
    """MiLoRA's start: the last r singular triples of the weight, in float32, the values shared between A and B."""
    r, scaling = layer.r["default"], layer.scaling["default"]
    left, values, right = torch.linalg.svd(layer.get_base_layer().weight.float(), full_matrices=False)
    root = (values[-r:] / scaling).sqrt()
    layer.lora_A["default"].weight.data = root[:, None] * right[-r:]
    layer.lora_B["default"].weight.data = (left[:, -r:] * root).contiguous()


def load_initial(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add the frozen adapter to a loaded PEFT model, with its saved values by full name."""
    _add_initial(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)


def _add_initial(model: Any) -> None:
    config = copy.copy(model.peft_config["default"])
    config.init_lora_weights = False
    model.add_adapter(INITIAL, config)
    model.base_model.set_adapter(["default", INITIAL])
    for layer in _layers(model):
        layer.lora_A[INITIAL].requires_grad_(False)
        layer.lora_B[INITIAL].requires_grad_(False)


def _layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
