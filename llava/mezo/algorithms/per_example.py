"""A direction for each example of the batch: GRZO (Tan et al. 2026).

projected_grad_i = (L(theta + eps z_i; x_i) - L(theta - eps z_i; x_i)) / (2 eps) / sd        2 forwards an example

sd the standard deviation of these differences over the batch. As many forwards of an example as `spsa` has with one
direction, and n = B directions. The paper has eps = 1e-3, lr = 5e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.mezo.algorithms.differences import standard_deviation
from llava.mezo.algorithms.interface import Settings, Term
from llava.mezo.algorithms.spsa import SPSA


class PerExample(SPSA):
    """See `Estimator`; remembers nothing."""

    per_example = True

    def __init__(self, settings: Settings) -> None:
        if settings.num_directions < 2:
            raise ValueError(
                "the estimator per_example takes the spread over several examples, each with a direction to itself, "
                f"and num_directions is {settings.num_directions}; it must be the examples of a step, at least 2"
            )
        super().__init__(settings)

    def terms(self, memory: Any, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Any, tuple[Term, ...]]:
        _, terms = super().terms(memory, seeds, losses)
        spread = standard_deviation([term.projected_grad for term in terms])
        return None, tuple(Term(t.seed, t.projected_grad / spread if spread else 0.0) for t in terms)
