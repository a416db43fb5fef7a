"""One-sided differences over their own spread: FZOO (Dang et al. 2025, Algorithm 1), signs as noise.

projected_grad_i = (L(theta + eps z_i) - L(theta)) / sd,  sd of the N perturbed losses        N + 1 forwards

so that a step's length does not depend on the loss's scale. The paper has N = 8, eps = 1e-4, lr = 5e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from llava.mezo.algorithms.differences import standard_deviation
from llava.mezo.algorithms.interface import Estimator, Point, Settings, Term


class FZOO(Estimator):
    """See `Estimator`; remembers nothing."""

    usual: ClassVar = {"num_directions": 8, "noise": "rademacher"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.num_directions < 2:
            raise ValueError(
                "the estimator fzoo takes the spread of several directions, and num_directions is "
                f"{settings.num_directions}; it must be at least 2 (usual: 8)"
            )
        if settings.noise != "rademacher":
            raise ValueError(f"the estimator fzoo is defined for the noise rademacher, and noise is {settings.noise!r}")
        self.num_losses = 1 + settings.num_directions

    def points(self, memory: Any, seeds: Sequence[int]) -> tuple[Point, ...]:
        return (Point.along(seeds[0], 0.0), *(Point.along(seed, self.eps) for seed in seeds))

    def terms(self, memory: Any, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Any, tuple[Term, ...]]:
        here, *around = losses
        spread = standard_deviation(around)
        return None, tuple(
            Term(seed, (loss - here) / spread if spread else 0.0) for seed, loss in zip(seeds, around, strict=True)
        )
