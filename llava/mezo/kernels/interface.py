"""What kernels compute, and their interface: one module per way of computing, the same bits from each.

`choice.py` picks one.

Exact arithmetic
----------------
Every kernel computes precisely this in float32, each operation rounded to nearest even, none fused:

    perturb    u = w;  for the pairs (seed, s) of the point in order  u = fl(u + fl(s * z));  out = R(u)
               w the stored weight (16-bit weights widen exactly), R = rounding to nearest even into the dtype of `out`
    update     u = w;  u = fl(u * decay);  then for the pairs (seed, c) of the step in order  u = fl(u + fl(c * z))
               float32 weights store u; bfloat16 and float16 weights store S(u, r); integers on a grid store G(u, r)
    S(u, r)    stochastic rounding with the element's 16 bits r of stream 1 (seed of the step's first pair): to the bit
               pattern of |u|, of which the lowest k bits do not fit, add r aligned with the top of these k bits and
               drop them. bfloat16: k = 16, so r is added as it is. float16: k = 13 for normal numbers (r >> 3 is
               added); below 2**-14 the spacing is 2**-24 and k grows by one with every halving (r << (k - 16))

The probability of rounding up is the distance to the lower neighbour in units of the spacing: exactly for bfloat16 and
for normal float16, below by less than 2**-16 for subnormal float16. A value that 16 bits can hold is kept for any r.
Infinities stay, a NaN stays some NaN (its payload is not promised), and values beyond the largest number become
infinite as in ordinary rounding.

Weights may also be 16-bit integers q on a grid of their row (`Grid`), w = q * step with a step that is a power of two,
so that w is exact. They are stored by

    G(u, r)    v = u * (2**16 / step), limited to -32767 * 2**16 ... 32767 * 2**16;  q = (floor(v) + r) >> 16

which is stochastic rounding without bias but for what is below 2**-16 of a step. A NaN is stored as 0.

An update that `Update.changes` says nothing of leaves every bit of its group alone (so -0.0 stays -0.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch

from llava.mezo.updates import Update, as_float32

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_ON_GRID = 32767
PARTS_OF_A_STEP = 65536
"""Into which stochastic rounding divides a step of a grid."""
ALIGNMENT = 256
"""Bytes; where a copy begins within the memory of a part."""


@dataclass(frozen=True)
class Grid:
    """What the integers of a weight [rows, ...] stand for: integer * step of the row."""

    steps: torch.Tensor
    """float32 [rows], powers of two, on the weight's device."""
    width: int
    """Elements of a row."""


@dataclass(frozen=True)
class Weight:
    """A trained weight as kernels see it."""

    value: torch.Tensor
    """Contiguous, of `SUPPORTED_DTYPES`, or int16 with a grid."""
    number: int
    """Selects its noise."""
    dtype: torch.dtype
    """Of its perturbed copies; of `SUPPORTED_DTYPES`."""
    group: int = 0
    """Which of an update's coefficients, and of a point's scales, are its own."""
    grid: Grid | None = None
    """Of the full tensor's rows."""
    first: int = 0
    """Number of the value's first element in the full tensor."""

    @property
    def columns(self) -> int:
        """Elements for each index of the first dimension; 0 where there is but one dimension."""
        return self.value[0].numel() if self.value.dim() > 1 and len(self.value) else 0


@dataclass(frozen=True)
class Aim:
    """Points at which perturbed copies are made: w + sum over pairs of scale * z(seed). One or two."""

    seeds: tuple[int, ...]
    """Of each pair, the same at all points; at least one."""
    scales: tuple[tuple[tuple[float, ...], ...], ...]
    """For each point and group, one a pair; float32 numbers (`as_float32`)."""

    @classmethod
    def along(cls, seed: int, scales: Sequence[float], groups: int = 1) -> Aim:
        """Points w + scale * z(seed), the same for all groups."""
        return cls((seed,), tuple(((as_float32(scale),),) * groups for scale in scales))


@dataclass(frozen=True)
class Piece:
    """Elements start ... start + count - 1 of the value of the weight that is number `index` in its table."""

    index: int
    start: int
    count: int


@dataclass(frozen=True)
class Part:
    """Pieces of weights whose perturbed copies are made together, one behind the other."""

    pieces: tuple[Piece, ...]
    dtypes: tuple[torch.dtype, ...]
    """Of each copy."""
    offsets: tuple[int, ...]
    """Where each copy begins, in bytes."""
    size: int
    """Bytes of all copies."""
    prepared: Any = None
    """What the kernel keeps for it."""

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """The flat copies of all pieces in `memory` (uint8 [size])."""
        return [
            memory[offset : offset + piece.count * dtype.itemsize].view(dtype)
            for piece, dtype, offset in zip(self.pieces, self.dtypes, self.offsets, strict=True)
        ]


class WeightTable(Protocol):
    """Kernels for a fixed list of weights on one device; what they need of it is prepared once.

    `copies` maps the number of a point, as given to `aim`, to memory for the copies made there: copies at several
    points cost one pass over weights and noise. On a GPU nothing here waits for the device.
    """

    def part(self, pieces: Sequence[Piece]) -> Part:
        """Prepare pieces for `perturb`."""

    def aim(self, aim: Aim) -> None:
        """Its points are those of `copies` from now on."""

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        """Write all pieces at these points, at their offsets, into `copies` (uint8 [part.size])."""

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        """As `perturb` for rows `rows` [n] (int64) of a matrix [V, D], into `copies` [n, D] of the weight's dtype.

        A row outside 0 .. V-1 raises IndexError on a CPU; elsewhere, where nobody could tell, its copy is NaN.
        """

    def update(self, updates: Sequence[Update]) -> None:
        """Change all weights in place by one update after the other."""


@dataclass(frozen=True)
class Kernel:
    """A way of computing."""

    name: str
    table: Callable[[Sequence[Weight], str], WeightTable]
    """Makes kernels for weights, which stay where they are as long as it is used, and a noise."""


def laid_out(weights: Sequence[Weight], pieces: Sequence[Piece], prepared: Any = None) -> Part:
    """The pieces one behind the other."""
    dtypes = tuple(weights[piece.index].dtype for piece in pieces)
    offsets, size = placed([piece.count for piece in pieces], dtypes)
    return Part(tuple(pieces), dtypes, offsets, size, prepared)


def placed(counts: Sequence[int], dtypes: Sequence[torch.dtype]) -> tuple[tuple[int, ...], int]:
    """Where so many elements of these dtypes begin one behind the other, in bytes, and the bytes of all."""
    sizes = [-(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT for count, dtype in zip(counts, dtypes, strict=True)]
    *offsets, size = accumulate(sizes, initial=0)
    return tuple(offsets), size


def check_rows(rows: torch.Tensor, count: int) -> None:
    """IndexError when one of the rows [n] is outside 0 .. count - 1."""
    if rows.numel() and bool(((rows < 0) | (rows >= count)).any()):
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a table with {count} rows")
