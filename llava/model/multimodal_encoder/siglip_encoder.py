"""The SigLIP tower: all patches of the last but one layer of the full model.

The last encoder layer and the pooling head are not built. `post_layernorm` stays among the weights, unused.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from llava.errors import InputError
from llava.model.multimodal_encoder.image_processor import SigLipImageProcessor
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_encoder.tower_config import SO400M

__all__ = ["SigLipImageProcessor", "SigLipVisionConfig", "SigLipVisionTower"]


class SigLipVisionConfig(SiglipVisionConfig):
    """The library's config, with the so400m tower (384 pixels, patch 14) as default."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**(SO400M | values))


class _SiglipBody(SiglipVisionModel):
    """A class of our own keeps the library from renaming the weights when it loads and saves."""


class SigLipVisionTower(VisionTower):
    """See `VisionTower`; the features are [n, patches, width], whatever `mm_vision_select_layer` says."""

    family = "siglip"

    def build(self, attn_implementation: str | None) -> nn.Module:
        config: Any = copy.deepcopy(self.spec.vision_config)
        if config.num_hidden_layers < 2:
            raise InputError(f"vision tower {self.vision_tower_name!r}: LLaVA drops a layer, so it must have two.")
        config.num_hidden_layers -= 1
        config.vision_use_head = False
        config._attn_implementation = attn_implementation
        body = _SiglipBody(config)
        # Transformers before 5.4 or so keep the transformer one level further down.
        return getattr(body, "vision_model", body)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        body = self.vision_tower.vision_model
        return body.encoder(inputs_embeds=body.embeddings(images)).last_hidden_state
