"""Adam (Kingma and Ba 2015, Algorithm 1) without state per weight (Malladi et al. 2023, appendix B.2).

With signs as noise the square of an estimate projected_grad * z is the same number for every weight, so the second
moment is one number, and a step stays linear in the noise of the last steps:

v <- 0.999 v + 0.001 projected_grad^2      estimate <- momentum(estimates) / (sqrt(v) + 1e-8)

with v bias-corrected, and the momentum of `momentum.py`. A rate is that of Adam. Usual: beta = 0.9, window = 20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from llava.mezo.algorithms.interface import Move, Rule, Settings, Term
from llava.mezo.algorithms.momentum import Estimates, Momentum

BETA2, SMALL = 0.999, 1e-8

State = tuple[Estimates, float, int]


class Adam(Rule):
    """See `Rule`; remembers the last estimates, v and the number of steps."""

    usual: ClassVar = {"noise": "rademacher"}
    start: State = (Momentum.start, 0.0, 0)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.estimator not in ("spsa", "one_point"):
            raise ValueError(
                "the rule adam takes one estimate along one direction, and estimator is "
                f"{settings.estimator!r}; it must be spsa or one_point"
            )
        if settings.noise != "rademacher" or settings.num_directions != 1:
            raise ValueError(
                "the rule adam needs the noise rademacher and one direction, where the square of an estimate is the "
                f"same for all weights; noise is {settings.noise!r} and num_directions {settings.num_directions}"
            )
        self.momentum = Momentum(settings)

    def moves(self, memory: State, terms: Sequence[Term]) -> tuple[State, tuple[Move, ...]]:
        estimates, v, steps = memory
        estimates, moves = self.momentum.moves(estimates, terms)
        v = BETA2 * v + (1 - BETA2) * terms[0].projected_grad * terms[0].projected_grad
        size = math.sqrt(v / (1 - BETA2 ** (steps + 1))) + SMALL
        return (estimates, v, steps + 1), tuple(Move(move.seed, move.factor / size) for move in moves)

    def restored(self, memory: Any) -> State:
        estimates, v, steps = memory
        return self.momentum.restored(estimates), v, steps
