"""The parts of a LLaVA model that see images."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from torch import nn


def image_modules(network: Any) -> list[nn.Module]:
    """Vision tower, then projector: the order in which images pass them; none in a plain language model."""
    if not hasattr(network, "get_model"):
        return []
    inner = network.get_model()
    return [m for m in (inner.get_vision_tower(), getattr(inner, "mm_projector", None)) if m is not None]


def frozen_image_modules(network: nn.Module) -> list[nn.Module]:
    """Those modules, from the first on, that are frozen: what they give depends on the images alone."""
    return list(takewhile(is_frozen, image_modules(network)))


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing in it is trained."""
    return not any(p.requires_grad for p in module.parameters())
