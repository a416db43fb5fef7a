"""Features of a video's frames, [frames, P, C], to the row of visual tokens that goes into the text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from llava.errors import InputError
from llava.model.feature_maps import append_newline, required, side_of
from llava.model.merge_plan import MergePlan


def merge_video(
    features: torch.Tensor, plan: MergePlan, newline: torch.Tensor | None, faster_token: torch.Tensor | None
) -> torch.Tensor:
    """Visual tokens of one video.

    Args:
        features: [frames, P, C].
        newline: [C], needed by `mm_newline_position` grid and frame, and by unpad.
        faster_token: [C], put behind every frame with `add_faster_video`.

    Returns:
        [tokens, C].
    """
    pooled = pool_frames(features, plan.pool_mode, plan.pool_stride)
    if not plan.spatial:
        return pooled.flatten(0, 1)
    if plan.faster_stride is not None:
        return _slow_and_fast(features, pooled, plan, required(newline), faster_token)
    return VIDEO_NEWLINES[plan.newline_position](pooled, newline, plan.unpad)


def pool_frames(features: torch.Tensor, mode: str, stride: int) -> torch.Tensor:
    """Pool frames [F, side * side, C] by `stride` in both directions; bilinear rounds the new side up, others down."""
    side = side_of(features)
    maps = features.transpose(1, 2).reshape(features.shape[0], -1, side, side)
    return POOLS[mode](maps, stride).flatten(2).transpose(1, 2)


def _pool_bilinear(maps: torch.Tensor, stride: int) -> torch.Tensor:
    side = math.ceil(maps.shape[-1] / stride)
    return F.interpolate(maps, size=(side, side), mode="bilinear")


POOLS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "bilinear": _pool_bilinear,
    "average": F.avg_pool2d,
    "max": F.max_pool2d,
}


def _rows_with_newline(frames: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
    side = side_of(frames)
    maps = frames.transpose(1, 2).reshape(frames.shape[0], -1, side, side)
    return append_newline(maps, newline).flatten(2).transpose(1, 2)


def _newline_per_row(frames: torch.Tensor, newline: torch.Tensor | None, unpad: bool) -> torch.Tensor:
    return _rows_with_newline(frames, required(newline)).flatten(0, 1)


def _newline_per_frame(frames: torch.Tensor, newline: torch.Tensor | None, unpad: bool) -> torch.Tensor:
    ends = required(newline).to(frames).expand(frames.shape[0], 1, -1)
    return torch.cat([frames, ends], dim=1).flatten(0, 1)


def _newline_at_end(frames: torch.Tensor, newline: torch.Tensor | None, unpad: bool) -> torch.Tensor:
    tokens = frames.flatten(0, 1)
    return torch.cat([tokens, required(newline).to(tokens)[None]]) if unpad else tokens


def _no_newline(frames: torch.Tensor, newline: torch.Tensor | None, unpad: bool) -> torch.Tensor:
    return frames.flatten(0, 1)


VIDEO_NEWLINES: dict[str, Callable[[torch.Tensor, torch.Tensor | None, bool], torch.Tensor]] = {
    "grid": _newline_per_row,
    "frame": _newline_per_frame,
    "one_token": _newline_at_end,
    "no_token": _no_newline,
}


def _slow_and_fast(
    features: torch.Tensor,
    pooled: torch.Tensor,
    plan: MergePlan,
    newline: torch.Tensor,
    faster_token: torch.Tensor | None,
) -> torch.Tensor:
    """Every `faster_stride`-th frame as usual, the others pooled twice as hard; `faster_token` behind each."""
    if faster_token is None or plan.faster_stride is None:
        raise InputError("--add_faster_video: the model has no faster_token; set the flag when the model is built.")
    slow = _rows_with_newline(pooled, newline)
    fast = _rows_with_newline(pool_frames(features, plan.pool_mode, 2 * plan.pool_stride), newline)
    end = faster_token.to(features)[None]
    frames = [slow[k] if k % plan.faster_stride == 0 else fast[k] for k in range(features.shape[0])]
    return torch.cat([part for frame in frames for part in (frame, end)])
