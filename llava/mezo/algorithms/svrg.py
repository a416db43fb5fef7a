"""Differences against an anchor, which has seen more: MeZO-SVRG (Gautam et al. 2024).

every q steps    projected_grad along z_a, on as many records as the step has: the anchor; 2n forwards
others           ((L(theta + eps z) - L(theta - eps z)) - (L(anchor + eps z) - L(anchor - eps z))) / (2 eps) along z
                 and the anchor's own projected_grad along z_a                     4n forwards

The anchor's weights are not kept: they are the current ones with the updates since then taken back, on the way into a
forward. A step at an anchor should have many records. Usual: q from 5 to 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.mezo.algorithms.differences import two_sided
from llava.mezo.algorithms.interface import Point, Settings, Term
from llava.mezo.algorithms.spsa import SPSA

Anchor = tuple[int, tuple[Term, ...]]
"""Steps applied since, and what was found there."""


class SVRG(SPSA):
    """See `Estimator`; remembers the anchor."""

    start: Anchor = (0, ())
    several_seeds = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.num_losses = 4 * settings.num_directions
        self.steps = settings.anchor_steps

    def points(self, memory: Anchor, seeds: Sequence[int]) -> tuple[Point, ...]:
        around = super().points(None, seeds)
        if self._at_anchor(memory):
            return around
        return (*around, *(point._replace(anchored=True) for point in around))

    def undone(self, memory: Anchor) -> int:
        return memory[0]

    def terms(self, memory: Anchor, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Anchor, tuple[Term, ...]]:
        grads = two_sided(losses, self.eps)
        here, there = grads[: len(seeds)], grads[len(seeds) :]
        if self._at_anchor(memory):
            found = tuple(Term(seed, grad) for seed, grad in zip(seeds, here, strict=True))
            return (1, found), found
        taken, anchor = memory
        terms = [Term(seed, one - other) for seed, one, other in zip(seeds, here, there, strict=True)]
        both = tuple(Term(term.seed, 2 * term.projected_grad) for term in (*terms, *anchor))
        return (taken + 1, anchor), both

    def restored(self, memory: Any) -> Anchor:
        taken, anchor = memory
        return taken, tuple(Term(*term) for term in anchor)

    def shown(self, losses: Sequence[float], terms: Sequence[Term]) -> float:
        """Behind the step's own terms, which count twice, are those of the anchor."""
        n = self.settings.num_directions
        return terms[-1].projected_grad if len(terms) == n else terms[n - 1].projected_grad / 2

    def _at_anchor(self, memory: Anchor) -> bool:
        return memory[0] % self.steps == 0
