"""The loss around the weights, from forwards alone: slope and curvature along random directions.

Along each direction z ~ N(0, I) some batches are measured, at theta + eps z, theta - eps z and theta:

    slope      p_i = (l+ - l-) / (2 eps)         about g_i . z, g_i the gradient of batch i
    curvature  h_i = (l+ + l- - 2 l0) / eps^2    about z' H_i z

With means over directions and over pairs of different batches, g and H those of the data's mean loss:

    mean p_i p_j     |g|^2                         what a step gains by
    mean p_i^2       |g_i|^2                       what a step follows: the rest is the batch's own
    mean h_i         trace H                       Hutchinson 1989
    cov(h_i, h_j)    2 trace H^2                   for Gaussian z
    mean p_i^2 h_j   |g_i|^2 trace H + 2 g_i' H g_i
    var h_i          6 r^2 / eps^4 of rounding r^2 of each loss, 2 w^2 / eps^4 of what rounding of perturbed weights
                     makes of it, where p_i^2 has (r^2 + w^2) / (2 eps^2): at most eps^2 / 4 of it

A step of rate lr along z, by the slope of one batch, changes the loss of others to second order by
-lr p_i p_j + lr^2 / 2 p_i^2 h_j in the mean (the descent lemma, as in section 4 of Malladi et al. 2023), which is
lowest at

    lr* = mean p_i p_j / mean p_i^2 h_j

and above 0 beyond 2 lr*. (trace H)^2 / trace H^2 is how many directions share the curvature; where no eigenvalue is
negative, the largest lies between trace H^2 / trace H and the root of trace H^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, variance

from llava.mezo.algorithms.interface import Point
from llava.mezo.config import LARGEST_SEED
from llava.mezo.noise import direction_seed


@dataclass(frozen=True)
class Probe:
    """What one batch says along one direction."""

    loss: float
    slope: float
    curvature: float


MOST_PARTS = 50
"""Of the directions, each left out once for a standard error."""

Along = Sequence[Probe]
"""Of several batches along one direction."""


def probe_seed(seed: int, number: int) -> int:
    """Of a direction that no step of a run with this seed takes."""
    return direction_seed(~seed & LARGEST_SEED, number, 0)


def probe_points(seed: int, eps: float) -> tuple[Point, ...]:
    """Where the losses of a probe are taken, for `MeZO.losses_at`."""
    return tuple(Point.along(seed, scale) for scale in (eps, -eps, 0.0))


def probe_of(losses: Sequence[float], eps: float) -> Probe:
    """From the losses at eps, at -eps, and at the weights."""
    plus, minus, here = losses
    return Probe(here, (plus - minus) / (2 * eps), (plus + minus - 2 * here) / eps**2)


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, by the jackknife."""

    value: float
    error: float

    @property
    def is_positive(self) -> bool:
        """Beyond two standard errors."""
        return self.value > 2 * self.error


class Landscape:
    """What probes say of the loss around the weights: at least two directions, each with at least two batches."""

    def __init__(self, directions: Sequence[Along]) -> None:
        self.directions = list(directions)
        self.loss = mean(probe.loss for along in directions for probe in along)
        self.signal = self._estimate(_signal)
        """|g|^2"""
        self.square = self._estimate(_square)
        """|g_i|^2"""
        self.noise = self._estimate(lambda some: _square(some) - _signal(some))
        """|g_i|^2 - |g|^2"""
        self.share = self._estimate(lambda some: _ratio(_signal(some), _square(some)))
        """Of what a step follows, how much is signal."""
        self.trace = self._estimate(_trace)
        self.trace_of_square = self._estimate(_trace_of_square)
        self.best_rate = self._estimate(lambda some: _ratio(_signal(some), _along_steps(some)))
        """lr*"""
        self.effective_rank = self._estimate(lambda some: _ratio(_trace(some) ** 2, _trace_of_square(some)))

    def rounding(self, eps: float) -> float:
        """At most this share (0 to 1) of the squared slopes at +-eps, where the probes were taken, is rounding.

        By the variance of their curvatures, as above: in float32 that is the curvatures' own, and the share next to
        nothing. One-sided differences have twice to four times as much rounding. 1 where all slopes are 0.
        """
        curvatures = [probe.curvature for along in self.directions for probe in along]
        rounding, square = eps**2 / 4 * variance(curvatures), self.square.value
        return min(1.0, rounding / square) if square else 1.0

    @property
    def largest_eigenvalue(self) -> tuple[float, float]:
        """Between which two numbers it lies, where none is negative."""
        square = max(0.0, self.trace_of_square.value)
        return _ratio(square, self.trace.value), math.sqrt(square)

    def _estimate(self, statistic: Callable[[Sequence[Along]], float]) -> Estimate:
        some, count = self.directions, min(MOST_PARTS, len(self.directions))
        without = [statistic([one for n, one in enumerate(some) if n % count != k]) for k in range(count)]
        centre = mean(without)
        error = math.sqrt((count - 1) / count * sum((one - centre) ** 2 for one in without))
        return Estimate(statistic(some), error)


def _of_pairs(first: Sequence[float], second: Sequence[float]) -> float:
    """Mean of first_i * second_j over different i and j."""
    same = sum(a * b for a, b in zip(first, second, strict=True))
    return (sum(first) * sum(second) - same) / (len(first) * (len(first) - 1))


def _signal(directions: Sequence[Along]) -> float:
    slopes = ([probe.slope for probe in along] for along in directions)
    return mean(_of_pairs(some, some) for some in slopes)


def _square(directions: Sequence[Along]) -> float:
    return mean(probe.slope**2 for along in directions for probe in along)


def _trace(directions: Sequence[Along]) -> float:
    return mean(probe.curvature for along in directions for probe in along)


def _trace_of_square(directions: Sequence[Along]) -> float:
    trace = _trace(directions)
    apart = ([probe.curvature - trace for probe in along] for along in directions)
    return sum(_of_pairs(some, some) for some in apart) / max(1, len(directions) - 1) / 2


def _along_steps(directions: Sequence[Along]) -> float:
    return mean(_of_pairs([p.slope**2 for p in along], [p.curvature for p in along]) for along in directions)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
