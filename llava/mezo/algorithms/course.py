"""The course of a run: what its steps so far mean for the next. Training and replay both go through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.mezo.algorithms import Move, Point, Settings, Term
from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.noise import direction_seed


@dataclass(frozen=True)
class Proposal:
    """What the losses of a step come to."""

    losses: tuple[float, ...]
    terms: tuple[Term, ...]
    moves: tuple[Move, ...]
    state: Any
    """The rule's, if the step is applied."""


class Course:
    """An estimator and a rule on their way through a run.

    Raises:
        ValueError: settings that do not go together.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.estimator = ESTIMATORS[settings.estimator](settings)
        self.rule = RULES[settings.rule](settings)
        self._state = self.rule.start
        self._before: tuple[float, ...] = ()

    def seeds(self, step: int) -> list[int]:
        """Of the step's directions."""
        return [direction_seed(self.settings.seed, step, k) for k in range(self.settings.num_directions)]

    @property
    def losses(self) -> int:
        """How many a step has."""
        return len(self.points(0))

    def points(self, step: int) -> tuple[Point, ...]:
        """Where the losses of a step are taken."""
        return self.estimator.points(self.seeds(step))

    def propose(self, step: int, losses: Sequence[float]) -> Proposal:
        """What a step would do, after those that were taken."""
        terms = self.estimator.terms(self.seeds(step), losses, self._before)
        state, moves = self.rule.moves(self._state, terms)
        return Proposal(tuple(losses), terms, moves, state)

    def take(self, proposal: Proposal) -> None:
        """The step is applied. One that is not leaves no trace."""
        self._state, self._before = proposal.state, proposal.losses

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, as plain values."""
        return {"rule": self._state, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._state, self._before = state["rule"], tuple(state["before"])
