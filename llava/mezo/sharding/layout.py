"""Where the shards of some weights lie in the memory that ranks exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava.mezo.held import borders
from llava.mezo.kernels.interface import placed


@dataclass(frozen=True)
class Layout:
    """Shards of some weights one behind the other as each rank has them, and the whole weights likewise."""

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    counts: tuple[tuple[int, ...], ...]
    """For each rank, the elements of each weight that it holds."""
    offsets: tuple[tuple[int, ...], ...]
    """For each rank, the bytes before each of them."""
    size: int
    """Bytes of a rank's shards, of the largest rank's where they differ."""

    @classmethod
    def of(cls, shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype], ranks: int) -> Layout:
        """Of sharded weights with these whole shapes."""
        cuts = [[row * shape[1:].numel() for row in borders(shape[0], ranks)] for shape in shapes]
        counts = tuple(tuple(cut[rank + 1] - cut[rank] for cut in cuts) for rank in range(ranks))
        found = [placed(own, dtypes) for own in counts]
        return cls(
            tuple(shapes), tuple(dtypes), counts, tuple(offsets for offsets, _ in found), max(size for _, size in found)
        )

    def views(self, memory: torch.Tensor, rank: int) -> list[torch.Tensor]:
        """The flat shards of a rank in `memory` (uint8 [size])."""
        return [
            memory[offset : offset + count * dtype.itemsize].view(dtype)
            for offset, count, dtype in zip(self.offsets[rank], self.counts[rank], self.dtypes, strict=True)
        ]

    def whole(self, gathered: torch.Tensor, memory: torch.Tensor) -> list[torch.Tensor]:
        """The whole weights of all ranks' shards, uint8 [ranks, size], in `memory`, uint8 [whole_size]."""
        offsets, _ = placed([shape.numel() for shape in self.shapes], self.dtypes)
        pieces = [self.views(own, rank) for rank, own in enumerate(gathered)]
        weights = []
        for number, (offset, shape, dtype) in enumerate(zip(offsets, self.shapes, self.dtypes, strict=True)):
            flat = memory[offset : offset + shape.numel() * dtype.itemsize].view(dtype)
            torch.cat([own[number] for own in pieces], out=flat)
            weights.append(flat.view(shape))
        return weights

    @property
    def whole_size(self) -> int:
        """Bytes of the whole weights one behind the other."""
        return placed([shape.numel() for shape in self.shapes], self.dtypes)[1]
