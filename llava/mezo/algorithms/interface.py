"""Algorithms of a step: an estimator measures the gradient with losses, a rule makes a step of what it found.

    estimator   points(...)   where the losses of a step are taken
                terms(...)    what these losses say: the gradient is about the mean of projected_grad * z(seed)
    rule        moves(...)    theta <- theta - lr * sum of factor * z(seed), linear in the noise

Both are pure: no model, no file, no random state. What they remember is folded over the steps that were applied
(`course.py`), so that a journal, which has the losses, gives it back. One file each; `choice.py` has them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from llava.mezo.noise import direction_seed


class Point(NamedTuple):
    """Where a loss is taken: weights + sum of scale * z(seed)."""

    seeds: tuple[int, ...]
    scales: tuple[float, ...]
    anchored: bool = False
    """The weights are those at the estimator's anchor, see `Estimator.undone`."""

    @classmethod
    def along(cls, seed: int, scale: float) -> Point:
        """weights + scale * z(seed)"""
        return cls((seed,), (scale,))


class Term(NamedTuple):
    """One direction of an estimate."""

    seed: int
    projected_grad: float
    """Of the loss along z(seed); where the estimator normalises, in its units."""


class Move(NamedTuple):
    """One direction of a step, `factor * z(seed)`, to be multiplied by -lr."""

    seed: int
    factor: float


def plain(memory: Any) -> Any:
    """The same numbers in plain tuples, as `torch.load` takes them; of named tuples, tuples or lists of these."""
    return tuple(map(plain, memory)) if isinstance(memory, (tuple, list)) else memory


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
    def clip(self) -> float: ...
    @property
    def window(self) -> int: ...
    @property
    def anchor_steps(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def basis_steps(self) -> int: ...


class Estimator(ABC):
    """Made of settings; refuses those that it cannot honour by ValueError. Remembers numbers and tuples of these."""

    start: Any = None
    """What it remembers before the first step."""
    num_losses: int
    """Of a step, as the journal keeps them."""
    several_seeds = False
    """Whether points are along more than one direction, or away from the weights; then nothing is recorded."""
    adaptive = False
    """Whether there are further points; then a step has one micro-batch."""
    per_example = False
    """Whether each micro-batch is one example, with the step's direction of its number to itself."""
    usual: ClassVar[Mapping[str, Any]] = {}
    """Settings that it is published with, where those of plain MeZO are none of its."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.eps = settings.eps

    def seed(self, step: int, direction: int) -> int:
        """Of a direction of a step."""
        return direction_seed(self.settings.seed, step, direction)

    @abstractmethod
    def points(self, memory: Any, seeds: Sequence[int]) -> tuple[Point, ...]:
        """Where to take losses, the directions having these seeds. Two in a row with equal seeds are made together."""

    def further_points(self, memory: Any, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Point, ...]:
        """Where to take more, now that these are known."""
        return ()

    @property
    def kernel_noise(self) -> str:
        """The noise as kernels know it."""
        return self.settings.noise

    def undone(self, memory: Any) -> int:
        """How many of the last updates points that are `anchored` lie behind."""
        return 0

    @abstractmethod
    def terms(self, memory: Any, seeds: Sequence[int], losses: Sequence[float]) -> tuple[Any, tuple[Term, ...]]:
        """What is remembered after the step, and what the losses at its points say."""

    def restored(self, memory: Any) -> Any:
        """What is remembered, of what `plain` made of it."""
        return memory

    def shown(self, losses: Sequence[float], terms: Sequence[Term]) -> float:
        """Of a step, what was measured along its last direction, for people."""
        return terms[-1].projected_grad


class Rule(ABC):
    """Made of settings, too, with a memory of the same kind."""

    start: Any = None
    estimator: type[Estimator] | None = None
    """Takes the place of the estimator "spsa" where the rule has its own directions."""
    usual: ClassVar[Mapping[str, Any]] = {}
    """As an estimator's."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def moves(self, memory: Any, terms: Sequence[Term]) -> tuple[Any, tuple[Move, ...]]:
        """What is remembered after the step, and the step; the newest seed comes first."""

    def restored(self, memory: Any) -> Any:
        """As `Estimator.restored`."""
        return memory
