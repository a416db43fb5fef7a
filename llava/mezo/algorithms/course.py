"""The course of a run: what its steps so far mean for the next. Training and replay both go through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.algorithms.interface import Move, Point, Settings, Term, plain

OF_MEMORIES = ("estimator", "rule", "num_directions")
"""Settings that what is remembered depends on."""


@dataclass(frozen=True)
class Proposal:
    """What the losses of a step come to."""

    losses: tuple[float, ...]
    terms: tuple[Term, ...]
    moves: tuple[Move, ...]
    memories: tuple[Any, Any]
    """Of the estimator and the rule, if the step is applied."""


class Course:
    """An estimator and a rule on their way through a run.

    Raises:
        ValueError: settings that do not go together.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rule = RULES[settings.rule](settings)
        self.estimator = (self.rule.estimator or ESTIMATORS[settings.estimator])(settings)
        self._memories: tuple[Any, Any] = (self.estimator.start, self.rule.start)

    def seeds(self, step: int) -> list[int]:
        """Of the step's directions."""
        return [self.estimator.seed(step, k) for k in range(self.settings.num_directions)]

    @property
    def num_losses(self) -> int:
        """How many a step has in a record."""
        return self.estimator.num_losses

    @property
    def undone(self) -> int:
        """How many of the last updates points that are `anchored` lie behind."""
        return self.estimator.undone(self._memories[0])

    def points(self, step: int, example: int | None = None) -> tuple[Point, ...]:
        """Where the first losses of a step are taken, or those of one example, which has a direction to itself."""
        seeds = self.seeds(step)
        return self.estimator.points(self._memories[0], seeds if example is None else seeds[example : example + 1])

    def further_points(self, step: int, losses: Sequence[float]) -> tuple[Point, ...]:
        """Where more are taken, now that these are known."""
        return self.estimator.further_points(self._memories[0], self.seeds(step), losses)

    def propose(self, step: int, losses: Sequence[float]) -> Proposal:
        """What a step would do, after those that were taken."""
        full = (*losses, *losses)[: self.num_losses]  # at an anchor's own step both halves would be the same
        memory, terms = self.estimator.terms(self._memories[0], self.seeds(step), full)
        after, moves = self.rule.moves(self._memories[1], self._clipped(terms))
        return Proposal(full, terms, moves, (memory, after))

    def _clipped(self, terms: Sequence[Term]) -> Sequence[Term]:
        """Of no larger projected gradients than `clip`: QZO's directional derivative clipping (Shang et al. 2025)."""
        limit = self.settings.clip
        return [Term(t.seed, max(-limit, min(limit, t.projected_grad))) for t in terms] if limit else terms

    def take(self, proposal: Proposal) -> None:
        """The step is applied. One that is not leaves no trace."""
        self._memories = proposal.memories

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, as plain values, and of what settings."""
        of = {name: getattr(self.settings, name) for name in OF_MEMORIES}
        estimator, rule = plain(self._memories)
        return {"estimator": estimator, "rule": rule, "of": of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, or gave before: named tuples. ValueError: it is of other settings."""
        for name, value in state.get("of", {}).items():  # not in states of before
            if value != getattr(self.settings, name):
                raise ValueError(
                    f"the saved state is of a run whose {name} is {value!r}, and here it is "
                    f"{getattr(self.settings, name)!r}; build MeZO with the settings of that run"
                )
        estimator, rule = plain((state["estimator"], state["rule"]))
        self._memories = self.estimator.restored(estimator), self.rule.restored(rule)
