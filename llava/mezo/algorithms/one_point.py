"""One forward a direction, against the last step's: residual feedback (Zhang et al. 2022; Malladi et al. 2023, B.5).

projected_grad = (L(theta_t + eps z_t; B_t) - L(theta_{t-1} + eps z_{t-1}; B_{t-1})) / eps        n forwards

The first step has nothing to compare with and moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.mezo.algorithms import Point, Settings, Term


class OnePoint:
    """See `Estimator`."""

    def __init__(self, settings: Settings) -> None:
        self.eps = settings.eps

    def points(self, seeds: Sequence[int]) -> tuple[Point, ...]:
        return tuple(Point(seed, self.eps) for seed in seeds)

    def terms(self, seeds: Sequence[int], losses: Sequence[float], before: Sequence[float]) -> tuple[Term, ...]:
        earlier = before or losses
        return tuple(
            Term(seed, (loss - last) / self.eps) for seed, loss, last in zip(seeds, losses, earlier, strict=True)
        )
