"""Two-sided differences: SPSA (Spall 1992), n-SPSA (Malladi et al. 2023, Definition 1).

projected_grad = (L(theta + eps z) - L(theta - eps z)) / (2 eps)        2n forwards
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.mezo.algorithms.differences import two_sided
from llava.mezo.algorithms.interface import Estimator, Point, Settings, Term


class SPSA(Estimator):
    """See `Estimator`; remembers nothing."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.num_losses = 2 * settings.num_directions

    def points(self, memory: Any, seeds: Sequence[int]) -> tuple[Point, ...]:
        return tuple(Point.along(seed, scale) for seed in seeds for scale in (self.eps, -self.eps))

    def terms(self, memory: Any, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Any, tuple[Term, ...]]:
        grads = two_sided(losses, self.eps)
        return None, tuple(Term(seed, grad) for seed, grad in zip(seeds, grads, strict=True))
