"""Steps of unequal size, and steps in parts that fit the memory.

A zeroth-order step has one number to show for all its records, so its batch may grow on the way and be taken in parts:

    StepSampler      draws the records of each step together, as many as a plan says
    Together         gives the samples of a step for its indices
    MicroBatches     collates them in parts of so many rows
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, Sampler

from llava.mezo.errors import InputError
from llava.train.zo.epoch_sampler import EpochSampler

PARTS = "micro_batches"
"""Key of a batch in parts."""

Parts = list[tuple[dict[str, Any], int]]
"""Batches, each with its number of rows."""


@dataclass(frozen=True)
class Growth:
    """How many records a step has, by the share of all records of the run that came before it."""

    stages: tuple[tuple[float, int], ...]

    @classmethod
    def parse(cls, text: str) -> Growth:
        """From `--zo_batch_growth`, as "0:4,0.3:20": 4 records a step, and 20 after three tenths of all records."""
        try:
            pairs = [stage.split(":") for stage in text.split(",")]
            stages = tuple((float(share), int(rows)) for share, rows in pairs)
        except ValueError as error:
            raise _wrong(text) from error
        shares = [share for share, _ in stages]
        rising = shares[0] == 0 and shares == sorted(set(shares)) and all(0 <= share < 1 for share in shares)  # no NaN
        if not rising or min(rows for _, rows in stages) < 1:
            raise _wrong(text)
        return cls(stages)

    def rows(self, steps: int) -> list[int]:
        """Of each of so many steps."""
        ends = [*(share for share, _ in self.stages[1:]), 1.0]
        # a stage has its share of all records, so its steps are in proportion to that share by its rows
        sizes = [(end - share) / rows for end, (share, rows) in zip(ends, self.stages, strict=True)]
        borders = [round(steps * part / sum(sizes)) for part in itertools.accumulate(sizes)]
        starts = [0, *borders[:-1]]
        return [
            rows
            for start, border, (_, rows) in zip(starts, borders, self.stages, strict=True)
            for _ in range(border - start)
        ]


def _wrong(text: str) -> InputError:
    return InputError(
        f"--zo_batch_growth {text}: give stages SHARE:RECORDS with shares that rise from 0 to below 1, as in 0:4,0.3:20"
    )


class StepSampler(Sampler[list[int]]):
    """For each step, the indices of its records: one list a rank.

    Args:
        order: of an epoch; as many epochs are drawn as are needed, and steps go over their ends.
        rows: of each step, over all ranks.
        ranks: processes.
    """

    def __init__(self, order: EpochSampler, rows: Sequence[int], ranks: int) -> None:
        self.order = order
        self.rows = rows
        self.ranks = ranks

    def __len__(self) -> int:
        return len(self.rows) * self.ranks

    def __iter__(self) -> Iterator[list[int]]:
        stream = self._stream()
        for rows in self.rows:
            for _ in range(self.ranks):
                yield list(itertools.islice(stream, rows // self.ranks))

    def _stream(self) -> Iterator[int]:
        for epoch in itertools.count():
            self.order.set_epoch(epoch)
            yield from self.order


class OtherItems(Dataset[Any]):
    """A data set whose items are put differently; for all else it is asked."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # while it is unpickled in a worker, there is none yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)


class Together(OtherItems):
    """Items by lists of indices."""

    def __getitem__(self, indices: Sequence[int]) -> list[Any]:
        return [self.dataset[index] for index in indices]


@dataclass
class MicroBatches:
    """Collates a step's items in parts.

    Attributes:
        collate: makes a batch of items.
        rows: of a part, at most.
    """

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    rows: int

    def __call__(self, items: Sequence[Any]) -> dict[str, Parts]:
        """Of items, or of one list of items."""
        flat = items[0] if isinstance(items[0], list) else items
        parts = [flat[start : start + self.rows] for start in range(0, len(flat), self.rows)]
        return {PARTS: [(self.collate(part), len(part)) for part in parts]}


def parts_of(batch: dict[str, Any]) -> Parts:
    """The parts of a batch; one of weight 1 for a plain one."""
    parts: Parts = batch.get(PARTS) or [(batch, 1)]
    return parts
