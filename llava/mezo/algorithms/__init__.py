"""Algorithms of a step: an estimator measures the gradient with losses, a rule makes a step of what it found.

    estimator   points(...)   where the losses of a step are taken
                terms(...)    what these losses say: the gradient is about the mean of projected_grad * z(seed)
    rule        moves(...)    theta <- theta - lr * sum of factor * z(seed), linear in the noise

Both are pure: no model, no file, no random state. A rule's memory is folded over the steps that were applied
(`course.py`), so that a journal, which has the losses, gives it back. One file each; `choice.py` has them by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Point(NamedTuple):
    """Where a loss is taken: weights + scale * z(seed)."""

    seed: int
    scale: float


class Term(NamedTuple):
    """One direction of an estimate."""

    seed: int
    projected_grad: float
    """Of the loss along z(seed); where the estimator normalises, in its units."""


class Move(NamedTuple):
    """One direction of a step, `factor * z(seed)`, to be multiplied by -lr."""

    seed: int
    factor: float


class Settings(Protocol):
    """What algorithms take of `MeZOConfig`, or of a journal's header."""

    @property
    def eps(self) -> float: ...
    @property
    def num_directions(self) -> int: ...
    @property
    def noise(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def estimator(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def momentum(self) -> float: ...
    @property
    def rms_decay(self) -> float: ...
    @property
    def window(self) -> int: ...


class Estimator(Protocol):
    """Made of settings; refuses those that it cannot honour by ValueError."""

    def points(self, seeds: Sequence[int]) -> tuple[Point, ...]:
        """Points of a step whose directions have these seeds; two in a row with one seed are perturbed together."""

    def terms(self, seeds: Sequence[int], losses: Sequence[float], before: Sequence[float]) -> tuple[Term, ...]:
        """What the losses at the points say.

        Args:
            before: losses of the last step that was applied; none before the first.
        """


class Rule(Protocol):
    """Made of settings, too; `state` is what it remembers: numbers and tuples of these."""

    start: Any
    """The state before the first step."""

    def moves(self, state: Any, terms: Sequence[Term]) -> tuple[Any, tuple[Move, ...]]:
        """The state after the step, and the step; the newest seed comes first."""
