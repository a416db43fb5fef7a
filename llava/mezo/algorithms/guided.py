"""A two-sided difference along a direction that probes point out: MeZO-GV (Jin et al. 2026, arXiv 2601.04710).

L(theta + eps z_i) of n probes    v = mean of z_i with the n // 2 lowest losses - mean of the others
estimate = (L(theta + eps v) - L(theta - eps v)) / (2 eps) v        n + 2 forwards

With two probes their losses only choose the sign of v, which a two-sided difference does not see: from three on they
say something. The paper has eps = 1e-3, lr = 2e-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from llava.mezo.algorithms.differences import two_sided
from llava.mezo.algorithms.interface import Estimator, Point, Settings, Term


class Guided(Estimator):
    """See `Estimator`; remembers nothing."""

    several_seeds = adaptive = True
    usual: ClassVar = {"num_directions": 4}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.num_directions < 2:
            raise ValueError(
                f"the estimator guided compares probes, and num_directions is {settings.num_directions}; it must be "
                "at least 2 (usual: 4)"
            )
        self.num_losses = settings.num_directions + 2

    def points(self, memory: Any, seeds: Sequence[int]) -> tuple[Point, ...]:
        return tuple(Point.along(seed, self.eps) for seed in seeds)

    def further_points(self, memory: Any, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Point, ...]:
        weights = guide(losses)
        return tuple(Point(tuple(seeds), tuple(scale * w for w in weights)) for scale in (self.eps, -self.eps))

    def terms(self, memory: Any, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Any, tuple[Term, ...]]:
        *probes, _, _ = losses
        (along,) = two_sided(losses[-2:], self.eps)
        return None, tuple(
            Term(seed, along * weight * len(probes)) for seed, weight in zip(seeds, guide(probes), strict=True)
        )

    def shown(self, losses: Sequence[float], terms: Sequence[Term]) -> float:
        """Along v, of whose noise each term has a share."""
        return two_sided(losses[-2:], self.eps)[0]


def guide(losses: Sequence[float]) -> list[float]:
    """Of each probe's noise, how much is in v; of equal losses the earlier counts as lower."""
    order = sorted(range(len(losses)), key=losses.__getitem__)
    low = len(losses) // 2
    weights = [0.0] * len(losses)
    for rank, probe in enumerate(order):
        weights[probe] = 1 / low if rank < low else -1 / (len(losses) - low)
    return weights
