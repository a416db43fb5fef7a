"""Memory for perturbed copies, reused from layer to layer.

CUDA's caching allocator reuses blocks by itself. On a CPU a fresh block of megabytes costs a page fault for every
4 KB, several tenths of a nanosecond an element, so blocks are kept in a pool. A block returns to the pool when the
last tensor that looks into it is gone: an output that is a view of a perturbed weight keeps its block.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch

Block = npt.NDArray[np.int64]

SMALLEST_POOLED = 64 * 1024
"""Bytes below which the C allocator is as good."""


class ScratchPool:
    """Hands out uninitialised tensors."""

    def __init__(self) -> None:
        self._free: dict[int, list[Block]] = defaultdict(list)

    def empty(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A contiguous tensor without defined contents."""
        size = shape.numel() * dtype.itemsize
        if device.type != "cpu" or size < SMALLEST_POOLED:
            return torch.empty(shape, dtype=dtype, device=device)
        words = -(-size // 8)
        free = self._free[words]
        block = free.pop() if free else np.empty(words, dtype=np.int64)
        lent = block[:]
        weakref.finalize(lent, free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype)[: shape.numel()].view(shape)

    def clear(self) -> None:
        """Give the unused blocks back to the system."""
        for free in self._free.values():
            free.clear()
