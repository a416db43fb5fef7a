"""MoRA: one square matrix between a compression and a decompression without weights.

Jiang et al. 2024, "MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning", <https://arxiv.org/abs/2405.12130>,
section 4, with the compression by rotation (equation 9), which they use where there are few weights. It has as many
weights as LoRA of rank r, and what it adds has a rank of sqrt((in + out) r) or more. It starts at zero, and has no
scale of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from llava.model.tuners.ours import OurConfig, OurLayer, register

KIND = "MORA"
ROPE_BASE = 10000.0


@dataclass
class MoraConfig(OurConfig):
    """MoRA with as many weights as LoRA of rank `r`."""

    peft_type: Any = KIND


def side(inputs: int, outputs: int, r: int) -> int:
    """Width and height of the square matrix: even, at most the layer's inputs, (inputs + outputs) r weights."""
    return max(2, min(round(math.sqrt((inputs + outputs) * r)), inputs) // 2 * 2)


class Square(nn.Module):
    """x [..., in] to [..., out]: x in pieces of a matrix's width, each rotated by its place and multiplied by it."""

    def __init__(self, inputs: int, outputs: int, r: int) -> None:
        super().__init__()
        self.outputs, self.width = outputs, side(inputs, outputs, r)
        self.weight = nn.Parameter(torch.zeros(self.width, self.width))
        self.pieces = -(-inputs // self.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        x = x.to(weight.dtype)
        missing = self.pieces * self.width - x.shape[-1]
        pieces = torch.cat([x, x[..., :missing]], dim=-1).unflatten(-1, (self.pieces, self.width))
        found = nn.functional.linear(self._rotated(pieces), weight).flatten(-2)
        repeats = -(-self.outputs // found.shape[-1])
        return torch.cat([found] * repeats, dim=-1)[..., : self.outputs]

    def _rotated(self, pieces: torch.Tensor) -> torch.Tensor:
        """As positions are in rotary embeddings, so that equal pieces at two places do not come to the same."""
        half = torch.arange(self.width // 2, device=pieces.device)
        place = torch.arange(self.pieces, device=pieces.device)
        angle = place[:, None] * ROPE_BASE ** (-half / (self.width // 2))
        angle = torch.cat([angle, angle], dim=-1)
        first, second = pieces.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return pieces * angle.cos().to(pieces.dtype) + turned * angle.sin().to(pieces.dtype)


class MoraLayer(OurLayer):
    """A linear layer with a square matrix beside it."""

    adapter_layer_names = ("mora_square",)

    def make(self, layer: nn.Linear, r: int) -> nn.Module:
        return Square(layer.in_features, layer.out_features, r)

    def change(self, added: nn.Module, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return added(x)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add what the adapters do, which is linear in x, to the layer's weight."""
        for name in check_adapters_to_merge(self, adapter_names):
            weight = self.base_layer.weight
            units = torch.eye(weight.shape[1], device=weight.device)
            weight.copy_(weight + self.added[name](units).T.to(weight.dtype))
            self.merged_adapters.append(name)


register(KIND, MoraConfig, MoraLayer)
