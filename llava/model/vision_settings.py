"""Which arguments of a run become entries of the model's config."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

# Entries that follow the arguments in every run, with the value when an argument is missing.
_SETTINGS: dict[str, Any] = {
    "mm_vision_select_layer": -1,
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "flat",
    "mm_resampler_type": None,
    "vision_tower_pretrained": None,
}
# Entries that follow the arguments where these have them.
_OPTIONAL_SETTINGS = (
    "mm_newline_position",
    "mm_spatial_pool_mode",
    "mm_spatial_pool_stride",
    "add_faster_video",
    "faster_token_stride",
    "use_pos_skipping",
    "pos_skipping_range",
)


def copy_settings(model_args: Any, config: Any, keep_tower: bool, keep_projector: bool) -> None:
    """Write the vision fields of `model_args` into a model config.

    Args:
        keep_tower, keep_projector: the model has one from its checkpoint, whose name in the config stays.
    """
    config.use_mm_proj = True
    for name, default in _SETTINGS.items():
        setattr(config, name, getattr(model_args, name, default))
    for name in _OPTIONAL_SETTINGS:
        if hasattr(model_args, name):
            setattr(config, name, getattr(model_args, name))
    _name("mm_vision_tower", getattr(model_args, "vision_tower", None), config, keep_tower)
    projector = getattr(model_args, "mm_projector_type", "linear")
    if keep_projector and "mm_projector_type" not in getattr(model_args, "given", ("mm_projector_type",)):
        projector = None  # the flag's default, which nobody asked for
    _name("mm_projector_type", projector, config, keep_projector)


def _name(entry: str, asked: Any, config: Any, keep: bool) -> None:
    if not keep:
        setattr(config, entry, asked)
    elif asked is not None and asked != getattr(config, entry, None):
        logger.warning("the checkpoint's %s %r stays; %r is not used", entry, getattr(config, entry, None), asked)
