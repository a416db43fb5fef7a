"""What several estimators make of losses, in Python's floats and from the left: equal losses give equal bits."""

from __future__ import annotations

import math
from collections.abc import Sequence


def two_sided(losses: Sequence[float], eps: float) -> list[float]:
    """(loss at +eps - loss at -eps) / (2 eps) of losses that come in such pairs."""
    return [(plus - minus) / (2 * eps) for plus, minus in zip(losses[::2], losses[1::2], strict=True)]


def standard_deviation(values: Sequence[float]) -> float:
    """With n - 1, of at least two values."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) * (value - mean) for value in values) / (len(values) - 1))
