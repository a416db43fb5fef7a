"""Which steps merging takes, settled once from a model's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava.errors import InputError
from llava.mm_utils import max_anyres_tiles

MERGE_TYPES = "flat, or spatial followed by any of _unpad, _maxpool2x2, _nobase (such as spatial_unpad)"
DEFAULT_POOL_STRIDE = 2
POOL_MODES = ("bilinear", "average", "max")
NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")


@dataclass(frozen=True)
class MergePlan:
    """How features are merged; see `merging.merge_image` and `video_merging.merge_video`.

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
        _check_allowed("--mm_newline_position", plan.newline_position, NEWLINE_POSITIONS)
        _check_allowed("--mm_spatial_pool_mode", plan.pool_mode, POOL_MODES)
        if plan.faster_stride is not None and plan.newline_position != "grid":
            raise InputError(f"--add_faster_video needs --mm_newline_position grid, not {plan.newline_position!r}.")
        return plan


def _check_allowed(flag: str, value: str, table: Sequence[str]) -> None:
    if value not in table:
        raise InputError(f"{flag} {value!r} is not supported; allowed: {', '.join(table)}.")
