"""Memory for perturbed copies, reused from layer to layer.

CUDA's caching allocator reuses blocks by itself. On a CPU a fresh block of megabytes costs a page fault for every
4 KB, several tenths of a nanosecond an element, so blocks are kept in a pool. A block returns to the pool when the
last tensor that looks into it is gone: an output that is a view of a perturbed weight keeps its block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Block = npt.NDArray[np.int64]
Memory = Callable[[int], AbstractContextManager[Any]]
"""A context in which memory is given out for the copies at a point: forwards may have streams of their own."""

ALIGNED = 64
"""Bytes that a block begins at a multiple of, as torch's own memory does: products read weights 1 to 2 % faster so."""
SMALLEST_POOLED = 64 * 1024
"""Bytes below which the C allocator is as good."""


class ScratchPool:
    """Hands out uninitialised tensors."""

    def __init__(self) -> None:
        self._free: list[Block] = []

    def empty(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A contiguous tensor without defined contents."""
        size = shape.numel() * dtype.itemsize
        if device.type != "cpu" or size < SMALLEST_POOLED:
            return torch.empty(shape, dtype=dtype, device=device)
        block = self._smallest(-(-size // 8))
        lent = block[:]
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype)[: shape.numel()].view(shape)

    def _smallest(self, words: int) -> Block:
        """The smallest free block that is large enough, of whatever size, so that layers share few; or a new one."""
        fitting = [number for number, block in enumerate(self._free) if block.size >= words]
        if not fitting:
            block = np.empty(words + ALIGNED // 8, dtype=np.int64)
            start = -block.ctypes.data % ALIGNED // 8
            return block[start : start + words]
        return self._free.pop(min(fitting, key=lambda number: self._free[number].size))

    def clear(self) -> None:
        """Give the unused blocks back to the system."""
        self._free.clear()
