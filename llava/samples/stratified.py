"""An order of the data in which every answer is spread evenly over an epoch.

Where a record's answer decides much of its projected gradient, batches with the answers in equal shares are calmer. It
has gained nothing where it was measured (docs/reproduction.md), and is off by default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from llava.samples.samplers import Lengths, check_lengths, deal, modalities, slices

MOST_ANSWERS = 64
"""The most frequent answers, each of which is spread by itself; all others are spread as one."""


def can_be_spread(answers: Sequence[str]) -> bool:
    """Whether some answers come more than once, and not all are the same."""
    return 1 < len(set(answers)) < len(answers)


def spread(answers: Sequence[str]) -> list[int]:
    """All indices, in a random order in which each answer has its share of any stretch, up to one record.

    The j-th of n records with one answer stands at the share (j + u) / n of the order, with one random u in 0..1 for
    the answer and the records of an answer in random order. Draws from torch's global generator.
    """
    counts = Counter(answers)
    own = {answer for answer, count in counts.most_common(MOST_ANSWERS) if count > 1}
    strata: dict[str | None, list[int]] = {}
    for index, answer in enumerate(answers):
        strata.setdefault(answer if answer in own else None, []).append(index)
    places = torch.empty(len(answers), dtype=torch.float64)
    for members in strata.values():
        shuffled = torch.tensor(members)[torch.randperm(len(members))]
        places[shuffled] = (torch.arange(len(members)) + torch.rand((), dtype=torch.float64)) / len(members)
    order: list[int] = places.argsort(stable=True).tolist()
    return order


class StratifiedSampler(Sampler[int]):
    """Draw samples in that order, from torch's global generator.

    Args:
        answers: one a sample.
        lengths: if given, batches are of one modality and similar length, as with `group_by_modality_length`: one a
            sample, negative without an image, not 0.
        batch_size, world_size: as in `LengthGroupedSampler`.
    """

    def __init__(
        self, answers: Sequence[str], lengths: Lengths | None = None, batch_size: int = 1, world_size: int = 1
    ) -> None:
        if lengths is not None:
            check_lengths(lengths)
        self.answers = list(answers)
        self.lengths = None if lengths is None else list(lengths)
        self.batch_size = batch_size
        self.world_size = world_size

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[int]:
        if self.lengths is None:
            return iter(spread(self.answers))
        sizes = [abs(length) for length in self.lengths]
        complete: list[list[list[int]]] = []
        leftovers: list[int] = []
        for part in modalities(self.lengths):
            order = [part[k] for k in spread([self.answers[i] for i in part])]
            megabatches = slices(order, self.batch_size * self.world_size)
            if len(megabatches[-1]) < self.batch_size * self.world_size:
                leftovers += megabatches.pop()
            complete.append([deal(batch, sizes, self.world_size) for batch in megabatches])
        turns = [number for number, batches in enumerate(complete) for _ in batches]
        remaining = [iter(batches) for batches in complete]  # each modality's batches stay in their order
        drawn = [next(remaining[turns[k]]) for k in torch.randperm(len(turns)).tolist()]
        return iter([i for batch in drawn for i in batch] + sorted(leftovers))
