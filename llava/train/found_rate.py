"""The rate that a run finds before its first step, kept in OUTPUT_DIR/learning_rate.json for its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.mezo.durable import write_durably
from llava.mezo.messages import handed_out, raising_together
from llava.model.checkpoint_files import usable
from llava.runs import same_run
from llava.runs.plots import plot_range_test
from llava.runs.run_folder import RATE_FILE, RATE_PICTURE
from llava.train.flags.arguments import TrainingArguments
from llava.train.memory import free_memory
from llava.train.range_test import DECADES, most_steps, run_range_test

logger = logging.getLogger(__name__)


def found_rate(
    folder: Path,
    checkpoint: Path | None,
    make: Callable[[TrainingArguments], Any],
    training_args: TrainingArguments,
    version: str,
) -> float:
    """The rate of the run that goes on, or the one that a test finds, which is then kept in `folder`.

    Args:
        checkpoint: the point that the run goes on from, as the main process sees it.
        make, training_args, version: as for `run_range_test`.

    Raises:
        InputError: the test finds none, or the flags beside the checkpoint are damaged.
    """
    main, known = training_args.process_index == 0, b""
    with raising_together(training_args.device), usable(f"the flags beside {checkpoint}"):
        earlier = None if checkpoint is None or not main else same_run.earlier_arguments(checkpoint)
        if earlier is not None:
            known = repr(float(earlier["learning_rate"])).encode()
    known = handed_out(known, 0, training_args.device)
    if known:
        logger.info("--learning_rate %s, which this run has had", known.decode())
        return float(known)
    logger.info(
        "looking for a learning rate (--learning_rate auto) around %g, in at most %d steps",
        *(training_args.learning_rate, most_steps(training_args)),
    )
    report = run_range_test(make, training_args, version).report()
    free_memory()
    if report["learning_rate"] is None:
        raise InputError(why_none(report, training_args.learning_rate))
    if main:
        plot_range_test(report, folder / RATE_PICTURE)
        write_durably(folder / RATE_FILE, json.dumps(report, indent=2) + "\n")
    logger.info("--learning_rate %.2g, as %s has it", report["learning_rate"], folder / RATE_FILE)
    return float(report["learning_rate"])


def why_none(report: dict[str, Any], middle: float) -> str:
    """Says for people that a test has found no rate.

    Args:
        middle: the rate around which it was made.
    """
    low, high = middle * 10**-DECADES, middle * 10**DECADES
    return (
        f"--learning_rate auto: between {low:g} and {high:g} no rate was found at which the loss, "
        f"{report['start']:.4f} at the start, breaks after it was well: give a number"
    )
