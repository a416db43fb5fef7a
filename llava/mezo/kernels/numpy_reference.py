"""The readable kernel: NumPy, one line per line of the definition in `kernels/__init__.py`. Slow and kept for ever."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from llava.mezo.kernels import LARGEST_ON_GRID, PARTS_OF_A_STEP, Field, Grid, changes_nothing, check_rows
from llava.mezo.noise import STREAM_ROUNDING, direction_values, random_bits

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]


class NumpyKernel:
    """Reference kernel for tensors on the CPU."""

    name = "reference"

    def perturb(
        self,
        weight: torch.Tensor,
        out: torch.Tensor,
        field: Field,
        seed: int,
        scale: float,
        start: int = 0,
        grid: Grid | None = None,
    ) -> None:
        z = direction_values(seed, field.tensor, start, weight.numel(), field.noise)
        with np.errstate(all="ignore"):
            total = widened(weight) * steps_of(grid, start, weight.numel()) + np.float32(scale) * z
        out.copy_(torch.from_numpy(total).to(out.dtype).view(out.shape))

    def perturb_rows(
        self,
        table: torch.Tensor,
        rows: torch.Tensor,
        out: torch.Tensor,
        field: Field,
        seed: int,
        scale: float,
        grid: Grid | None = None,
    ) -> None:
        check_rows(rows, table.shape[0])
        for position, row in enumerate(rows.tolist()):
            self.perturb(table[row], out[position], field, seed, scale, row * table.shape[1], grid)

    def update(
        self,
        weight: torch.Tensor,
        field: Field,
        seeds: Sequence[int],
        coefficients: Sequence[float],
        decay: float,
        start: int = 0,
        grid: Grid | None = None,
    ) -> None:
        if changes_nothing(coefficients, decay):
            return
        count = weight.numel()
        steps = steps_of(grid, start, count)
        with np.errstate(all="ignore"):
            u = widened(weight) * steps
            if decay != 1.0:
                u = u * np.float32(decay)
            for seed, coefficient in zip(seeds, coefficients, strict=True):
                u = u + np.float32(coefficient) * direction_values(seed, field.tensor, start, count, field.noise)
        if weight.dtype == torch.float32:
            weight.copy_(torch.from_numpy(u).view(weight.shape))
            return
        r = random_bits(seeds[0], field.tensor, STREAM_ROUNDING, start, count)
        if grid is not None:
            weight.copy_(torch.from_numpy(stochastic_on_grid(u, r, steps)).view(weight.shape))
            return
        stored = ROUND[weight.dtype](u, r)
        weight.copy_(torch.from_numpy(stored.view(np.int16)).view(weight.dtype).view(weight.shape))


def widened(weight: torch.Tensor) -> Floats:
    """The weight's values as a flat float32 array (a copy)."""
    values: Floats = weight.detach().reshape(-1).to(torch.float32, copy=True).numpy()
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
