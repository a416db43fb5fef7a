"""Kernel in plain torch operations, for every device: int64 arithmetic, a bounded number of elements at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import torch

from llava.mezo.kernels.interface import (
    LARGEST_ON_GRID,
    PARTS_OF_A_STEP,
    Aim,
    Part,
    Piece,
    Weight,
    check_rows,
    laid_out,
)
from llava.mezo.noise import (
    BLOCKS_PER_TILE,
    LOW32,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    PHILOX_WEYL,
    STREAM_COLUMNS,
    STREAM_DIRECTION,
    STREAM_ROUNDING,
    STREAM_ROWS,
    TILE,
    quantiles,
    rank_of,
    rank_scale,
    split64,
    upper_half,
)
from llava.mezo.updates import Update

CHUNK = 256 * TILE
"""Elements worked on at a time: about 20 MB of temporary memory."""


class TorchTable:
    """See `WeightTable`; for tensors on any device."""

    def __init__(self, weights: Sequence[Weight], noise: str) -> None:
        self.weights = list(weights)
        self.rank = rank_of(noise)
        self.distribution = _gaussian if self.rank else _DISTRIBUTIONS[noise]

    def part(self, pieces: Sequence[Piece]) -> Part:
        return laid_out(self.weights, pieces)

    def aim(self, aim: Aim) -> None:
        self.aimed = aim

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        views = {point: part.views(memory) for point, memory in copies.items()}
        for number, piece in enumerate(part.pieces):
            weight = self.weights[piece.index]
            for chunk in _chunks(weight, piece):
                directions = [self._direction(seed, weight, chunk) for seed in self.aimed.seeds]
                here = slice(chunk.start - piece.start, chunk.start - piece.start + chunk.count)
                for point, copy in views.items():
                    copy[number][here] = self._at(point, weight, _values(weight, chunk), directions)

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        weight = self.weights[index]
        height, width = weight.value.shape
        if rows.device.type == "cpu":
            check_rows(rows, height)
        inside = torch.arange(width, device=rows.device)
        step = max(1, CHUNK // (8 * width))
        for first in range(0, rows.numel(), step):
            asked = rows[first : first + step]
            there = ((asked >= 0) & (asked < height))[:, None]
            chosen = asked.clamp(0, height - 1)
            element = weight.first + chosen[:, None] * width + inside
            directions = [self._of_rows(seed, weight, chosen, element) for seed in self.aimed.seeds]
            w = weight.value[chosen].float()
            if weight.grid is not None:
                w = w * weight.grid.steps[element // weight.grid.width]
            for point, out in copies.items():
                values = self._at(point, weight, w, directions)
                out[first : first + step] = torch.where(there, values, torch.nan)

    def _at(self, point: int, weight: Weight, values: torch.Tensor, directions: Sequence[torch.Tensor]) -> torch.Tensor:
        """float32 values at the point of those at the weights."""
        for z, scale in zip(directions, self.aimed.scales[point][weight.group], strict=True):
            values = values + z * scale
        return values

    def update(self, updates: Sequence[Update]) -> None:
        for weight in self.weights:
            changes = [update for update in updates if update.changes(weight.group)]
            for chunk in _chunks(weight, Piece(0, 0, weight.value.numel())):
                for update in changes:
                    self._update(weight, chunk, update)

    def _update(self, weight: Weight, chunk: Piece, update: Update) -> None:
        u = _values(weight, chunk).mul_(update.decays[weight.group])
        for seed, coefficient in zip(update.seeds, update.coefficients[weight.group], strict=True):
            u.add_(self._direction(seed, weight, chunk).mul_(coefficient))
        if weight.value.dtype != torch.float32:
            r = _bits(update.seeds[0], weight, STREAM_ROUNDING, chunk)
            if weight.grid is not None:
                u = _stochastic_on_grid(u, r, _steps(weight, chunk))
            else:
                u = _ROUND[weight.value.dtype](u, r)
        weight.value.view(-1)[chunk.start : chunk.start + chunk.count] = u

    def _direction(self, seed: int, weight: Weight, chunk: Piece) -> torch.Tensor:
        if not (self.rank and weight.columns):
            return self.distribution(_bits(seed, weight, STREAM_DIRECTION, chunk))
        first = weight.first + chunk.start
        row, end = first // weight.columns, -(-(first + chunk.count) // weight.columns)
        rows = torch.arange(row, end, device=weight.value.device)
        return self._low_rank(seed, weight, rows).view(-1)[first - row * weight.columns :][: chunk.count]

    def _of_rows(self, seed: int, weight: Weight, rows: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
        """z of rows of a matrix, whose elements have these numbers."""
        if self.rank:
            return self._low_rank(seed, weight, rows + weight.first // weight.columns)
        return self.distribution(_bits_of(seed, weight.number, STREAM_DIRECTION, element))

    def _low_rank(self, seed: int, weight: Weight, rows: torch.Tensor) -> torch.Tensor:
        """z of these rows [n] of the full matrix, [n, columns]."""
        numbers = torch.arange(self.rank * weight.columns, device=rows.device)
        inside = numbers[: self.rank]
        a = _gaussian(_bits_of(seed, weight.number, STREAM_ROWS, rows[:, None] * self.rank + inside))
        b = _gaussian(_bits_of(upper_half(seed), weight.number, STREAM_COLUMNS, numbers)).view(-1, self.rank)
        z = a[:, :1] * b[:, 0]
        for k in range(1, self.rank):
            z = z + a[:, k : k + 1] * b[:, k]
        return z * rank_scale(self.rank)


def _chunks(weight: Weight, piece: Piece) -> Iterator[Piece]:
    """The piece in parts that end on tile borders of the full tensor."""
    start, stop = piece.start, piece.start + piece.count
    while start < stop:
        count = min(stop - start, CHUNK - (weight.first + start) % TILE)
        yield Piece(piece.index, start, count)
        start += count


def _values(weight: Weight, chunk: Piece) -> torch.Tensor:
    """float32 values of the elements, a copy."""
    values = weight.value.view(-1)[chunk.start : chunk.start + chunk.count].to(torch.float32, copy=True)
    return values if weight.grid is None else values.mul_(_steps(weight, chunk))


def _steps(weight: Weight, chunk: Piece) -> torch.Tensor:
    """The step of each element of a weight on a grid."""
    assert weight.grid is not None
    first, steps = weight.first + chunk.start, weight.grid.steps
    return steps[torch.arange(first, first + chunk.count, device=steps.device) // weight.grid.width]


def _gaussian(bits: torch.Tensor) -> torch.Tensor:
    table = _quantiles(bits.device)
    return table[bits & 255] + table[bits >> 8]


def _rademacher(bits: torch.Tensor) -> torch.Tensor:
    return (bits >> 15).float().mul_(2).sub_(1)


_DISTRIBUTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gaussian": _gaussian, "rademacher": _rademacher}


@cache
def _quantiles(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(quantiles().copy()).to(device)


def _bits(seed: int, weight: Weight, stream: int, chunk: Piece) -> torch.Tensor:
    """16-bit numbers (int64) of the elements, whole tiles computed at a time."""
    start, device = weight.first + chunk.start, weight.value.device
    first, last = start // TILE, -(-(start + chunk.count) // TILE)
    block = torch.arange(first * BLOCKS_PER_TILE, last * BLOCKS_PER_TILE, device=device, dtype=torch.int64)
    halves = [half for word in _philox(block, seed, weight.number, stream) for half in (word & 0xFFFF, word >> 16)]
    tiles = torch.stack([half.view(last - first, BLOCKS_PER_TILE) for half in halves], dim=1)
    return tiles.view(-1)[start - first * TILE :][: chunk.count]


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


def _stochastic_on_grid(u: torch.Tensor, r: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    limit = LARGEST_ON_GRID * PARTS_OF_A_STEP
    v = (u * (PARTS_OF_A_STEP / steps)).nan_to_num().clamp(-limit, limit)
    return (v.floor().to(torch.int64).add_(r) >> 16).to(torch.int16)


_ROUND = {torch.bfloat16: _stochastic_bfloat16, torch.float16: _stochastic_float16}
