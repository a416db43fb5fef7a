"""`--learning_rate auto`: a run that finds its rate before its first step."""

from __future__ import annotations

import argparse
from typing import Any

from transformers import TrainingArguments

from llava.errors import InputError
from llava.train.flags.adapter_flags import DEFAULTS, given_kind

AUTO = "auto"
OF_PARTS = ("mm_projector_lr", "mm_vision_tower_lr")


def number_or_auto(text: str) -> float | str:
    """A value of the flag, for argparse."""
    if text == AUTO:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {AUTO}") from None


def settle_learning_rate(values: Any) -> bool:
    """Whether the rate is to be found; it is then a number all the same, around which it is looked for.

    Args:
        values: the flags as attributes, before transformers looks at them.

    Raises:
        InputError: a flag that cannot go with it.
    """
    if values.learning_rate != AUTO:
        return False
    refuse_untested(values, f"--learning_rate {AUTO}")
    values.learning_rate = usual_rate(values)
    return True


def refuse_untested(values: Any, what: str) -> None:
    """`InputError` for flags that a range test (`llava.train.range_test`) says nothing about.

    Args:
        what: the flag or command that they exclude.
    """
    zo = values.trainer_mode == "zo"
    if zo and values.zo_rule != "sgd":
        raise InputError(f"--zo_rule {values.zo_rule} excludes {what}, which knows what breaks sgd: give a number")
    if zo and (values.zo_batch_growth or values.zo_estimator == "svrg"):
        flag = "--zo_batch_growth" if values.zo_batch_growth else "--zo_estimator svrg"
        raise InputError(f"{flag} excludes {what}, which is for batches of one size: give a number")
    optim = "adafactor" if values.adafactor else str(getattr(values.optim, "value", values.optim))
    if not zo and not optim.startswith("adamw"):
        raise InputError(f"--optim {optim} excludes {what}, which was tried with AdamW alone: give a number")
    if values.deepspeed:
        raise InputError(f"--deepspeed excludes {what}, which makes the model twice: give a number")
    for name in OF_PARTS:
        if getattr(values, name) is not None:
            raise InputError(f"--{name} excludes {what}, which is for all parts: leave it out")


def usual_rate(values: Any) -> float:
    """Of the kind of adapter and the trainer mode; without an adapter, transformers'."""
    defaults = DEFAULTS.get(given_kind(values))
    if defaults is None:
        return float(TrainingArguments.learning_rate)
    return defaults.zo_rate if values.trainer_mode == "zo" else defaults.rate
