"""Processes that train one model together: which points of a batch each measures, and the exchange of losses.

Every rank holds the weights and applies every update; what it tells the others is numbers, no tensors. Ranks form a
grid. The `point_ways` ranks of a row have the same batch, and share out the points of a step; the rows have batches
of their own:

    data         one rank a row: each has its own records, and takes all points
    directions   one row: all ranks have the same records, and each takes some of the points
    both         a row has as many ranks as divide both the ranks and the directions

Losses come together in an order that does not depend on the grid, so that a run gives the bits of a single process
that takes the same batches one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava.mezo.messages import gathered, rank_and_count

PARALLEL = ("data", "directions", "both")


@dataclass(frozen=True)
class Ranks:
    """A process's place among those of torch.distributed's default group; the only one by default."""

    rank: int = 0
    count: int = 1
    point_ways: int = 1
    """Divides `count`."""

    @classmethod
    def here(cls, parallel: str = "data", directions: int = 1) -> Ranks:
        """This process's.

        Args:
            parallel: one of `PARALLEL`.
            directions: of a step.
        """
        return cls.of(*rank_and_count(), parallel, directions)

    @classmethod
    def of(cls, rank: int, count: int, parallel: str, directions: int) -> Ranks:
        """Of a process among so many, otherwise as `here`."""
        ways = {"data": 1, "directions": count, "both": math.gcd(count, directions)}
        return cls(rank, count, ways[parallel])

    @property
    def rows(self) -> int:
        """Batches at a time."""
        return self.count // self.point_ways

    @property
    def row(self) -> int:
        """Which of them is this rank's."""
        return self.rank // self.point_ways

    def share(self, points: int) -> slice:
        """Which of so many points are this rank's: as many as another's, or one fewer; none where there are too few."""
        return self._share(points, self.rank % self.point_ways)

    def _share(self, points: int, place: int) -> slice:
        return slice(points * place // self.point_ways, points * (place + 1) // self.point_ways)

    def joined(self, of_ranks: Sequence[Sequence[float]], points: int) -> list[list[float]]:
        """What each row found at all points, from what each rank found at its own, padded at the end."""
        ways = self.point_ways
        shares = [self._share(points, place) for place in range(ways)]
        widths = [share.stop - share.start for share in shares]
        return [
            [x for place, width in enumerate(widths) for x in of_ranks[row * ways + place][:width]]
            for row in range(self.rows)
        ]

    def exchange(self, numbers: Sequence[float], device: torch.device) -> list[list[float]]:
        """The numbers of every rank, in the order of ranks; as many on each. 8 bytes each cross the network.

        Args:
            device: where the group's messages are, if it is not gloo.

        Raises:
            LostRankError: one of them has ended, or does not answer.
        """
        if self.count == 1:
            return [list(numbers)]
        found = gathered(torch.tensor(numbers, dtype=torch.float64), device)
        return [[float(x) for x in values.tolist()] for values in found]
