"""The parts of a LLaVA model that see images, and what at its beginning is frozen."""

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
    return list(takewhile(_is_frozen, image_modules(network)))


def frozen_beginning(model: Any) -> int:
    """How many decoder layers of a LLaVA model, from the first on, are frozen with all that comes before them."""
    inner = model.get_model()
    layers = list(inner.layers)
    after = {id(p) for module in (*layers, inner.norm) for p in module.parameters()}
    if any(p.requires_grad for p in inner.parameters() if id(p) not in after):
        return 0
    return len(list(takewhile(_is_frozen, layers)))


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())
