"""Houlsby's adapters: a bottleneck behind the attention and behind the MLP of each layer, before their residuals.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", <https://arxiv.org/abs/1902.00751>, section 2.1:
h + up(gelu(down(h))). Here up starts at zero, so that the model starts as it was. They are put behind the last linear
layer of both, whose output is the block's; being no linear function of it, they cannot be merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava.model.tuners.ours import OurConfig, OurLayer, register

KIND = "HOULSBY"


@dataclass
class HoulsbyConfig(OurConfig):
    """Bottlenecks that are `r` wide."""

    peft_type: Any = KIND


class Bottleneck(nn.Module):
    """h [..., width] to what is added to it; biases included there are 2 width r + width + r weights."""

    def __init__(self, width: int, r: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, r)
        self.up = nn.Linear(r, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.up(nn.functional.gelu(self.down(h)))


class HoulsbyLayer(OurLayer):
    """A linear layer with a bottleneck behind it."""

    adapter_layer_names = ("houlsby_bottleneck",)

    def make(self, layer: nn.Linear, r: int) -> nn.Module:
        return Bottleneck(layer.out_features, r)

    def change(self, added: Any, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return added(result.to(added.down.weight.dtype))


register(KIND, HoulsbyConfig, HoulsbyLayer)
