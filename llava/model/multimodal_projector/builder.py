"""Projectors from the tower's width to the language model's: `--mm_projector_type`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llava.errors import InputError

PROJECTOR_TYPES = "linear, mlpNx_gelu, mlpNx_resMx_gelu, pooler, identity (N, M whole numbers, such as mlp2x_gelu)"


class ResidualBlock(nn.Module):
    """n + MLP(n) with n = LayerNorm(x), width kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.proj = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        normed = self.pre_norm(features)
        return normed + self.proj(normed)


class PoolerProjector(nn.Module):
    """Joins 2 x 2 patches into one: [n, side * side, C] -> [n, (side // 2) ** 2, hidden]."""

    def __init__(self, mm_hidden_size: int, hidden_size: int) -> None:
        super().__init__()
        self.conv_pool = nn.Conv2d(mm_hidden_size, hidden_size, kernel_size=2, stride=2)
        self.proj = nn.Sequential(nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        batch, patches, channels = features.shape
        side = math.isqrt(patches)
        if side * side != patches:
            raise InputError(f"--mm_projector_type pooler needs a square of patches, but the tower gives {patches}.")
        square = features.transpose(1, 2).reshape(batch, channels, side, side)
        return self.proj(self.conv_pool(square).flatten(2).transpose(1, 2))


def _mlp(config: Any, depth: int, blocks: int = 0) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers, *(ResidualBlock(config.hidden_size) for _ in range(blocks)))


# Pattern of the name -> builder (config, numbers in the name).
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    r"linear": lambda config: nn.Linear(config.mm_hidden_size, config.hidden_size),
    r"mlp([1-9]\d*)x_gelu": _mlp,
    r"mlp([1-9]\d*)x_res([1-9]\d*)x_gelu": _mlp,
    r"pooler": lambda config: PoolerProjector(config.mm_hidden_size, config.hidden_size),
    r"identity": lambda config: nn.Identity(),
}


def build_vision_projector(config: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """Build the projector of `config.mm_projector_type` (default linear) with random weights.

    Args:
        config: has `mm_hidden_size` (width of the tower's features) and `hidden_size` (of the language model).
        delay_load: accepted for compatibility; a projector has nothing to load.

    Raises:
        InputError: for an unknown type; names are case-sensitive.
    """
    name = getattr(config, "mm_projector_type", None) or "linear"
    for pattern, build in _BUILDERS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return build(config, *(int(number) for number in match.groups()))
    raise InputError(f"--mm_projector_type {name!r} is not supported; allowed: {PROJECTOR_TYPES}.")
