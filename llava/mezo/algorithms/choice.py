"""Estimators and rules by name."""

from __future__ import annotations

from collections.abc import Callable

from llava.mezo.algorithms import Estimator, Rule, Settings
from llava.mezo.algorithms.adam import Adam
from llava.mezo.algorithms.fzoo import FZOO
from llava.mezo.algorithms.momentum import Momentum
from llava.mezo.algorithms.normalized import Normalized
from llava.mezo.algorithms.one_point import OnePoint
from llava.mezo.algorithms.sgd import SGD
from llava.mezo.algorithms.spsa import SPSA

ESTIMATORS: dict[str, Callable[[Settings], Estimator]] = {"spsa": SPSA, "one_point": OnePoint, "fzoo": FZOO}
RULES: dict[str, Callable[[Settings], Rule]] = {
    "sgd": SGD,
    "normalized": Normalized,
    "momentum": Momentum,
    "adam": Adam,
}
