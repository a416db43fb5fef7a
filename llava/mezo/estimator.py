"""From losses to projected gradients: micro-batches, directions and ranks.

For every direction (SPSA, Spall 1992; n directions: n-SPSA, Malladi et al. 2023, Definition 1)

    l+ = L(theta + eps z)    l- = L(theta - eps z)    projected_grad = (l+ - l-) / (2 eps)

where L is the mean over the micro-batches of a step and over the data-parallel ranks. Losses are summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llava.mezo.config import MeZOConfig
from llava.mezo.kernels import Update, as_float32
from llava.mezo.noise import direction_seed
from llava.mezo.trained import TrainedWeights

Loss = Callable[..., "float | torch.Tensor"]
Pair = Callable[[], "Sequence[float | torch.Tensor]"]
Reduce = Callable[[list[float]], list[float]]
"""Takes this rank's means and gives the means over all ranks, in the same order on each rank."""


@dataclass(frozen=True)
class Direction:
    """One direction of a step and what was measured along it."""

    seed: int
    """64-bit seed of the direction's noise."""
    loss_plus: float
    loss_minus: float
    projected_grad: float
    """(loss_plus - loss_minus) / (2 eps): the directional derivative along z."""


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    step: int
    directions: tuple[Direction, ...]
    applied: bool
    """False when a loss or a coefficient was not finite: the weights are as before."""

    @property
    def loss(self) -> float:
        """Mean of all losses of the step."""
        return sum(d.loss_plus + d.loss_minus for d in self.directions) / (2 * len(self.directions))

    @property
    def projected_grad(self) -> float:
        """Mean of the projected gradients."""
        return sum(d.projected_grad for d in self.directions) / len(self.directions)


def measure(config: MeZOConfig, step: int, weights: TrainedWeights, pair: Pair) -> list[float]:
    """The 2n losses of one micro-batch: plus and minus of direction 0, of direction 1, ...

    Args:
        pair: gives the losses at both points that `weights` was aimed at.

    The losses come to the host together, after the last forward: nothing here waits for a device before that.
    """
    losses: list[float | torch.Tensor] = []
    for direction in range(config.num_directions):
        weights.aim(direction_seed(config.seed, step, direction), (config.eps, -config.eps))
        losses += pair()
    return as_floats(losses)


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

    def add(self, step: int, losses: list[float]) -> None:
        """Add one micro-batch. ValueError when the window belongs to another step."""
        if self.step is not None and step != self.step:
            raise ValueError(f"micro-batch of step {step} in the window of step {self.step}; call step() in between")
        self.step = step
        self._batches.append(losses)

    def close(self, config: MeZOConfig, reduce: Reduce) -> tuple[int, tuple[Direction, ...]]:
        """Step number and directions, with means over micro-batches and ranks; the window is empty afterwards."""
        if self.step is None:
            raise RuntimeError("step() without a loss; call accumulate(step, loss) before it")
        step, batches = self.step, self._batches
        self.step, self._batches = None, []
        means = reduce([sum(column) / len(batches) for column in zip(*batches, strict=True)])
        directions = []
        for number in range(config.num_directions):
            plus, minus = means[2 * number], means[2 * number + 1]
            seed = direction_seed(config.seed, step, number)
            directions.append(Direction(seed, plus, minus, (plus - minus) / (2 * config.eps)))
        return step, tuple(directions)


def update_of(directions: Sequence[Direction], rates: Sequence[float], decays: Sequence[float]) -> Update:
    """The update of a step: for each group coefficients -lr * projected_grad / n and factor 1 - lr * weight_decay.

    Args:
        rates, decays: learning rate and weight decay of each group.

    In float64, rounded once to float32.
    """
    return Update(
        seeds=tuple(d.seed for d in directions),
        coefficients=tuple(
            tuple(as_float32(-lr * d.projected_grad / len(directions)) for d in directions) for lr in rates
        ),
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
