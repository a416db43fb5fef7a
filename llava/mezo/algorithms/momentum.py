"""A weighted mean of the last steps' estimates, whose noise is computed again (Malladi et al. 2023, appendix B.2).

estimate <- sum over j < window of w_j * (estimate of j steps ago),   w_j = beta^j / sum of all beta^j

The weights have sum 1 from the first step on, so a rate is one of `sgd`. Each step costs the update `window` times the
noise. Usual: beta = 0.9, window = 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.mezo.algorithms.interface import Move, Rule, Settings, Term

Estimates = tuple[tuple[Term, ...], ...]
"""Of the last steps, newest first."""


class Momentum(Rule):
    """See `Rule`; remembers the last estimates."""

    start: Estimates = ()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.beta = settings.momentum
        self.window = settings.window

    def moves(self, memory: Estimates, terms: Sequence[Term]) -> tuple[Estimates, tuple[Move, ...]]:
        estimates = (tuple(terms), *memory)[: self.window]
        weights = [self.beta**age for age in range(len(estimates))]
        total = sum(weights)
        return estimates, tuple(
            Move(seed, weight / total * projected_grad / len(estimate))
            for weight, estimate in zip(weights, estimates, strict=True)
            for seed, projected_grad in estimate
        )

    def restored(self, memory: Any) -> Estimates:
        return tuple(tuple(Term(*term) for term in estimate) for estimate in memory)
