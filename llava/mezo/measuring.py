"""The losses of a step: points, micro-batches and ranks.

A step's loss at a point is the mean over its micro-batches, those of all ranks, summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat

import torch

from llava.mezo.algorithms.interface import Point, Term
from llava.mezo.ranks import Ranks
from llava.mezo.trained import TrainedWeights
from llava.mezo.updates import Update

Loss = Callable[..., "float | torch.Tensor"]
Run = Callable[[int], "Sequence[float | torch.Tensor]"]
Inputs = dict[str, torch.Tensor]

SIDE_BY_SIDE = 2
"""Points along one direction at which weights are perturbed together."""


class Recorder(Protocol):
    """Records functions of tensors on the device of the weights, to launch them again as a whole."""

    def run(
        self, key: Hashable, function: Callable[[Inputs], torch.Tensor], inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """`function(inputs)` for inputs on any device; equal keys are the same function, of its inputs alone."""

    def clear(self) -> None:
        """Forget all: tensors that were used have moved."""


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
    if not points:
        return []
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


def check_losses(losses: Sequence[Any], kind: type = SupportsFloat) -> None:
    """TypeError for what is none of this kind, as None; ValueError for a tensor of several elements."""
    for value in losses:
        if not isinstance(value, kind):
            what = "a tensor" if kind is torch.Tensor else "a number or a tensor"
            raise TypeError(f"the loss is {value!r}; it must be {what} of one element")
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"the loss is a tensor of shape {tuple(value.shape)}; it must be one number (a mean)")


def as_floats(losses: Sequence[float | torch.Tensor]) -> list[float]:
    """Losses as numbers of the host, by one copy for each device. Errors as `check_losses`."""
    check_losses(losses)
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

    def close(self, points: int, ranks: Ranks, device: torch.device) -> tuple[int, list[float]]:
        """Step number and the losses at its points: means over the micro-batches of all ranks; then it is empty."""
        step, batches, weights = self._taken()
        return step, mean_losses(batches, weights, points, ranks, device)

    def drop(self) -> int:
        """Step number, of a step whose losses are known; then it is empty."""
        return self._taken()[0]

    def close_apart(self, count: int, ranks: Ranks, device: torch.device) -> tuple[int, list[float]]:
        """As `close` without a mean: the micro-batches of all ranks, `count` in all, are measured once each.

        RuntimeError: they are more or fewer.
        """
        step, batches, _ = self._taken()
        if len(batches) * ranks.count != count:
            raise RuntimeError(
                f"step {step} needs {count} examples, each in a micro-batch to itself, and this rank had {len(batches)}"
            )
        found = ranks.exchange([x for batch in batches for x in batch], device)
        return step, [x for values in found for x in values]

    def _taken(self) -> tuple[int, list[list[float]], list[float]]:
        if self.step is None:
            raise RuntimeError("step() without a loss; call accumulate(step, loss) before it")
        step, batches, weights = self.step, self._batches, self._weights
        self.step, self._batches, self._weights = None, [], []
        return step, batches, weights


def mean_losses(
    batches: Sequence[Sequence[float]], weights: Sequence[float], points: int, ranks: Ranks, device: torch.device
) -> list[float]:
    """The losses at all points of a step, each the weighted mean over the micro-batches of all ranks.

    In the order in which one process would have them: the first of each rank, then the second of each.

    Args:
        batches: of each micro-batch of this rank, the losses at its share of the points.
    """
    width = -(-points // ranks.point_ways)
    own = [x for weight, batch in zip(weights, batches, strict=True) for x in (weight, *_padded(batch, width))]
    found = ranks.exchange(own, device)
    losses: list[list[float]] = []
    shares: list[float] = []
    for first in range(0, len(own), 1 + width):
        shares += [values[first] for values in found[:: ranks.point_ways]]
        losses += ranks.joined([values[first + 1 : first + 1 + width] for values in found], points)
    total = sum(shares)
    if total == 0:
        raise ValueError("all micro-batches of the step have the weight 0; one must have more")
    return [sum(w * x for w, x in zip(shares, column, strict=True)) / total for column in zip(*losses, strict=True)]


def _padded(values: Sequence[float], width: int) -> list[float]:
    return [*values, *[0.0] * (width - len(values))]
