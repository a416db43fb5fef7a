"""Flags that are not given are the checkpoint's own settings, where it has any.

LLaVA-NeXT's defaults of these flags would otherwise replace, without a word, what the checkpoint was trained with.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from llava.errors import InputError
from llava.model.own_settings import TEMPLATE, own_template
from llava.train.flags.arguments import DataArguments, ModelArguments, hand_on

logger = logging.getLogger(__name__)

OF_THE_MODEL = (
    "mm_patch_merge_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_newline_position",
    "mm_spatial_pool_mode",
    "mm_spatial_pool_stride",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "add_faster_video",
    "faster_token_stride",
)
OF_THE_DATA = (
    "image_aspect_ratio",
    "image_grid_pinpoints",
    "image_crop_resolution",
    "image_split_resolution",
    "add_time_instruction",
    "force_sample",
)
"""Flags whose values lie in config.json by the same names."""


def take_from_checkpoint(model_args: ModelArguments, data_args: DataArguments, config: Mapping[str, Any]) -> None:
    """Fill in what was not given, and say where something given is not the checkpoint's.

    Args:
        config: the contents of the checkpoint's config.json.

    Raises:
        InputError: tiles without a list of grids, neither given nor the checkpoint's.
    """
    given = model_args.given
    where: list[tuple[Any, str]] = [(model_args, name) for name in OF_THE_MODEL]
    where += [(data_args, name) for name in OF_THE_DATA]
    for arguments, name in where:
        if config.get(name) is not None:
            _settle(arguments, name, config[name], given)
    if "version" not in given or TEMPLATE in config:
        _settle(model_args, "version", own_template(config), given)
    hand_on(model_args, data_args)
    if data_args.image_aspect_ratio.startswith("anyres") and data_args.image_grid_pinpoints is None:
        raise InputError(
            f'--image_aspect_ratio {data_args.image_aspect_ratio} needs --image_grid_pinpoints, e.g. "(1x1),...,(6x6)"'
        )


def _settle(arguments: Any, name: str, own: Any, given: Collection[str]) -> None:
    value = getattr(arguments, name)
    if name not in given:
        setattr(arguments, name, own)
    elif value != own and name != "image_grid_pinpoints":  # in tiles here, in pixels there
        logger.warning("--%s %s: the checkpoint was trained with %s", name, value, own)
