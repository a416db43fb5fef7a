"""Which gathering comes next: ranks agree on it, since batches may take them different ways through a model.

A gathering is a collective operation, that all ranks have to call in one order. But a batch of text does not read the
vision tower, a longer one looks other rows up, and generation takes as many forwards as it takes. So each rank says
what it needs next, one of these is chosen, and all ranks carry that out: a rank whose request was another one waits for
it, and one whose forward has ended takes part until all have. What goes about are 512 bytes a rank, on the host, so
that no rank waits for its device.

Of different requests the one comes first that was seen earlier on some rank's way through a forward: so the tower's
layers come before the language model's, which then are gathered once for all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from llava.mezo.messages import rank_and_count

Request = tuple[int, ...]
"""A kind and what it is of."""
NOTHING: Request = ()
WORDS = 64
HEAD = 3
LONGEST = WORDS - HEAD
"""Numbers in a request."""


@dataclass(frozen=True)
class Turn:
    """What all ranks carry out together."""

    request: Request
    """`NOTHING` when all have ended."""
    counts: tuple[int, ...]
    """Of each rank that has this request, what it says of itself; 0 for the others."""


_HOST_GROUPS: list[tuple[Any, Any]] = []
"""The default group that there was, and that of its processes for tensors of the host."""


def host_group() -> Any:
    """A group of all ranks for tensors on the CPU; the first time all ranks call it together."""
    world = distributed.group.WORLD
    if not _HOST_GROUPS or _HOST_GROUPS[0][0] is not world:
        made = world if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")
        _HOST_GROUPS[:] = [(world, made)]
    return _HOST_GROUPS[0][1]


def all_gather(gathered: torch.Tensor, own: torch.Tensor, group: Any = None) -> None:
    """Put `own` [n] of all ranks into `gathered` [ranks * n]."""
    newer = getattr(distributed, "all_gather_single", None)  # what later versions of torch call it
    (newer or distributed.all_gather_into_tensor)(gathered, own, group=group)


class Turns:
    """The agreement of all ranks of torch.distributed's default group; all of them build it together."""

    def __init__(self) -> None:
        self.rank, self.ranks = rank_and_count()
        self.group = host_group()
        self.taken = 0
        """Agreements so far."""
        self._depth: dict[Request, int] = {}
        """How many requests came before it on some rank's way, at most."""
        self._ways: list[dict[Request, None]] = [{} for _ in range(self.ranks)]
        """What each rank has asked for in this forward, in order."""

    def next(self, wanted: Request, place: int, count: int = 0) -> Turn:
        """The next turn, for a rank that wants this.

        Args:
            place: what all ranks have to agree in before they ask for anything.
            count: of what is wanted, see `Turn.counts`.

        Raises:
            RuntimeError: the ranks are at different places.
        """
        message = torch.zeros(WORDS, dtype=torch.int64)
        message[: HEAD + len(wanted)] = torch.tensor([place, count, len(wanted), *wanted])
        found = torch.empty(self.ranks * WORDS, dtype=torch.int64)
        all_gather(found, message, self.group)
        rows: list[list[int]] = found.view(self.ranks, WORDS).tolist()
        self.taken += 1
        if len({row[0] for row in rows}) > 1:
            raise RuntimeError("the ranks measure different points; give each of them as many micro-batches a step")
        requests = [tuple(row[HEAD : HEAD + row[2]]) for row in rows]
        for way, request in zip(self._ways, requests, strict=True):
            self._follow(way, request)
        open_ones = [request for request in requests if request]
        if not open_ones:
            self._ways = [{} for _ in range(self.ranks)]
            return Turn(NOTHING, (0,) * self.ranks)
        chosen = min(open_ones, key=lambda request: (self._depth[request], request))
        counts = (row[1] if request == chosen else 0 for row, request in zip(rows, requests, strict=True))
        return Turn(chosen, tuple(counts))

    def _follow(self, way: dict[Request, None], request: Request) -> None:
        if request and request not in way:
            before = next(reversed(way), None)
            depth = 0 if before is None else self._depth[before] + 1
            self._depth[request] = max(depth, self._depth.get(request, 0))
            way[request] = None
