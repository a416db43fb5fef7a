"""Directions of low rank: LOZO (Chen et al. 2025, Algorithm 1).

z = A B^T / sqrt(r) for matrices, with A (rows, r) anew each step and B (columns, r) kept for nu steps; for all other
weights z is as ever. Two-sided differences as in `spsa.py`. The paper has r from 1 to 8 and nu = 50.

B is selected by the upper half of a direction's seed, A by all of it, see `noise.py`.
"""

from __future__ import annotations

from llava.mezo.algorithms.interface import Settings
from llava.mezo.algorithms.spsa import SPSA
from llava.mezo.noise import LOW32, LOW_RANK, upper_half


class LowRank(SPSA):
    """See `Estimator`; remembers nothing."""

    def __init__(self, settings: Settings) -> None:
        if settings.noise != "gaussian":
            raise ValueError(f"the estimator lowrank has gaussian factors, and noise is {settings.noise!r}")
        super().__init__(settings)

    @property
    def kernel_noise(self) -> str:
        return f"{LOW_RANK}-{self.settings.rank}"

    def seed(self, step: int, direction: int) -> int:
        """Steps of one period have the upper half in common."""
        period = step // self.settings.basis_steps
        return upper_half(super().seed(period, direction)) | super().seed(step, direction) & LOW32
