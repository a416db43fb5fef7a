"""Two-sided differences: SPSA (Spall 1992), n-SPSA (Malladi et al. 2023, Definition 1).

projected_grad = (L(theta + eps z) - L(theta - eps z)) / (2 eps)        2n forwards
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.mezo.algorithms import Point, Settings, Term


class SPSA:
    """See `Estimator`."""

    def __init__(self, settings: Settings) -> None:
        self.eps = settings.eps

    def points(self, seeds: Sequence[int]) -> tuple[Point, ...]:
        return tuple(Point(seed, scale) for seed in seeds for scale in (self.eps, -self.eps))

    def terms(self, seeds: Sequence[int], losses: Sequence[float], before: Sequence[float]) -> tuple[Term, ...]:
        pairs = zip(losses[::2], losses[1::2], strict=True)
        return tuple(
            Term(seed, (plus - minus) / (2 * self.eps)) for seed, (plus, minus) in zip(seeds, pairs, strict=True)
        )
