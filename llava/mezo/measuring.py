"""The losses of a step: points, micro-batches and ranks.

A step's loss at a point is the mean over its micro-batches and over the data-parallel ranks, summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llava.mezo.algorithms.interface import Point, Term
from llava.mezo.trained import TrainedWeights
from llava.mezo.updates import Update

Loss = Callable[..., "float | torch.Tensor"]
Run = Callable[[int], "Sequence[float | torch.Tensor]"]
Reduce = Callable[[list[float]], list[float]]
"""Takes this rank's means and gives the means over all ranks, in the same order on each rank."""

SIDE_BY_SIDE = 2
"""Points along one direction at which weights are perturbed together."""


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    step: int
    losses: tuple[float, ...]
    """At the points of the step, in their order."""
    terms: tuple[Term, ...]
    """What the estimator made of them."""
    applied: bool
    """False when a loss or a coefficient was not finite: the weights are as before."""

    @property
    def loss(self) -> float:
        """Mean of all losses of the step."""
        return sum(self.losses) / len(self.losses)

    @property
    def projected_grad(self) -> float:
        """Mean of the projected gradients."""
        return sum(term.projected_grad for term in self.terms) / len(self.terms)


def measure(points: Sequence[Point], weights: TrainedWeights, run: Run, undone: Sequence[Update] = ()) -> list[float]:
    """The losses of one micro-batch at these points, in their order.

    Args:
        run: gives the losses at the so many points that `weights` was aimed at.
        undone: what lies between the anchor and the weights, the latest first.

    The losses come to the host together, after the last forward: nothing here waits for a device before that.
    """
    losses: list[float | torch.Tensor] = []
    for together in _visits(points):
        weights.aim(together, undone if together[0].anchored else ())
        losses += run(len(together))
    return as_floats(losses)


def _visits(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Points that follow each other along one direction."""
    together: list[Point] = []
    for point in points:
        alike = together and (together[0].seeds, together[0].anchored) == (point.seeds, point.anchored)
        if together and not (alike and len(together) < SIDE_BY_SIDE):
            yield together
            together = []
        together.append(point)
    yield together


def as_floats(losses: Sequence[float | torch.Tensor]) -> list[float]:
    """Losses as numbers of the host, by one copy for each device. ValueError for a tensor of several elements."""
    for value in losses:
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"the loss is a tensor of shape {tuple(value.shape)}; it must be one number (a mean)")
    if len({value.device for value in losses if isinstance(value, torch.Tensor)}) != 1:
        return [float(value) for value in losses]
    tensors = [value.reshape(()).double() for value in losses if isinstance(value, torch.Tensor)]
    there = iter(torch.stack(tensors).tolist())
    return [next(there) if isinstance(value, torch.Tensor) else float(value) for value in losses]


class LossWindow:
    """The losses of the micro-batches that make up one step."""

    def __init__(self) -> None:
        self.step: int | None = None
        self._batches: list[list[float]] = []
        self._weights: list[float] = []

    def __len__(self) -> int:
        """Micro-batches so far."""
        return len(self._batches)

    def add(self, step: int, losses: Sequence[float], weight: float = 1.0) -> None:
        """Add one micro-batch, of so much weight in the mean. ValueError when the window belongs to another step."""
        if self.step is not None and step != self.step:
            raise ValueError(f"micro-batch of step {step} in the window of step {self.step}; call step() in between")
        self.step = step
        self._batches.append(list(losses))
        self._weights.append(weight)

    def close(self, reduce: Reduce) -> tuple[int, list[float]]:
        """Step number and the losses at its points: means over micro-batches and ranks; the window is empty then."""
        step, batches, weights = self._taken()
        total = sum(weights)
        means = [
            sum(w * x for w, x in zip(weights, column, strict=True)) / total for column in zip(*batches, strict=True)
        ]
        return step, reduce(means)

    def close_apart(self, reduce: Reduce, first: int, count: int) -> tuple[int, list[float]]:
        """As `close` without a mean: micro-batch k of this rank is number first + k of `count`, each measured once.

        RuntimeError: some were not.
        """
        step, batches, _ = self._taken()
        size = len(batches[0])
        own = slice(first * size, (first + len(batches)) * size)
        values, known = [0.0] * (count * size), [0.0] * (count * size)
        if len(values[own]) == len(batches) * size:
            values[own], known[own] = [x for batch in batches for x in batch], [1.0] * (len(batches) * size)
        found = reduce(values + known)
        values, known = found[: count * size], found[count * size :]
        if not all(known):
            raise RuntimeError(
                f"step {step} needs {count} examples, each in a micro-batch to itself, and this rank had {len(batches)}"
            )
        return step, [value / share for value, share in zip(values, known, strict=True)]

    def _taken(self) -> tuple[int, list[list[float]], list[float]]:
        if self.step is None:
            raise RuntimeError("step() without a loss; call accumulate(step, loss) before it")
        step, batches, weights = self.step, self._batches, self._weights
        self.step, self._batches, self._weights = None, [], []
        return step, batches, weights


def mean_over_ranks(device: torch.device) -> Reduce:
    """Mean over torch.distributed's default group where that is initialised, else the values as they are."""

    def reduce(values: list[float]) -> list[float]:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return values
        total = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        averaged: list[float] = (total / distributed.get_world_size()).tolist()
        return averaged

    return reduce


def rank_and_ranks() -> tuple[int, int]:
    """This process's number in torch.distributed's default group, and their number; (0, 1) without one."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
