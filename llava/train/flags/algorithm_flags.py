"""What estimators and rules of MeZO are published with, where the flags do not say."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.train.zo.settings import flag_of

logger = logging.getLogger(__name__)


def settle_algorithm(values: Any, given: Collection[str]) -> None:
    """Write the settings of `--zo_estimator` and `--zo_rule` into the flags that were not given."""
    if values.trainer_mode != "zo":
        return
    chosen = {"zo_estimator": ESTIMATORS.get(values.zo_estimator), "zo_rule": RULES.get(values.zo_rule)}
    for flag, kind in chosen.items():
        for setting, usual in (kind.usual if kind else {}).items():
            if flag_of(setting) not in given:
                setattr(values, flag_of(setting), usual)
                logger.info("--%s %s, as --%s %s is published", flag_of(setting), usual, flag, getattr(values, flag))
