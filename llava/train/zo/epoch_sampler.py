"""An order of the data that a resumed run has again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A sampler whose order is a function of (seed, epoch), whatever was drawn before.

    The loop sets the epoch; where it does not, every iteration is of the next one. The global generator is not moved.

    Args:
        sampler: gives indices into the data, in an order that it draws from torch's global generator.
        seed: added to the epoch's number, it seeds that generator for the draw.
    """

    def __init__(self, sampler: Sampler[int], seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + self.epoch)
            order = list(self.sampler)
        self.epoch += 1
        return iter(order)
