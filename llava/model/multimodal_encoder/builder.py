"""Pick the tower's class: by the config of the folder or hub model, by a hub id's name where that is out of reach."""

from __future__ import annotations

import re
from typing import Any

from llava.errors import InputError
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionTower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_encoder.tower_config import (
    FAMILY_OF_MODEL_TYPE,
    SUPPORTED_TOWERS,
    config_beside,
    embedded_config,
    tower_name,
    tower_source,
)

TOWER_CLASSES: dict[str, type[VisionTower]] = {"siglip": SigLipVisionTower, "clip": CLIPVisionTower}
# Modules that must not be split over devices.
TOWER_LAYERS = ("SiglipVisionEmbeddings", "SiglipEncoderLayer", "CLIPVisionEmbeddings", "CLIPEncoderLayer")

# Hub ids of the two families, for when the config behind them cannot be read.
_HUB_IDS = ((re.compile(r"siglip", re.IGNORECASE), "siglip"), (re.compile(r"^(openai|laion)|ShareGPT4V"), "clip"))


def tower_class(name: str, model_config: Any = None) -> type[VisionTower]:
    """The class of a tower.

    Raises:
        InputError: for a kind that is not supported, or a name that tells nothing.
    """
    if getattr(model_config, "s2", False):
        raise InputError(f"multi-scale (s2) towers are not supported; supported: {SUPPORTED_TOWERS}.")
    source = tower_source(name, model_config)
    values = embedded_config(model_config)
    if values is None:
        values = config_beside(source, local_only=True)
    if values is not None:
        family = FAMILY_OF_MODEL_TYPE.get(str(values.get("model_type")))
    else:
        family = next((family for pattern, family in _HUB_IDS if pattern.search(source)), None)
    if family is None:
        raise InputError(f"vision tower {name!r} is not supported; supported: {SUPPORTED_TOWERS}.")
    return TOWER_CLASSES[family]


def build_vision_tower(
    vision_tower_cfg: Any, delay_load: bool = False, in_checkpoint: bool = False, **kwargs: Any
) -> VisionTower:
    """Build the tower that a model config or arguments name (`mm_vision_tower`, else `vision_tower`).

    Args:
        delay_load, in_checkpoint: as for `VisionTower`.
        kwargs: accepted for compatibility.
    """
    name = tower_name(vision_tower_cfg)
    if name is None:
        raise InputError(f"no vision tower is named: set --vision_tower; supported: {SUPPORTED_TOWERS}.")
    return tower_class(name, vision_tower_cfg)(name, vision_tower_cfg, delay_load, in_checkpoint)
