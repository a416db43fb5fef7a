"""Estimators and rules in plain code, over the whole history of a run: what `llava/mezo/algorithms` must equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from llava.mezo.config import MeZOConfig

LR = 3e-3

Pairs = list[tuple[int, float]]
"""Seed and number."""


class Past(NamedTuple):
    """A step that was applied."""

    losses: list[float]
    grads: Pairs
    moves: Pairs


class LossAt(Protocol):
    def __call__(self, *pairs: tuple[int, float], example: int | None = None) -> float:
        """The loss at weights + sum of number * z(seed), of one example or of the batch."""


Estimate = tuple[list[float], Pairs]
"""Losses, projected gradients."""


def spsa(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, past: Sequence[Past]) -> Estimate:
    losses, grads = [], []
    for seed in seeds:
        plus, minus = loss((seed, config.eps)), loss((seed, -config.eps))
        losses += [plus, minus]
        grads.append((seed, (plus - minus) / (2 * config.eps)))
    return losses, grads


lowrank = spsa


def one_point(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, past: Sequence[Past]) -> Estimate:
    losses = [loss((seed, config.eps)) for seed in seeds]
    before = past[-1].losses if past else losses
    return losses, [(seeds[k], (losses[k] - before[k]) / config.eps) for k in range(len(seeds))]


def fzoo(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, past: Sequence[Past]) -> Estimate:
    here, around = loss((seeds[0], 0.0)), [loss((seed, config.eps)) for seed in seeds]
    mean = sum(around) / len(around)
    spread = math.sqrt(sum((value - mean) * (value - mean) for value in around) / (len(around) - 1))
    return [here, *around], [(seed, (value - here) / spread) for seed, value in zip(seeds, around, strict=True)]


def per_example(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, past: Sequence[Past]) -> Estimate:
    losses, grads = [], []
    for example, seed in enumerate(seeds):
        plus, minus = loss((seed, config.eps), example=example), loss((seed, -config.eps), example=example)
        losses += [plus, minus]
        grads.append((plus - minus) / (2 * config.eps))
    mean = sum(grads) / len(grads)
    spread = math.sqrt(sum((grad - mean) * (grad - mean) for grad in grads) / (len(grads) - 1))
    return losses, [(seed, grad / spread) for seed, grad in zip(seeds, grads, strict=True)]


def guided(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, past: Sequence[Past]) -> Estimate:
    probes = [loss((seed, config.eps)) for seed in seeds]
    low = sorted(range(len(seeds)), key=lambda k: probes[k])[: len(seeds) // 2]
    share = [1 / len(low) if k in low else -1 / (len(seeds) - len(low)) for k in range(len(seeds))]
    plus = loss(*((seed, config.eps * v) for seed, v in zip(seeds, share, strict=True)))
    minus = loss(*((seed, -config.eps * v) for seed, v in zip(seeds, share, strict=True)))
    grad = (plus - minus) / (2 * config.eps)
    return [*probes, plus, minus], [(seed, grad * v * len(seeds)) for seed, v in zip(seeds, share, strict=True)]


def svrg(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, past: Sequence[Past]) -> Estimate:
    since = len(past) % config.anchor_steps
    losses, grads = spsa(loss, seeds, config, past)
    if since == 0:
        return losses * 2, grads
    back = [(seed, LR * factor) for step in reversed(past[-since:]) for seed, factor in step.moves]
    there = [loss(*back, (seed, scale)) for seed in seeds for scale in (config.eps, -config.eps)]
    own = [(there[2 * k] - there[2 * k + 1]) / (2 * config.eps) for k in range(len(seeds))]
    corrected = [(seed, 2 * (grad - other)) for (seed, grad), other in zip(grads, own, strict=True)]
    return losses + there, corrected + [(seed, 2 * grad) for seed, grad in past[-since].grads]


def adamu_estimate(loss: LossAt, seeds: Sequence[int], config: MeZOConfig, past: Sequence[Past]) -> Estimate:
    latest = [*seeds, *(step.grads[0][0] for step in reversed(past))][: config.window]
    weights = [config.momentum**age for age in range(len(latest))]
    weights = [w / math.sqrt(sum(v * v for v in weights)) for w in weights]
    plus = loss(*((seed, config.eps * w) for seed, w in zip(latest, weights, strict=True)))
    minus = loss(*((seed, -config.eps * w) for seed, w in zip(latest, weights, strict=True)))
    grad = (plus - minus) / (2 * config.eps)
    return [plus, minus], [(seed, grad * w * len(latest)) for seed, w in zip(latest, weights, strict=True)]


def sgd(history: Sequence[Pairs], config: MeZOConfig) -> Pairs:
    """Seeds and factors of the step that the last entry of the history leads to."""
    return [(seed, grad / len(history[-1])) for seed, grad in history[-1]]


def clipped(estimate: Pairs, config: MeZOConfig) -> Pairs:
    return [(seed, min(max(grad, -config.clip), config.clip)) for seed, grad in estimate] if config.clip else estimate


def normalized(history: Sequence[Pairs], config: MeZOConfig) -> Pairs:
    v, beta, number, factors = 0.0, config.rms_decay, 0, []
    for estimate in history:
        number = number if v else 0
        limit = 3 * math.sqrt(v / (1 - beta**number)) if number else math.inf
        clipped = [min(max(grad, -limit), limit) for _, grad in estimate]
        v = beta * v + (1 - beta) * sum(c * c for c in clipped) / len(clipped)
        number += 1
        rms = math.sqrt(v / (1 - beta**number))
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


adamu = sgd
