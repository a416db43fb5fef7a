"""Estimators and rules in plain code, over the whole history of a run: what `llava/mezo/algorithms` must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from llava.mezo.config import MeZOConfig

Pairs = list[tuple[int, float]]
"""Seed and number."""
LossAt = Callable[[int, float], float]


def spsa(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, before: Sequence[float]) -> tuple[list[float], Pairs]:
    """Losses, projected gradients."""
    losses, grads = [], []
    for seed in seeds:
        plus, minus = loss(seed, config.eps), loss(seed, -config.eps)
        losses += [plus, minus]
        grads.append((seed, (plus - minus) / (2 * config.eps)))
    return losses, grads


def one_point(
    loss: LossAt, seeds: Sequence[int], config: MeZOConfig, before: Sequence[float]
) -> tuple[list[float], Pairs]:
    losses = [loss(seed, config.eps) for seed in seeds]
    if not before:
        return losses, [(seed, 0.0) for seed in seeds]
    return losses, [(seeds[k], (losses[k] - before[k]) / config.eps) for k in range(len(seeds))]


def fzoo(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, before: Sequence[float]) -> tuple[list[float], Pairs]:
    here, around = loss(seeds[0], 0.0), [loss(seed, config.eps) for seed in seeds]
    mean = sum(around) / len(around)
    spread = math.sqrt(sum((value - mean) * (value - mean) for value in around) / (len(around) - 1))
    return [here, *around], [(seed, (value - here) / spread) for seed, value in zip(seeds, around, strict=True)]


def sgd(history: Sequence[Pairs], config: MeZOConfig) -> Pairs:
    """Seeds and factors of the step that the last entry of the history leads to."""
    return [(seed, grad / len(history[-1])) for seed, grad in history[-1]]


def normalized(history: Sequence[Pairs], config: MeZOConfig) -> Pairs:
    v, beta, factors = 0.0, config.rms_decay, []
    for number, estimate in enumerate(history):
        limit = 3 * math.sqrt(v / (1 - beta**number)) if number else math.inf
        clipped = [min(max(grad, -limit), limit) for _, grad in estimate]
        v = beta * v + (1 - beta) * sum(c * c for c in clipped) / len(clipped)
        rms = math.sqrt(v / (1 - beta ** (number + 1)))
        factors = [
            (seed, c / rms / len(estimate) if rms else 0.0) for (seed, _), c in zip(estimate, clipped, strict=True)
        ]
    return factors


def momentum(history: Sequence[Pairs], config: MeZOConfig) -> Pairs:
    latest = list(reversed(history))[: config.window]
    weights = [config.momentum**age for age in range(len(latest))]
    return [
        (seed, weights[age] / sum(weights) * grad / len(latest[age]))
        for age in range(len(latest))
        for seed, grad in latest[age]
    ]


def adam(history: Sequence[Pairs], config: MeZOConfig) -> Pairs:
    v = 0.0
    for ((_, grad),) in history:
        v = 0.999 * v + (1 - 0.999) * grad * grad
    size = math.sqrt(v / (1 - 0.999 ** len(history))) + 1e-8
    return [(seed, factor / size) for seed, factor in momentum(history, config)]
