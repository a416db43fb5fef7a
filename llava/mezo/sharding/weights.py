"""Perturbed copies of weights in shards: each rank perturbs its own, and these are put together for a forward.

Takes the place of `TrainedWeights`. Frozen weights are read through it too. Numbers are those of the trained weights,
then those of the frozen ones. Gathered are

    a group      of a layer's weights, by an all-gather, when its forward begins
    a stripe     of rows of a matrix of which a chunk is read (an output head), from the rank that has it
    rows         of an embedding matrix, each from its rank to those that look it up

A forward ends on all ranks together, see `turns.py`; they run one after the other, at one point each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from llava.mezo.held import borders, local_part
from llava.mezo.kernels.interface import check_rows
from llava.mezo.scratch import Memory
from llava.mezo.sharding.layout import Layout
from llava.mezo.sharding.turns import LONGEST, NOTHING, Request, Turns, all_gather
from llava.mezo.trained import Copies, TrainedWeights, anyone
from llava.mezo.weights import Storage

GROUP, STRIPE, ROWS = 1, 2, 3
STRIPE_BYTES = 64 * 2**20
"""What is read of a matrix at a time, at most."""


class ShardedWeights(TrainedWeights):
    """As `TrainedWeights`, of which every rank has a shard; `frozen` are sharded parameters that are read alone."""

    sharded = True

    def __init__(
        self,
        storages: Sequence[Storage],
        noise: str,
        kernel: str,
        groups: Sequence[int],
        sizes: Sequence[float],
        frozen: Sequence[nn.Parameter],
    ) -> None:
        super().__init__(storages, noise, kernel, groups, sizes)
        self.frozen = list(frozen)
        self.turns = Turns()
        self.device = (self.frozen[0] if self.frozen else storages[0]).device
        self.received = 0
        """Bytes of weights that came from other ranks."""
        self._stripes: dict[Request, torch.Tensor] = {}
        """Those that the running forward may go on reading."""
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._whole = frozenset(n for n, storage in enumerate(self.storages) if not storage.sharded)

    @property
    def held(self) -> int:
        """Bytes of weights on this rank."""
        parts = [storage.value for storage in self.storages] + [local_part(parameter) for parameter in self.frozen]
        return sum(part.numel() * part.element_size() for part in parts)

    def report(self) -> dict[str, Any]:
        return {"zo_shard": {"bytes_held": self.held, "bytes_received": self.received}}

    @contextmanager
    def unperturbed(self) -> Iterator[None]:
        """Within it, copies have the bits of the weights."""
        self.perturbs = False
        try:
            yield
        finally:
            self.perturbs = True

    def finish(self, point: int) -> None:
        """A forward of this rank has ended: take part in what the others need until theirs have."""
        while self._turn(NOTHING, point, None)[0]:
            pass
        self._stripes.clear()

    def perturbed(self, numbers: Sequence[int], points: Sequence[int], memory_of: Memory = anyone) -> list[Copies]:
        (point,) = points
        own = [number for number in numbers if number in self._whole]
        shared = [number for number in numbers if number not in self._whole]
        copies = super().perturbed(own, points, memory_of)[0] if own else {}
        most = LONGEST - 1
        for first in range(0, len(shared), most):
            asked = shared[first : first + most]
            copies |= dict(zip(asked, self._ask((GROUP, *asked), point), strict=True))
        return [copies]

    def span(
        self, number: int, first: int, last: int, points: Sequence[int], memory_of: Memory = anyone
    ) -> list[torch.Tensor]:
        (point,) = points
        shape = self._shape(number)
        if number in self._whole:
            return super().span(number, first, last, points, memory_of)
        if (first, last) == (0, shape[0]):
            return [self.perturbed((number,), points)[0][number]]
        stripes = self._stripes_of(number, first, last)
        for stripe in [key for key in self._stripes if key[1] == number and key not in stripes]:
            del self._stripes[stripe]
        found = [self._piece(stripe, point)[max(first - stripe[3], 0) : last - stripe[3]] for stripe in stripes]
        out = self.pool.empty(torch.Size((last - first, *shape[1:])), self._dtype(number), self.device)
        return [torch.cat(found, out=out) if found else out]

    def rows(self, number: int, rows: torch.Tensor, points: Sequence[int]) -> list[torch.Tensor]:
        """As `TrainedWeights.rows`; a row that the matrix does not have is an IndexError on every device."""
        (point,) = points
        height, width = self._shape(number)
        asked = rows.reshape(-1).to(device="cpu", dtype=torch.int64)
        check_rows(asked, height)
        (found,) = self._ask((ROWS, number), point, asked)
        return [found.view(*rows.shape, width)]

    def _ask(self, request: Request, point: int, rows: torch.Tensor | None = None) -> list[torch.Tensor]:
        """What the request gives, after whatever other ranks needed before it."""
        while True:
            turn, found = self._turn(request, point, rows)
            if turn == request:
                return found

    def _turn(self, wanted: Request, point: int, rows: torch.Tensor | None) -> tuple[Request, list[torch.Tensor]]:
        """One turn of all ranks, and what it gives if it was wanted."""
        place = hash((self._aim, point, self.perturbs))
        turn = self.turns.next(wanted, place, 0 if rows is None else len(rows))
        request, mine = turn.request, turn.request == wanted
        if not request:
            return request, []
        kind, number = request[:2]
        if kind == GROUP:
            return request, self._group(request[1:], point, mine)
        if kind == STRIPE:
            return request, [self._stripe(request, point)]
        asked = rows if mine and rows is not None else torch.empty(0, dtype=torch.int64)
        return request, [self._looked_up(number, asked, turn.counts, point)]

    def _group(self, numbers: tuple[int, ...], point: int, wanted: bool) -> list[torch.Tensor]:
        """The whole weights, in their order, on the ranks that want them."""
        found: dict[int, torch.Tensor] = {}
        perturbed = tuple(number for number in numbers if self._is_perturbed(number))
        copied = tuple(number for number in numbers if not self._is_perturbed(number))
        for some in filter(None, (perturbed, copied)):
            layout = self._layout(some)
            own = self._bytes(layout.size)
            if some is perturbed:
                ((device, part, _),) = self.unit(some).parts
                self.tables[device].perturb(part, {point: own})
            else:
                for number, view in zip(some, layout.views(own, self.turns.rank), strict=True):
                    view.copy_(self._value(number).view(-1))
            gathered = self._bytes(self.turns.ranks * layout.size)
            all_gather(gathered, own)
            self.received += (self.turns.ranks - 1) * layout.size
            if wanted:
                weights = layout.whole(gathered.view(self.turns.ranks, -1), self._bytes(layout.whole_size))
                found |= dict(zip(some, weights, strict=True))
        return [found[number] for number in numbers] if wanted else []

    def _stripes_of(self, number: int, first: int, last: int) -> list[Request]:
        """The stripes that have some of these rows, in order: (STRIPE, number, owner, its rows)."""
        shape = self._shape(number)
        most = max(1, STRIPE_BYTES // max(1, shape[1:].numel() * self._dtype(number).itemsize))
        cuts = borders(shape[0], self.turns.ranks)
        return [
            (STRIPE, number, owner, start, min(start + most, end))
            for owner, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False))
            for start in range(begin, end, most)
            if start < last and min(start + most, end) > first
        ]

    def _piece(self, stripe: Request, point: int) -> torch.Tensor:
        if stripe not in self._stripes:
            (self._stripes[stripe],) = self._ask(stripe, point)
        return self._stripes[stripe]

    def _stripe(self, request: Request, point: int) -> torch.Tensor:
        _, number, owner, first, last = request
        if owner == self.turns.rank:
            begin = borders(self._shape(number)[0], self.turns.ranks)[owner]
            rows = first - begin, last - begin
            if self._is_perturbed(number):
                stripe = super().span(number, *rows, [point])[0]
            else:
                stripe = self._value(number)[slice(*rows)].contiguous()
        else:
            shape = torch.Size((last - first, *self._shape(number)[1:]))
            stripe = self.pool.empty(shape, self._dtype(number), self.device)
        flat = stripe.view(-1).view(torch.uint8)
        distributed.broadcast(flat, owner)
        self.received += 0 if owner == self.turns.rank else flat.numel()
        return stripe

    def _looked_up(self, number: int, rows: torch.Tensor, counts: Sequence[int], point: int) -> torch.Tensor:
        """Rows `rows` [n] of a matrix [V, D], as [n, D]; `counts`: how many rows each rank asks for."""
        rank, ranks, (height, width) = self.turns.rank, self.turns.ranks, self._shape(number)
        mine = torch.full((max(counts),), -1, dtype=torch.int64)
        mine[: len(rows)] = rows
        everyone = torch.empty(ranks * len(mine), dtype=torch.int64)
        all_gather(everyone, mine, self.turns.group)
        cuts = torch.tensor(borders(height, ranks))
        begin, end = cuts[rank : rank + 2].tolist()
        asked = [wanted[(wanted >= begin) & (wanted < end)] - begin for wanted in everyone.view(ranks, -1)]
        sent = self._own_rows(number, torch.cat(asked), point)
        owners = torch.bucketize(rows, cuts[1:], right=True)
        came = torch.empty(len(rows), width, dtype=sent.dtype, device=self.device)
        parts = torch.bincount(owners, minlength=ranks).tolist(), [len(own) for own in asked]
        distributed.all_to_all_single(came.view(torch.uint8), sent.view(torch.uint8), *parts)
        self.received += (len(rows) - parts[0][rank]) * width * sent.element_size()
        found = torch.empty_like(came)
        found[owners.argsort(stable=True).to(self.device)] = came
        return found

    def _own_rows(self, number: int, rows: torch.Tensor, point: int) -> torch.Tensor:
        """Rows [n] of this rank's shard of a matrix [V, D], as [n, D]."""
        if self._is_perturbed(number) and len(rows):
            return super().rows(number, rows, [point])[0]
        return self._value(number)[rows.to(self.device)]

    def _is_perturbed(self, number: int) -> bool:
        return self.perturbs and number < len(self.storages)

    def _value(self, number: int) -> torch.Tensor:
        """This rank's shard."""
        trained = number < len(self.storages)
        return self.storages[number].value if trained else local_part(self.frozen[number - len(self.storages)])

    def _shape(self, number: int) -> torch.Size:
        """Of the whole weight."""
        trained = number < len(self.storages)
        return self.storages[number].shape if trained else self.frozen[number - len(self.storages)].shape

    def _dtype(self, number: int) -> torch.dtype:
        return self._value(number).dtype

    def _layout(self, numbers: tuple[int, ...]) -> Layout:
        if numbers not in self._layouts:
            shapes, dtypes = map(self._shape, numbers), map(self._dtype, numbers)
            self._layouts[numbers] = Layout.of(list(shapes), list(dtypes), self.turns.ranks)
        return self._layouts[numbers]

    def _bytes(self, size: int) -> torch.Tensor:
        return self.pool.empty(torch.Size((size,)), torch.uint8, self.device)
