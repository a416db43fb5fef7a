"""Flags of validation while training: which follow from others, and which cannot go together."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from llava.errors import InputError
from llava.eval.metrics import METRICS
from llava.runs.validation import LOSS
from llava.train.objectives import imported_score

TENTH = 0.1
"""Default of `--eval_steps`, as a share of the run."""
STRATEGIES = ("steps", "epoch")


def validates(values: Any) -> bool:
    """Whether flags ask for validation."""
    return bool(values.eval_data_path)


def check_validation_flags(values: Any, given: Collection[str]) -> None:
    """`InputError` for what cannot work, or would have no effect, beside `--eval_data_path`.

    Args:
        values: the flags as attributes, before transformers looks at them.
        given: names of the flags on the command line.
    """
    if values.eval_data_path == "":
        raise InputError("--eval_data_path is empty: name a file, or leave it out")
    if values.eval_metric != LOSS and values.eval_metric not in METRICS:
        imported_score("eval_metric", values.eval_metric, [LOSS, *METRICS])
    if not validates(values):
        return
    strategy = _strategy(values, given)
    if strategy not in STRATEGIES:
        raise InputError(f"--eval_strategy {strategy} excludes --eval_data_path: give steps or epoch, or leave it out")
    for engine in ("deepspeed", "fsdp"):
        if getattr(values, engine):
            raise InputError(
                f"--{engine} excludes --eval_data_path, since no process has the whole model: leave it out, and run "
                "`python -m llava.eval.accuracy` on what is saved"
            )
    if strategy == "epoch" and values.eval_steps is not None:
        raise InputError(f"--eval_steps {values.eval_steps:g} has no effect with --eval_strategy epoch: leave it out")
    _check_steps(values, strategy)
    if values.load_best_model_at_end:
        _check_best(values, given, strategy)


def settle_validation(values: Any, given: Collection[str]) -> None:
    """What follows from `--eval_data_path`."""
    if not validates(values):
        return
    values.eval_strategy = values.evaluation_strategy = _strategy(values, given)
    if values.eval_strategy == "steps" and values.eval_steps is None:
        values.eval_steps = TENTH
    values.metric_for_best_model = values.eval_metric
    values.greater_is_better = values.eval_metric != LOSS
    if values.load_best_model_at_end and values.trainer_mode == "regular":
        # each step that may be the best is saved; the best and the newest of them are kept
        own = {"save_strategy": values.eval_strategy, "save_steps": values.eval_steps, "save_total_limit": 1}
        for name, value in own.items():
            if name not in given and value is not None:
                setattr(values, name, value)


def _strategy(values: Any, given: Collection[str]) -> str:
    name = next((name for name in ("eval_strategy", "evaluation_strategy") if name in given), None)
    return "steps" if name is None else str(getattr(values, name))


def _check_steps(values: Any, strategy: str) -> None:
    steps, last, patience = values.eval_steps, values.max_steps, values.early_stopping_patience
    if strategy != "steps" or last < 1:
        return
    if steps is not None and steps > last:
        raise InputError(f"--eval_steps {steps:g} is more than --max_steps {last}: give fewer")
    if values.eval_delay >= last:
        raise InputError(f"--eval_delay {values.eval_delay:g}: nothing is left of --max_steps {last} to evaluate")
    share = TENTH if steps is None else steps
    every = math.ceil(last * share) if share < 1 else int(share)
    points = math.ceil(last / every) + bool(values.eval_on_start)
    if patience >= points:
        raise InputError(
            f"--early_stopping_patience {patience} has no effect on a run of {points} evaluations (--max_steps {last}, "
            f"one every {every}): give less, or evaluate more often (--eval_steps)"
        )


def _check_best(values: Any, given: Collection[str], strategy: str) -> None:
    best = "--load_best_model_at_end True"
    if values.trainer_mode == "zo":
        if not values.zo_journal:
            raise InputError(f"{best} needs --zo_journal True, which the best step is taken from")
        return
    if values.eval_on_start:
        raise InputError(
            f"--eval_on_start True excludes {best} with --trainer_mode regular: before the first step no checkpoint is "
            "saved, which could be the best. Leave one of them out"
        )
    wanted = {"save_strategy": strategy, "save_steps": TENTH if values.eval_steps is None else values.eval_steps}
    for name, value in wanted.items():
        there = getattr(values, name)
        if name in given and there != value and not (name == "save_steps" and strategy == "epoch"):
            raise InputError(
                f"--{name} {there} excludes {best}, which saves a checkpoint at each evaluation (--{name} {value}): "
                "leave it out"
            )
