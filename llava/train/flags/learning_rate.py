"""`--learning_rate auto`: a run that finds its rate before its first step."""

from __future__ import annotations

import argparse
from typing import Any

from transformers import TrainingArguments

from llava.errors import InputError
from llava.train.flags.adapter_flags import DEFAULTS, given_kind
from llava.train.parts.tunable import RATES
from llava.train.zo.settings import CLASSIFICATION

AUTO = "auto"
FZOO_RATE = 1e-3
"""Its steps are as long as the rate says, whatever the loss: eight directions want 3e-3 on models of 1.8M and 135M."""


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
    known = f"--zo_rule sgd, --zo_objective loss or {CLASSIFICATION}, and batches of one size"
    optim = "adafactor" if values.adafactor else str(getattr(values.optim, "value", values.optim))
    of_mode = {
        f"--zo_rule {values.zo_rule}": values.zo_rule != "sgd",
        f"--zo_estimator {values.zo_estimator}": values.zo_estimator == "svrg",
        f"--zo_objective {values.zo_objective}": values.zo_objective not in ("loss", CLASSIFICATION),
        "--zo_batch_growth": values.zo_batch_growth,
        "--zo_from_journal": values.zo_from_journal,
    }
    if values.trainer_mode != "zo":
        known = "--optim adamw_torch and its kin, with one rate for all parts"
        of_mode = {f"--optim {optim}": not optim.startswith("adamw"), "--cycle_blocks": values.cycle_blocks}
    engines = {"--deepspeed": values.deepspeed, "--fsdp": values.fsdp}
    of_parts = {f"--{name}": getattr(values, name) is not None for name in RATES.values()}
    for flag, there in (of_mode | engines | of_parts).items():
        if there:
            mended = f"leave {flag} out, or give --learning_rate a number"
            raise InputError(f"{flag} excludes {what}, which is for {known}: {mended}")


def usual_rate(values: Any) -> float:
    """Around which a rate is looked for: that of the kind of adapter and the trainer mode, or transformers'."""
    if values.trainer_mode == "zo" and values.zo_estimator == "fzoo":
        return FZOO_RATE
    defaults = DEFAULTS.get(given_kind(values))
    return float(TrainingArguments.learning_rate) if defaults is None else defaults.rate_of(values.trainer_mode)
