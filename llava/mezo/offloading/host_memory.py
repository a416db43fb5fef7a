"""The host's memory: what is left of it, and which tensors lie in files that are mapped into it.

A checkpoint in the dtype of the run is not read when it is loaded: its tensors are pages of its files, which the system
brings in when they are used and may drop again, as long as nothing is written to them. So a frozen model may be larger
than the memory. Weights that are trained become memory of the process with their first update.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import torch


def free_bytes() -> int | None:
    """What the system can still give out, its caches of files among it; None where it does not say."""
    found = [line.split() for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


class MappedFiles:
    """The address ranges of this process that are files, as they are now; none where the system does not say."""

    def __init__(self) -> None:
        self._ranges = []
        for line in _lines("/proc/self/maps"):
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/"):
                first, last = (int(address, 16) for address in fields[0].split("-"))
                self._ranges.append((first, last))
        self._starts = [first for first, _ in self._ranges]

    def __contains__(self, tensor: torch.Tensor) -> bool:
        place = bisect_right(self._starts, tensor.data_ptr()) - 1
        return place >= 0 and tensor.data_ptr() < self._ranges[place][1]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
