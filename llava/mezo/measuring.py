"""The losses of a step: points, micro-batches and ranks.

A step's loss at a point is the mean over its micro-batches and over the data-parallel ranks, summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llava.mezo.algorithms import Move, Point, Term
from llava.mezo.kernels import Update, as_float32
from llava.mezo.trained import TrainedWeights

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


def measure(points: Sequence[Point], weights: TrainedWeights, run: Run) -> list[float]:
    """The losses of one micro-batch at these points, in their order.

    Args:
        run: gives the losses at the so many points that `weights` was aimed at.

    The losses come to the host together, after the last forward: nothing here waits for a device before that.
    """
    losses: list[float | torch.Tensor] = []
    for seed, scales in _visits(points):
        weights.aim(seed, scales)
        losses += run(len(scales))
    return as_floats(losses)


def _visits(points: Sequence[Point]) -> Iterator[tuple[int, list[float]]]:
    """Seed and scales of points that follow each other along one direction."""
    scales: list[float] = []
    for point, following in zip(points, [*points[1:], None], strict=True):
        scales.append(point.scale)
        if following is None or following.seed != point.seed or len(scales) == SIDE_BY_SIDE:
            yield point.seed, scales
            scales = []


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

    def add(self, step: int, losses: Sequence[float]) -> None:
        """Add one micro-batch. ValueError when the window belongs to another step."""
        if self.step is not None and step != self.step:
            raise ValueError(f"micro-batch of step {step} in the window of step {self.step}; call step() in between")
        self.step = step
        self._batches.append(list(losses))

    def close(self, reduce: Reduce) -> tuple[int, list[float]]:
        """Step number and the losses at its points: means over micro-batches and ranks; the window is empty then."""
        if self.step is None:
            raise RuntimeError("step() without a loss; call accumulate(step, loss) before it")
        step, batches = self.step, self._batches
        self.step, self._batches = None, []
        return step, reduce([sum(column) / len(batches) for column in zip(*batches, strict=True)])


def update_of(moves: Sequence[Move], rates: Sequence[float], decays: Sequence[float]) -> Update:
    """The update of a step: for each group coefficients -lr * factor and the factor 1 - lr * weight_decay.

    Args:
        rates, decays: learning rate and weight decay of each group.

    In float64, rounded once to float32.
    """
    return Update(
        seeds=tuple(move.seed for move in moves),
        coefficients=tuple(tuple(as_float32(-lr * move.factor) for move in moves) for lr in rates),
        decays=tuple(as_float32(1.0 - lr * decay) for lr, decay in zip(rates, decays, strict=True)),
    )


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
