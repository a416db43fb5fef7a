"""Whether tensors have the same bits on all ranks, at the cost of one pass over them and 8 bytes each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from llava.mezo.ranks import Ranks

EXACT_BITS = 52
"""Of a sum: what a float64 holds."""


def first_difference(
    tensors: Mapping[str, torch.Tensor], ranks: Ranks, device: torch.device
) -> tuple[str, list[int]] | None:
    """The name of the first tensor that is not the same on all ranks, and the ranks that are in the minority.

    Every rank calls it, and gets the same.

    Args:
        device: as for `Ranks.exchange`.
    """
    sums = torch.stack([_checksum(tensor).to(device) for tensor in tensors.values()])
    found = ranks.exchange([float(x) for x in sums.tolist()], device)
    for name, of_ranks in zip(tensors, zip(*found, strict=True), strict=True):
        usual, _ = Counter(of_ranks).most_common(1)[0]
        others = [rank for rank, value in enumerate(of_ranks) if value != usual]
        if others:
            return name, others
    return None


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of the bits of each row, 16 at a time, times the row's number: `EXACT_BITS` of it, on the tensor's device."""
    bits = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)
    rows = bits.view(torch.int16).sum(1, dtype=torch.int64)
    numbers = torch.arange(1, len(rows) + 1, device=rows.device)
    return torch.bitwise_and((rows * numbers).sum(), 2**EXACT_BITS - 1)
