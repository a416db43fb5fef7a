"""From what an estimator and a rule propose to what kernels apply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava.mezo.algorithms.course import Proposal
from llava.mezo.algorithms.interface import Move


@dataclass(frozen=True)
class Update:
    """What one step does to all weights: decay * w + sum over pairs of coefficient * z(seed)."""

    seeds: tuple[int, ...]
    """Of each pair; at least one."""
    coefficients: tuple[tuple[float, ...], ...]
    """For each group, one a pair; float32 numbers (`as_float32`)."""
    decays: tuple[float, ...]
    """For each group; float32 numbers."""

    def changes(self, group: int) -> bool:
        """Whether the group's weights may change."""
        return self.decays[group] != 1.0 or any(c != 0.0 for c in self.coefficients[group])


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


def can_be_applied(proposal: Proposal, update: Update) -> bool:
    """Whether all losses, and all that they make of the weights, are finite."""
    factors = [factor for group in update.coefficients for factor in group]
    return all(map(math.isfinite, [*proposal.losses, *factors, *update.decays]))


def as_float32(value: float) -> float:
    """The value rounded to float32 (infinite beyond its range), as kernels take scales, coefficients and decay."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
