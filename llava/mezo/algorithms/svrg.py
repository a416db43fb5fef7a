"""Differences against an anchor, which has seen more: MeZO-SVRG (Gautam et al. 2024, Algorithm 2).

every q steps    projected_grad along z_a, on as many records as the step has: the anchor; 2n forwards
others           ((L(theta + eps z) - L(theta - eps z)) - (L(anchor + eps z) - L(anchor - eps z))) / (2 eps) along z
                 and the anchor's own projected_grad along z_a                     4n forwards

The anchor's weights are not kept: they are the current ones with the updates since then taken back, on the way into a
forward. A step at an anchor should have many records. The paper has q from 2 to 10.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.mezo.algorithms import Estimator, Point, Settings, Term

Anchor = tuple[int, tuple[Term, ...]]
"""Steps applied since, and what was found there."""


class SVRG(Estimator):
    """See `Estimator`; remembers the anchor."""

    start: Anchor = (0, ())
    several_seeds = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.num_losses = 4 * settings.num_directions
        self.steps = settings.anchor_steps

    def points(self, memory: Anchor, seeds: Sequence[int]) -> tuple[Point, ...]:
        around = [Point.along(seed, scale) for seed in seeds for scale in (self.eps, -self.eps)]
        if self._at_anchor(memory):
            return tuple(around)
        return (*around, *(point._replace(anchored=True) for point in around))

    def undone(self, memory: Anchor) -> int:
        return memory[0]

    def terms(self, memory: Anchor, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Anchor, tuple[Term, ...]]:
        grads = [(plus - minus) / (2 * self.eps) for plus, minus in zip(losses[::2], losses[1::2], strict=True)]
        here, there = grads[: len(seeds)], grads[len(seeds) :]
        if self._at_anchor(memory):
            found = tuple(Term(seed, grad) for seed, grad in zip(seeds, here, strict=True))
            return (1, found), found
        taken, anchor = memory
        terms = [Term(seed, one - other) for seed, one, other in zip(seeds, here, there, strict=True)]
        both = tuple(Term(term.seed, 2 * term.projected_grad) for term in (*terms, *anchor))
        return (taken + 1, anchor), both

    def _at_anchor(self, memory: Anchor) -> bool:
        return memory[0] % self.steps == 0
