"""Features of one image's tiles to the row of visual tokens that goes into the text; videos: `video_merging`.

Shapes: T tiles of P = side * side patches with C channels are [T, P, C]; a map is [C, height, width]; a row of
tokens is [tokens, C]. Which steps are taken is settled once, in `MergePlan.from_config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from llava.errors import InputError
from llava.mm_utils import get_anyres_image_grid_shape, max_anyres_tiles
from llava.model.feature_maps import append_newline, join_tiles, required, row_major, shrink, unpad_image
from llava.model.video_merging import POOLS, VIDEO_NEWLINES, merge_video

MERGE_TYPES = "flat, or spatial followed by any of _unpad, _maxpool2x2, _nobase (such as spatial_unpad)"
DEFAULT_POOL_STRIDE = 2


@dataclass(frozen=True)
class MergePlan:
    """How features are merged; see `merge_image` and `merge_video`.

    Attributes:
        spatial: False joins all tiles as they are and ignores the rest.
        unpad, maxpool, nobase: parts of `mm_patch_merge_type`.
        anyres: tiles lie in the grid that fits the image; otherwise in 2 x 2.
        max_tiles: N of `anyres_max_N`, or None.
        grid_pinpoints: resolutions the grid is chosen from.
        newline_position: `mm_newline_position`, for videos.
        pool_mode, pool_stride: pooling of a video's frames.
        faster_stride: every so many frames keep their tokens, the others are pooled harder; None keeps all alike.
    """

    spatial: bool
    unpad: bool
    maxpool: bool
    nobase: bool
    anyres: bool
    max_tiles: int | None
    grid_pinpoints: Any
    newline_position: str
    pool_mode: str
    pool_stride: int
    faster_stride: int | None

    def calculates(self, kind: str) -> bool:
        """Whether merging always makes new features of an image, or video, of those that it has."""
        return kind == "video" or (self.spatial and self.maxpool)

    @classmethod
    def from_config(cls, config: Any) -> MergePlan:
        """Read a model config; what it lacks is flat, square, one_token, bilinear, stride 2.

        Raises:
            InputError: for an unknown merge type, newline position or pooling.
        """
        merge_type = getattr(config, "mm_patch_merge_type", None) or "flat"
        base, *parts = merge_type.split("_")
        if base not in ("flat", "spatial") or not set(parts) <= {"unpad", "maxpool2x2", "nobase"}:
            raise InputError(f"--mm_patch_merge_type {merge_type!r} is not supported; allowed: {MERGE_TYPES}.")
        if base == "flat" and parts:
            raise InputError(f"--mm_patch_merge_type {merge_type!r}: flat has no variants; allowed: {MERGE_TYPES}.")
        aspect = getattr(config, "image_aspect_ratio", None) or "square"
        max_tiles = max_anyres_tiles(aspect)
        faster = getattr(config, "add_faster_video", False)
        plan = cls(
            spatial=base == "spatial",
            unpad="unpad" in parts,
            maxpool="maxpool2x2" in parts,
            nobase="nobase" in parts,
            anyres=max_tiles is not None or aspect == "anyres",
            max_tiles=max_tiles,
            grid_pinpoints=getattr(config, "image_grid_pinpoints", None),
            newline_position=getattr(config, "mm_newline_position", None) or "one_token",
            pool_mode=getattr(config, "mm_spatial_pool_mode", None) or "bilinear",
            pool_stride=getattr(config, "mm_spatial_pool_stride", None) or DEFAULT_POOL_STRIDE,
            faster_stride=getattr(config, "faster_token_stride", 10) if faster else None,
        )
        _check_allowed("--mm_newline_position", plan.newline_position, VIDEO_NEWLINES)
        _check_allowed("--mm_spatial_pool_mode", plan.pool_mode, POOLS)
        if plan.faster_stride is not None and plan.newline_position != "grid":
            raise InputError(f"--add_faster_video needs --mm_newline_position grid, not {plan.newline_position!r}.")
        return plan


def _check_allowed(flag: str, value: str, table: dict[str, Any]) -> None:
    if value not in table:
        raise InputError(f"{flag} {value!r} is not supported; allowed: {', '.join(table)}.")


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


def grid_of(tiles: int, plan: MergePlan, image_size: tuple[int, int] | None, tile_size: int) -> tuple[int, int]:
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
