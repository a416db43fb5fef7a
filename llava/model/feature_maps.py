"""Pure functions on maps of visual features, [C, height, width], and on the tokens in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from llava.errors import InputError

# A map is shrunk only when it has this many times more rows (and columns) than anyres_max_N allows.
SHRINK_ABOVE = 1.1


def side_of(features: torch.Tensor) -> int:
    """Side of the square of patches of [T, P, C] features."""
    side = math.isqrt(features.shape[1])
    if side * side != features.shape[1]:
        raise InputError(
            f"{features.shape[1]} features per tile do not form a square: spatial merging and video pooling need "
            "--mm_vision_select_feature without a class token."
        )
    return side


def join_tiles(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[rows * columns, P, C] to one map [C, rows * side, columns * side]."""
    side = side_of(tiles)
    grid = tiles.view(rows, columns, side, side, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(tiles.shape[-1], rows * side, columns * side)


def unpad_image(tensor: torch.Tensor, original_size: Sequence[int]) -> torch.Tensor:
    """Cut off the rows or columns of a map [C, height, width] that show padding.

    Args:
        original_size: (width, height) of the image before it was fitted and padded. At least one row and one
            column are kept, however extreme its shape.
    """
    width, height = original_size
    map_height, map_width = tensor.shape[1:]
    if width / height > map_width / map_height:
        kept = int(height * (map_width / width))
        margin = min((map_height - kept) // 2, (map_height - 1) // 2)
        return tensor[:, margin : map_height - margin, :]
    kept = int(width * (map_height / height))
    margin = min((map_width - kept) // 2, (map_width - 1) // 2)
    return tensor[:, :, margin : map_width - margin]


def shrink(tensor: torch.Tensor, max_patches: int) -> torch.Tensor:
    """Resize a map [C, height, width] bilinearly when it has clearly more than `max_patches` patches."""
    height, width = tensor.shape[1:]
    times = math.sqrt(height * width / max_patches)
    if times <= SHRINK_ABOVE:
        return tensor
    size = (max(int(height // times), 1), max(int(width // times), 1))
    return F.interpolate(tensor[None], size=size, mode="bilinear")[0]


def append_newline(tensor: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
    """One more column of `newline` [C] on a map [C, height, width] or on several [F, C, height, width]."""
    column = newline.to(tensor)[:, None, None].expand(*tensor.shape[:-1], 1)
    return torch.cat([tensor, column], dim=-1)


def row_major(tensor: torch.Tensor) -> torch.Tensor:
    """A map [C, height, width] as tokens [height * width, C]."""
    return tensor.flatten(1, 2).transpose(0, 1)


def required(newline: torch.Tensor | None) -> torch.Tensor:
    """The newline itself; an InputError when the model has none."""
    if newline is None:
        raise InputError(
            "the model has no image_newline, which --mm_patch_merge_type ..._unpad and --mm_newline_position grid "
            "and frame need: set --mm_patch_merge_type spatial_unpad when the model is built."
        )
    return newline
