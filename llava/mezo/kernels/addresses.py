"""Weights as tables of addresses, so that one call of compiled code, or one launch, serves many of them.

A part's pieces are cut into the noise's tiles; `owners` names the piece of each tile in turn, and `columns` has a row
of 64-bit integers for each piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llava.mezo.kernels.interface import Piece, Weight
from llava.mezo.noise import TILE
from llava.mezo.updates import Update

FLOAT32, BFLOAT16, FLOAT16, GRID = range(4)
KIND = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, torch.int16: GRID}
"""How a value's bits are to be read."""

ADDRESS, START, COUNT, NUMBER, GROUP, OFFSET, POSITION, STEPS, WIDTH, SOURCE, TARGET = range(11)
"""Columns: address of the piece; number of its first element in the full tensor; elements; number of the weight; its
group; bytes before its copy; place of its first tile in `owners`; address of the grid's steps; elements of a row of the
grid; kinds of the value and of its copy."""


@dataclass(frozen=True)
class Addresses:
    """Pieces of weights for compiled code. The weights have to stay where they are."""

    columns: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int32]

    @classmethod
    def of(cls, weights: Sequence[Weight], pieces: Sequence[Piece], offsets: Sequence[int]) -> Addresses:
        """`offsets`: bytes before each piece's copy."""
        rows: list[tuple[int, ...]] = []
        tiles: list[int] = []
        position = 0
        for piece, offset in zip(pieces, offsets, strict=True):
            weight = weights[piece.index]
            value, grid = weight.value, weight.grid
            start = weight.first + piece.start
            address = value.data_ptr() + piece.start * value.element_size()
            width, steps = (1, 0) if grid is None else (grid.width, grid.steps.data_ptr())
            kinds = KIND[value.dtype], KIND[weight.dtype]
            place = (start, piece.count, weight.number, weight.group, offset, position)
            rows.append((address, *place, steps, width, *kinds))
            tiles.append(-(-(start + piece.count) // TILE) - start // TILE if piece.count else 0)
            position += tiles[-1]
        columns = np.array(rows, dtype=np.int64).reshape(len(rows), TARGET + 1)
        return cls(columns, np.repeat(np.arange(len(rows), dtype=np.int32), tiles))


@dataclass(frozen=True)
class PackedUpdates:
    """Updates for compiled code."""

    seeds: npt.NDArray[np.uint64]
    """Of all pairs, one step after the other."""
    coefficients: npt.NDArray[np.float32]
    """[pair, group], in C order: compiled code is made for it."""
    ends: npt.NDArray[np.int64]
    """[step + 1]: pairs before each step, and all of them."""
    decays: npt.NDArray[np.float32]
    """[step, group]."""
    active: npt.NDArray[np.int64]
    """[step, group]: 0 where the step must leave a group alone."""

    @classmethod
    def of(cls, updates: Sequence[Update]) -> PackedUpdates:
        groups = range(len(updates[0].decays))
        return cls(
            seeds=np.array([seed for update in updates for seed in update.seeds], dtype=np.uint64),
            coefficients=np.ascontiguousarray(
                np.concatenate([np.array(u.coefficients, np.float32).T for u in updates])
            ),
            ends=np.cumsum([0, *(len(update.seeds) for update in updates)], dtype=np.int64),
            decays=np.array([update.decays for update in updates], dtype=np.float32),
            active=np.array([[update.changes(group) for group in groups] for update in updates], dtype=np.int64),
        )
