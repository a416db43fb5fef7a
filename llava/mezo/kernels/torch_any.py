"""Kernel in plain torch operations, for every device: int64 arithmetic, a bounded number of elements at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch

from llava.mezo.kernels import LARGEST_ON_GRID, PARTS_OF_A_STEP, Field, Grid, changes_nothing, check_rows
from llava.mezo.noise import (
    BLOCKS_PER_TILE,
    LOW32,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    PHILOX_WEYL,
    STREAM_DIRECTION,
    STREAM_ROUNDING,
    TILE,
    noise_table,
    split64,
)

CHUNK = 256 * TILE
"""Elements worked on at a time: about 20 MB of temporary memory."""


class TorchKernel:
    """Kernel for tensors on any device."""

    name = "torch"

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
        source, target = weight.view(-1), out.view(-1)
        factor = torch.tensor(scale, dtype=torch.float32, device=weight.device)
        for first, last in _chunks(source.numel(), start):
            z = _direction(seed, field, start + first, last - first, weight.device)
            values = source[first:last].float() * _steps(grid, start + first, last - first)
            target[first:last] = values.add_(z.mul_(factor)).to(out.dtype)

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
        count, width = table.shape
        check_rows(rows, count)
        factor = torch.tensor(scale, dtype=torch.float32, device=table.device)
        inside = torch.arange(width, device=table.device)
        step = max(1, CHUNK // (8 * width))
        for first in range(0, rows.numel(), step):
            chosen = rows[first : first + step]
            z = _lookup(_bits_of(seed, field.tensor, STREAM_DIRECTION, chosen[:, None] * width + inside), field.noise)
            values = table[chosen].float() * (1 if grid is None else grid.steps[chosen][:, None])
            out[first : first + step] = values.add_(z.mul_(factor)).to(out.dtype)

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
        values = weight.view(-1)
        factors = [torch.tensor(c, dtype=torch.float32, device=weight.device) for c in coefficients]
        for first, last in _chunks(values.numel(), start):
            steps = _steps(grid, start + first, last - first)
            u = values[first:last].to(torch.float32, copy=True).mul_(steps)
            if decay != 1.0:
                u.mul_(torch.tensor(decay, dtype=torch.float32, device=weight.device))
            for seed, factor in zip(seeds, factors, strict=True):
                u.add_(_direction(seed, field, start + first, last - first, weight.device).mul_(factor))
            if weight.dtype != torch.float32:
                r = _bits(seeds[0], field.tensor, STREAM_ROUNDING, start + first, last - first, weight.device)
                u = _ROUND[weight.dtype](u, r) if grid is None else _stochastic_on_grid(u, r, steps)
            values[first:last] = u


def _chunks(count: int, start: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover 0 .. count-1 and end on tile borders of the full tensor."""
    first = 0
    while first < count:
        last = min(count, first + CHUNK - (start + first) % TILE)
        yield first, last
        first = last


def _steps(grid: Grid | None, start: int, count: int) -> torch.Tensor | int:
    """The step of each element, or 1 for a weight that is no integer."""
    if grid is None:
        return 1
    rows = torch.arange(start, start + count, device=grid.steps.device) // grid.width
    return grid.steps[rows]


def _direction(seed: int, field: Field, start: int, count: int, device: torch.device) -> torch.Tensor:
    return _lookup(_bits(seed, field.tensor, STREAM_DIRECTION, start, count, device), field.noise)


def _lookup(bits: torch.Tensor, noise: str) -> torch.Tensor:
    return _table(noise, bits.device)[bits]


@cache
def _table(noise: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(noise_table(noise).copy()).to(device)


def _bits(seed: int, tensor: int, stream: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """16-bit numbers (int64) of elements start ... start + count - 1, whole tiles computed at a time."""
    first, last = start // TILE, -(-(start + count) // TILE)
    block = torch.arange(first * BLOCKS_PER_TILE, last * BLOCKS_PER_TILE, device=device, dtype=torch.int64)
    halves = [half for word in _philox(block, seed, tensor, stream) for half in (word & 0xFFFF, word >> 16)]
    tiles = torch.stack([half.view(last - first, BLOCKS_PER_TILE) for half in halves], dim=1)
    return tiles.view(-1)[start - first * TILE :][:count]


def _bits_of(seed: int, tensor: int, stream: int, element: torch.Tensor) -> torch.Tensor:
    """16-bit numbers (int64) of any elements (int64 numbers)."""
    inside = element % TILE
    words = torch.stack(_philox(element // TILE * BLOCKS_PER_TILE + inside % 256, seed, tensor, stream))
    word = words.gather(0, (inside // 512).unsqueeze(0)).squeeze(0)
    return torch.where((inside // 256) % 2 == 0, word & 0xFFFF, word >> 16)


def _philox(block: torch.Tensor, seed: int, tensor: int, stream: int) -> tuple[torch.Tensor, ...]:
    """The four words (0 .. 2**32 - 1 in int64) of every block."""
    c0, c1 = block & LOW32, block >> 32
    c2, c3 = torch.full_like(block, tensor), torch.full_like(block, stream)
    k0, k1 = split64(seed)
    for _ in range(PHILOX_ROUNDS):
        high0, low0 = _multiply(PHILOX_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(PHILOX_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + PHILOX_WEYL[0]) & LOW32, (k1 + PHILOX_WEYL[1]) & LOW32
    return c0, c1, c2, c3


def _multiply(factor: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a 32 x 32 bit product, by halves because int64 cannot hold the whole."""
    low = (word & 0xFFFF) * factor
    high = (word >> 16) * factor + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def _pattern(u: torch.Tensor) -> torch.Tensor:
    return u.view(torch.int32).to(torch.int64) & LOW32


def _from_pattern(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    signed = torch.where(bits >= 0x8000, bits - 0x10000, bits)
    return signed.to(torch.int16).view(dtype)


def _stochastic_bfloat16(u: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    bits = torch.where(u.isnan(), torch.full_like(r, 0x7FC0), (_pattern(u) + r) >> 16)
    return _from_pattern(bits, torch.bfloat16)


def _stochastic_float16(u: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    bits = _pattern(u)
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    exponent = size >> 23
    normal = ((size - (112 << 23) + (r >> 3)) >> 13).clamp(max=0x7C00)
    mantissa = (size & 0x7FFFFF) | ((exponent > 0).to(torch.int64) << 23)
    dropped = (126 - exponent).clamp(14, 48)
    subnormal = (mantissa + (r << 32 >> (48 - dropped))) >> dropped
    stored = torch.where(exponent >= 113, normal, subnormal)
    stored = torch.where(u.isnan(), torch.full_like(r, 0x7E00), stored)
    return _from_pattern(sign | stored, torch.float16)


def _stochastic_on_grid(u: torch.Tensor, r: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
    limit = LARGEST_ON_GRID * PARTS_OF_A_STEP
    v = (u * (PARTS_OF_A_STEP / steps)).nan_to_num().clamp(-limit, limit)
    return (v.floor().to(torch.int64).add_(r) >> 16).to(torch.int16)


_ROUND = {torch.bfloat16: _stochastic_bfloat16, torch.float16: _stochastic_float16}
