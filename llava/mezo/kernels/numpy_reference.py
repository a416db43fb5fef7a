"""The readable kernel: NumPy, one line per line of the definition in `interface.py`. Slow, and never removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from llava.mezo.kernels.interface import (
    LARGEST_ON_GRID,
    PARTS_OF_A_STEP,
    Aim,
    Grid,
    Part,
    Piece,
    Weight,
    check_rows,
    laid_out,
)
from llava.mezo.noise import STREAM_ROUNDING, direction_values, low_rank_values, random_bits, rank_of
from llava.mezo.updates import Update

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]


class NumpyTable:
    """See `WeightTable`; the reference, for tensors on the CPU."""

    def __init__(self, weights: Sequence[Weight], noise: str) -> None:
        self.weights = list(weights)
        self.noise = noise

    def part(self, pieces: Sequence[Piece]) -> Part:
        return laid_out(self.weights, pieces)

    def aim(self, aim: Aim) -> None:
        self.aimed = aim

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        for point, memory in copies.items():
            for piece, view in zip(part.pieces, part.views(memory), strict=True):
                view.copy_(self._perturbed(point, piece).to(view.dtype))

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        height, width = self.weights[index].value.shape
        check_rows(rows, height)
        for point, out in copies.items():
            for row, target in zip(rows.tolist(), out, strict=True):
                target.copy_(self._perturbed(point, Piece(index, row * width, width)).to(out.dtype))

    def update(self, updates: Sequence[Update]) -> None:
        for update in updates:
            for weight in self.weights:
                if update.changes(weight.group):
                    update_weight(weight, update, self.noise)

    def _perturbed(self, point: int, piece: Piece) -> torch.Tensor:
        """The values at the point in float32, flat."""
        weight = self.weights[piece.index]
        first, stop = weight.first + piece.start, piece.start + piece.count
        with np.errstate(all="ignore"):
            u = widened(weight.value.view(-1)[piece.start : stop]) * steps_of(weight.grid, first, piece.count)
            for seed, scale in zip(self.aimed.seeds, self.aimed.scales[point][weight.group], strict=True):
                u = u + np.float32(scale) * direction(seed, weight, first, piece.count, self.noise)
        return torch.from_numpy(u)


def update_weight(weight: Weight, update: Update, noise: str) -> None:
    """One update of one weight."""
    value, first, count = weight.value, weight.first, weight.value.numel()
    steps = steps_of(weight.grid, first, count)
    with np.errstate(all="ignore"):
        u = widened(value) * steps * np.float32(update.decays[weight.group])
        for seed, coefficient in zip(update.seeds, update.coefficients[weight.group], strict=True):
            u = u + np.float32(coefficient) * direction(seed, weight, first, count, noise)
    if value.dtype == torch.float32:
        value.copy_(torch.from_numpy(u).view(value.shape))
        return
    r = random_bits(update.seeds[0], weight.number, STREAM_ROUNDING, first, count)
    if weight.grid is not None:
        value.copy_(torch.from_numpy(stochastic_on_grid(u, r, steps)).view(value.shape))
        return
    stored = ROUND[value.dtype](u, r)
    value.copy_(torch.from_numpy(stored.view(np.int16)).view(value.dtype).view(value.shape))


def direction(seed: int, weight: Weight, first: int, count: int, noise: str) -> Floats:
    """z of elements of the full tensor."""
    rank, columns = rank_of(noise), weight.columns
    if not rank:
        return direction_values(seed, weight.number, first, count, noise)
    if not columns:
        return direction_values(seed, weight.number, first, count, "gaussian")
    row, end = first // columns, -(-(first + count) // columns)
    z = low_rank_values(seed, weight.number, row, end - row, columns, rank)
    return z.reshape(-1)[first - row * columns :][:count]


def widened(value: torch.Tensor) -> Floats:
    """The values as a flat float32 array (a copy)."""
    values: Floats = value.view(-1).to(torch.float32, copy=True).numpy()
    return values


def steps_of(grid: Grid | None, start: int, count: int) -> Floats:
    """The step of each element, or 1 for a weight that is no integer."""
    if grid is None:
        return np.ones(1, dtype=np.float32)
    rows = (start + np.arange(count, dtype=np.int64)) // grid.width
    steps: Floats = grid.steps.numpy()[rows]
    return steps


def stochastic_on_grid(u: Floats, r: Bits, steps: Floats) -> npt.NDArray[np.int16]:
    """The integers G(u, r)."""
    limit = LARGEST_ON_GRID * PARTS_OF_A_STEP
    with np.errstate(over="ignore"):
        v = np.clip(np.nan_to_num(u * (np.float32(PARTS_OF_A_STEP) / steps)), -limit, limit)
    integers: npt.NDArray[np.int16] = (np.floor(v).astype(np.int64) + r >> 16).astype(np.int16)
    return integers


def stochastic_bfloat16(u: Floats, r: Bits) -> Bits:
    """Bit patterns of S(u, r) in bfloat16."""
    rounded = ((u.view(np.uint32).astype(np.uint64) + r) >> np.uint64(16)).astype(np.uint16)
    patterns: Bits = np.where(np.isnan(u), np.uint16(0x7FC0), rounded)
    return patterns


def stochastic_float16(u: Floats, r: Bits) -> Bits:
    """Bit patterns of S(u, r) in float16: 1 sign, 5 exponent (bias 15) and 10 mantissa bits."""
    bits = u.view(np.uint32).astype(np.int64)
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    exponent = size >> 23
    added = r.astype(np.int64)

    normal = (size - (112 << 23) + (added >> 3)) >> 13

    mantissa = (size & 0x7FFFFF) | np.where(exponent > 0, 1 << 23, 0)
    dropped = np.clip(126 - exponent, 14, 48)
    aligned = np.where(dropped < 16, added >> np.maximum(16 - dropped, 0), added << np.maximum(dropped - 16, 0))
    subnormal = (mantissa + aligned) >> dropped

    stored = np.where(exponent >= 113, np.minimum(normal, 0x7C00), subnormal)
    stored = np.where(np.isnan(u), 0x7E00, stored)
    patterns: Bits = (sign | stored).astype(np.uint16)
    return patterns


ROUND = {torch.bfloat16: stochastic_bfloat16, torch.float16: stochastic_float16}
