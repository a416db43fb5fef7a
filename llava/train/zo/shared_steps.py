"""The steps of a run whose number of processes has changed: the records that each of them had, shared out anew.

A step is made of micro-batches: those of the first process, the second, ... and again as often as they accumulate. A
run that goes on with another number of processes takes the very same micro-batches, by turns, so that its losses are
means over the same numbers and it ends with the same bits. Where they cannot be shared out evenly, some process
measures one more than is needed, which counts for nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, Sampler

from llava.train.zo.step_batches import PARTS, OtherItems, Parts, StepSampler


@dataclass(frozen=True)
class Begun:
    """What the steps of a run are made of, for as long as it lasts."""

    processes: int
    """With records of their own."""
    accumulated: int
    """Micro-batches of each."""

    @property
    def micro_batches(self) -> int:
        """Of a step, over all processes; the last of an epoch may have fewer."""
        return self.processes * self.accumulated


def accumulated(args: Any) -> int:
    """Micro-batches of each process of a step, for these training arguments: as the run was begun."""
    begun: Begun | None = getattr(args, "begun", None)
    return int(args.gradient_accumulation_steps if begun is None else begun.accumulated)


class Part(NamedTuple):
    """A micro-batch by the numbers of its records, and what it counts."""

    rows: list[Any]
    weight: int


class SharedSteps(Sampler[list[Part]]):
    """For each step, a list of micro-batches for each rank.

    Args:
        order: of an epoch's records; or, where steps are planned, of the lists for each process of the beginning.
        batch: records of a micro-batch.
        drop_last, even: as accelerate has had it for the processes of the beginning.
        begun: how many these were.
        ranks: processes now.
        by_example: each record is a micro-batch, and a rank has those that follow each other.
    """

    def __init__(
        self, order: Any, batch: int, drop_last: bool, even: bool, begun: Begun, ranks: int, by_example: bool = False
    ) -> None:
        self.order = order
        self.batch = batch
        self.drop_last = drop_last
        self.even = even
        self.begun = begun
        self.ranks = ranks
        self.by_example = by_example

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-self._rounds() // self.begun.accumulated) * self.ranks

    def __iter__(self) -> Iterator[list[Part]]:
        for step in self._steps():
            share = -(-len(step) // self.ranks)
            padded = step + [Part(step[0].rows, 0)] * (share * self.ranks - len(step))
            for rank in range(self.ranks):
                yield padded[rank * share :][:share] if self.by_example else padded[rank :: self.ranks]

    def _rounds(self) -> int:
        """Micro-batches of an epoch of the first process."""
        if isinstance(self.order, StepSampler):
            return len(self.order) // self.begun.processes
        return len(self._shards(range(len(self.order)))[0])

    def _steps(self) -> Iterator[list[Part]]:
        """The micro-batches of each step."""
        if isinstance(self.order, StepSampler):
            lists = iter(self.order)
            while of_processes := list(itertools.islice(lists, self.begun.processes)):
                yield self._planned(of_processes)
            return
        rounds = list(zip(*map(iter, self._shards(list(self.order))), strict=True))
        for start in range(0, len(rounds), self.begun.accumulated):
            window = rounds[start : start + self.begun.accumulated]
            if self.by_example:
                yield [Part([row], 1) for batches in window for batch in batches for row in batch]
            else:
                yield [Part(batch, 1) for batches in window for batch in batches]

    def _planned(self, of_processes: Sequence[list[int]]) -> list[Part]:
        """A step of so many records a process, which it took in parts."""
        starts = range(0, len(of_processes[0]), self.batch)
        parts = [rows[start : start + self.batch] for start in starts for rows in of_processes]
        return [Part(rows, len(rows)) for rows in parts]

    def _shards(self, order: Sequence[int]) -> list[Any]:
        """The batches of each process of the beginning: a sequence each."""
        from accelerate.data_loader import BatchSamplerShard

        batches: Any = BatchSampler(order, self.batch, self.drop_last)
        processes = self.begun.processes
        if processes == 1:
            return [batches]
        return [BatchSamplerShard(batches, processes, k, even_batches=self.even) for k in range(processes)]


class TogetherInParts(OtherItems):
    """Items by lists of `Part`."""

    def __getitem__(self, parts: Sequence[Part]) -> list[Part]:
        return [Part([self.dataset[row] for row in part.rows], part.weight) for part in parts]


@dataclass
class CollateParts:
    """Collates what `TogetherInParts` gives."""

    collate: Callable[[Sequence[Any]], dict[str, Any]]

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """Of items, or of one list of parts."""
        if not isinstance(items[0], list):
            return self.collate(items)
        parts: Parts = [(self.collate(part.rows), part.weight) for part in items[0]]
        return {PARTS: parts}
