"""Multinomial logistic regression, solved to its only optimum, and its regularisation by cross-validation.

The objective is scikit-learn's: C times the sum of the losses plus half of the squared weights; the bias is free.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

STRENGTHS = tuple(10.0 ** (-4 + 8 * k / 9) for k in range(10))
"""Values of C that are tried: ten from 1e-4 to 1e4, as scikit-learn's LogisticRegressionCV takes."""
FOLDS = 5
STEPS = 1000
TOLERANCE = 1e-4
"""Largest entry of the gradient of the objective by the number of records at which a fit ends, as there."""


@dataclass(frozen=True)
class Classifier:
    """weight [classes, width], bias [classes], both float64."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """The likeliest class [n] of each row of features [n, width]."""
        return functional.linear(features.double(), self.weight, self.bias).argmax(1)


def fit(
    features: torch.Tensor,
    classes: torch.Tensor,
    count: int,
    strength: float,
    start: Classifier | None = None,
    tolerance: float = TOLERANCE,
) -> Classifier:
    """The classifier that minimises strength x sum of cross entropies + |weight|^2 / 2.

    Args:
        features: [n, width].
        classes: [n], each 0..count - 1.
        strength: C, more than 0; large is little regularisation.
        start: where to begin; it decides the time alone.
        tolerance: as `TOLERANCE`.
    """
    rows = features.double()
    weight = torch.zeros(count, rows.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    if start is not None:
        weight.data.copy_(start.weight)
        bias.data.copy_(start.bias)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=tolerance, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(functional.linear(rows, weight, bias), classes)
        loss = loss + weight.square().sum() / (2 * strength * len(rows))
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return Classifier(weight.detach(), bias.detach())


def best_strength(
    features: torch.Tensor, classes: torch.Tensor, count: int, seed: int, strengths: Sequence[float] = STRENGTHS
) -> float:
    """The C with the most right answers in five-fold cross-validation; of equals the smallest.

    Every class is spread evenly over the folds, by `seed`.
    """
    folds = _folds(classes, seed)
    hits = dict.fromkeys(sorted(strengths), 0)
    for fold in range(FOLDS):
        held = folds == fold
        if held.all() or not held.any():
            continue
        found: Classifier | None = None
        for strength in hits:  # from much regularisation to little, each from where the last one ended
            found = fit(features[~held], classes[~held], count, strength, found)
            hits[strength] += int((found(features[held]) == classes[held]).sum())
    return max(strengths, key=lambda strength: (hits[strength], -strength))


def _folds(classes: torch.Tensor, seed: int) -> torch.Tensor:
    """The fold of each record."""
    order = list(range(len(classes)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda k: int(classes[k]))
    folds = torch.empty(len(order), dtype=torch.long)
    folds[order] = torch.arange(len(order)) % FOLDS
    return folds
