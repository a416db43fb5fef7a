"""One forward a direction, against the last step's: residual feedback (Zhang et al. 2022; Malladi et al. 2023, B.5).

projected_grad = (L(theta_t + eps z_t; B_t) - L(theta_{t-1} + eps z_{t-1}; B_{t-1})) / eps        n forwards

The first step has nothing to compare with and moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.mezo.algorithms.interface import Estimator, Point, Settings, Term


class OnePoint(Estimator):
    """See `Estimator`; remembers the last losses."""

    start: tuple[float, ...] = ()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.num_losses = settings.num_directions

    def points(self, memory: Any, seeds: Sequence[int]) -> tuple[Point, ...]:
        return tuple(Point.along(seed, self.eps) for seed in seeds)

    def terms(
        self, memory: tuple[float, ...], seeds: Sequence[int], losses: Sequence[float]
    ) -> tuple[Any, tuple[Term, ...]]:
        earlier = memory or losses
        return tuple(losses), tuple(
            Term(seed, (loss - last) / self.eps) for seed, loss, last in zip(seeds, losses, earlier, strict=True)
        )
