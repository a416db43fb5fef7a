"""`--zo_estimator` and `--zo_rule` with nothing beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.train.flags.parsing import parse_arguments
from llava.train.zo.settings import Settings

Flags = Callable[..., list[str]]
ALONE = {"trainer_mode": "zo", "per_device_train_batch_size": 2, "dataloader_drop_last": True}


@pytest.mark.parametrize("choice", [*({"zo_estimator": e} for e in ESTIMATORS), *({"zo_rule": r} for r in RULES)])
def test_each_can_be_named_alone(choice: dict[str, str], flags: Flags) -> None:
    config = Settings.of(parse_arguments(flags(**ALONE, **choice))[2]).config
    usual = {"fzoo": (8, "rademacher"), "guided": (4, "gaussian"), "per_example": (2, "gaussian")}
    usual |= {"adam": (1, "rademacher")}
    [name] = choice.values()
    assert (config.num_directions, config.noise) == usual.get(name, (1, "gaussian"))


def test_what_is_given_stands(flags: Flags) -> None:
    args = parse_arguments(flags(**ALONE, zo_estimator="fzoo", zo_num_directions=3))[2]
    assert (args.zo_num_directions, args.zo_noise) == (3, "rademacher")


def test_it_is_of_mezo_alone(flags: Flags) -> None:
    assert parse_arguments(flags())[2].zo_num_directions == 1
