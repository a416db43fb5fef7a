"""Estimators and rules by name."""

from __future__ import annotations

from llava.mezo.algorithms.adam import Adam
from llava.mezo.algorithms.adamu import AdaMU
from llava.mezo.algorithms.fzoo import FZOO
from llava.mezo.algorithms.guided import Guided
from llava.mezo.algorithms.interface import Estimator, Rule
from llava.mezo.algorithms.lowrank import LowRank
from llava.mezo.algorithms.momentum import Momentum
from llava.mezo.algorithms.normalized import Normalized
from llava.mezo.algorithms.one_point import OnePoint
from llava.mezo.algorithms.per_example import PerExample
from llava.mezo.algorithms.sgd import SGD
from llava.mezo.algorithms.spsa import SPSA
from llava.mezo.algorithms.svrg import SVRG

ESTIMATORS: dict[str, type[Estimator]] = {
    "spsa": SPSA,
    "one_point": OnePoint,
    "fzoo": FZOO,
    "per_example": PerExample,
    "guided": Guided,
    "lowrank": LowRank,
    "svrg": SVRG,
}
RULES: dict[str, type[Rule]] = {
    "sgd": SGD,
    "normalized": Normalized,
    "momentum": Momentum,
    "adam": Adam,
    "adamu": AdaMU,
}
