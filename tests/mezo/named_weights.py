"""Weights of a model by name, and whether two of these have the same bits."""

from __future__ import annotations

import torch
from torch import nn

from llava.mezo.reference import Weights


def weights_of(model: nn.Module) -> Weights:
    """Copies of all parameters, in the order of their names."""
    return {name: p.detach().clone() for name, p in sorted(model.named_parameters())}


def same(one: Weights, other: Weights) -> bool:
    """Bit for bit: -0 is not 0, and NaN is itself."""
    return one.keys() == other.keys() and all(torch.equal(_bytes(one[name]), _bytes(other[name])) for name in one)


def _bytes(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(-1).view(torch.uint8)
