"""Steps whose length does not follow the projected gradient's size: a running root mean square, and a clip.

c = clip(projected_grad, +-3 sqrt(v))    v <- beta v + (1 - beta) mean of c^2    factor = c / sqrt(v) / n

The scalar normalisation of MEAZO (Dbouk et al. 2026, arXiv 2605.03869) with the clip of QZO (Shang et al. 2025); v is
bias-corrected as Adam's (Kingma and Ba 2015, section 3). While v is 0 nothing is clipped, and no step counts: the first
projected_grad that is not 0 sets v. A step of one direction is lr * z times a number of size about 1, so a rate is that
of a step: the root mean square of projected_grad times a rate of `sgd`. Usual: beta = 0.99.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llava.mezo.algorithms.interface import Move, Rule, Settings, Term

CLIP = 3.0

State = tuple[float, int]


class Normalized(Rule):
    """See `Rule`; remembers v and the number of steps since it was 0."""

    start: State = (0.0, 0)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.beta = settings.rms_decay

    def moves(self, memory: State, terms: Sequence[Term]) -> tuple[State, tuple[Move, ...]]:
        v, steps = memory if memory[0] else self.start  # a limit of 0 would let no gradient pass, for ever
        limit = CLIP * math.sqrt(v / (1 - self.beta**steps)) if steps else math.inf
        clipped = [max(-limit, min(limit, term.projected_grad)) for term in terms]
        v = self.beta * v + (1 - self.beta) * sum(c * c for c in clipped) / len(clipped)
        size = math.sqrt(v / (1 - self.beta ** (steps + 1)))
        factors = [c / size / len(terms) if size else 0.0 for c in clipped]
        return (v, steps + 1), tuple(Move(t.seed, factor) for t, factor in zip(terms, factors, strict=True))
