"""Momentum in the direction itself: ZO-AdaMU (Jiang et al. 2024, Algorithm 1).

m = sum over j < window of w_j z_{t-j},   w_j = beta^j / sqrt(sum of all beta^2j)
estimate = (L(theta + eps m) - L(theta - eps m)) / (2 eps) m        2 forwards

The paper draws a part of m around 0 and a part around the last m. With smoothing that stays, both parts are one
Gaussian, and m is this decaying sum of the last steps' noise. Here it has variance 1, so that eps and rates are those
of `spsa`; what the paper anneals is then a factor of them, left to schedules, as is its second moment. Usual:
beta = 0.9, window = 20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llava.mezo.algorithms.differences import two_sided
from llava.mezo.algorithms.interface import Estimator, Point, Settings, Term
from llava.mezo.algorithms.sgd import SGD

Seeds = tuple[int, ...]
"""Of the last steps, newest first."""


class Along(Estimator):
    """See `Estimator`; remembers the last seeds."""

    start: Seeds = ()
    several_seeds = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.num_directions != 1:
            raise ValueError(
                f"the rule adamu goes along one direction, and num_directions is {settings.num_directions}; it must "
                "be 1"
            )
        self.num_losses = 2

    def points(self, memory: Seeds, seeds: Sequence[int]) -> tuple[Point, ...]:
        everything, weights = self._direction(memory, seeds)
        return tuple(Point(everything, tuple(scale * w for w in weights)) for scale in (self.eps, -self.eps))

    def terms(self, memory: Seeds, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Any, tuple[Term, ...]]:
        everything, weights = self._direction(memory, seeds)
        (along,) = two_sided(losses, self.eps)
        terms = (Term(seed, along * w * len(weights)) for seed, w in zip(everything, weights, strict=True))
        return everything, tuple(terms)

    def shown(self, losses: Sequence[float], terms: Sequence[Term]) -> float:
        """Along m, of whose noise each term has a share."""
        return two_sided(losses[-2:], self.eps)[0]

    def _direction(self, memory: Seeds, seeds: Sequence[int]) -> tuple[Seeds, list[float]]:
        everything = (*seeds, *memory)[: self.settings.window]
        weights = [self.settings.momentum**age for age in range(len(everything))]
        size = math.sqrt(sum(w * w for w in weights))
        return everything, [w / size for w in weights]


class AdaMU(SGD):
    """See `Rule`; remembers nothing beside the direction."""

    estimator = Along

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.estimator != "spsa":
            raise ValueError(
                f"the rule adamu is its own estimator, and estimator is {settings.estimator!r}; leave it out"
            )
