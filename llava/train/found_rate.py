"""OUTPUT_DIR/learning_rate.json: the rate that a run found before its first step, for its report and for going on."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava.errors import InputError
from llava.mezo.durable import write_durably
from llava.mezo.messages import handed_out
from llava.model.checkpoint_files import usable
from llava.runs.plots import plot_range_test
from llava.runs.run_folder import RATE_FILE, RATE_PICTURE
from llava.train.flags.arguments import TrainingArguments
from llava.train.range_test import DECADES, run_range_test

logger = logging.getLogger(__name__)


def found_rate(
    folder: Path, make: Callable[[TrainingArguments], Any], training_args: TrainingArguments, version: str
) -> float:
    """The rate in `folder`, or the one that a test finds, which is then kept there: on all ranks that of the main one.

    Args:
        make, training_args, version: as for `run_range_test`.

    Raises:
        InputError: the test finds none, or the file is damaged.
    """
    main, file = training_args.process_index == 0, folder / RATE_FILE
    kept = handed_out(file.read_bytes() if main and file.exists() else b"", 0, training_args.device)
    if not kept:
        logger.info("looking for a learning rate (--learning_rate auto) from %g on", training_args.learning_rate)
        report = run_range_test(make, training_args, version).report()
        gc.collect()  # the model that was tried: its trainer refers to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if report["learning_rate"] is None:
            raise InputError(why_none(report, training_args.learning_rate))
        kept = (json.dumps(report, indent=2) + "\n").encode()
        if main:
            plot_range_test(report, folder / RATE_PICTURE)
            write_durably(file, kept)
    with usable(str(file)):
        rate = float(json.loads(kept)["learning_rate"])
    logger.info("--learning_rate %.2g, as %s has it", rate, file)
    return rate


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
