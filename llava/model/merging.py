"""Features of one image's tiles to the row of visual tokens that goes into the text; videos: `video_merging`.

Shapes: T tiles of P = side * side patches with C channels are [T, P, C]; a map is [C, height, width]; a row of
tokens is [tokens, C]. Which steps are taken is settled once, in `MergePlan.from_config`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from llava.errors import InputError
from llava.mm_utils import get_anyres_image_grid_shape
from llava.model.feature_maps import append_newline, join_tiles, required, row_major, shrink, unpad_image
from llava.model.merge_plan import MergePlan
from llava.model.video_merging import merge_video


def merge_entry(
    features: torch.Tensor,
    plan: MergePlan,
    image_size: Sequence[int] | None,
    tile_size: int,
    kind: str,
    newline: torch.Tensor | None,
    faster_token: torch.Tensor | None,
) -> torch.Tensor:
    """Visual tokens [tokens, C] of an image or, if that is its kind, of a "video"; see `merge_image`, `merge_video`."""
    if kind == "video":
        return merge_video(features, plan, newline, faster_token)
    return merge_image(features, plan, image_size, tile_size, newline)


def merge_image(
    features: torch.Tensor,
    plan: MergePlan,
    image_size: Sequence[int] | None,
    tile_size: int,
    newline: torch.Tensor | None,
) -> torch.Tensor:
    """Visual tokens of one image.

    Args:
        features: [T, P, C]; with several tiles the first is the whole image, the rest its grid row by row.
        image_size: (width, height) of the original image; needed with several tiles of anyres, and by unpad.
        tile_size: side of a tile in pixels.
        newline: [C], needed by unpad.

    Returns:
        [tokens, C].
    """
    if not plan.spatial:
        return features.flatten(0, 1)
    if features.shape[0] == 1:
        return torch.cat([features[0], required(newline)[None]]) if plan.unpad else features[0]
    base, tiles = features[0], features[1:]
    rows, columns = grid_of(tiles.shape[0], plan, image_size, tile_size)
    tokens = _merge_tiles(tiles, rows, columns, plan, image_size, newline)
    return tokens if plan.nobase else torch.cat([base, tokens])


def grid_of(tiles: int, plan: MergePlan, image_size: Sequence[int] | None, tile_size: int) -> tuple[int, int]:
    """(rows, columns) of the grid that an image was cut into.

    Raises:
        InputError: when the number of tiles does not fit, so that the pixels were made under other settings.
    """
    rows, columns = 2, 2
    if plan.anyres:
        if image_size is None:
            raise InputError("image_sizes is needed for images of several tiles: give (width, height) of each image.")
        columns, rows = get_anyres_image_grid_shape(image_size, plan.grid_pinpoints, tile_size)
    if rows * columns != tiles:
        raise InputError(
            f"an image has {tiles} tiles besides the whole, but its size {image_size} gives a grid of {rows} x "
            f"{columns}: process images with the model's own image_aspect_ratio and image_grid_pinpoints."
        )
    return rows, columns


def _merge_tiles(
    tiles: torch.Tensor,
    rows: int,
    columns: int,
    plan: MergePlan,
    image_size: Sequence[int] | None,
    newline: torch.Tensor | None,
) -> torch.Tensor:
    joined = join_tiles(tiles, rows, columns)
    if plan.maxpool:
        return row_major(F.max_pool2d(joined, 2))
    if not plan.unpad:
        return row_major(joined)
    if image_size is None:
        raise InputError("image_sizes is needed by --mm_patch_merge_type unpad: give (width, height) of each image.")
    joined = unpad_image(joined, image_size)
    if plan.max_tiles is not None:
        joined = shrink(joined, plan.max_tiles * tiles.shape[1])
    return row_major(append_newline(joined, required(newline)))
