"""The rate at which a run breaks, from one short run in which it grows by the same factor every step.

The learning rate range test of Smith 2017 (section 3.3). The loss of the same records is measured on the way: it falls,
and from some rate on what it had gained is lost again. A run of thousands of steps breaks at lower rates than
one of a few dozen: the rate for it is `SHARE` of that one (docs/tuning.md says what that was fitted to and checked on).
"""

from __future__ import annotations

import copy
import logging
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Subset
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from llava.errors import InputError
from llava.runs.validation import LOSS, Curve
from llava.train.callbacks import records_of_a_step
from llava.train.flags.arguments import TrainingArguments
from llava.train.validation import Validation

logger = logging.getLogger(__name__)

STEPS_OF_DECADE = 60
"""In which the rate grows tenfold."""
OF_MANY_DIRECTIONS = 18
"""The same with `fzoo`, which has a forward for each of some eight or sixteen directions in a step."""
DECADES = 3
"""Below and above the rate in the middle."""
MARKS_OF_DECADE = 6
"""Measurements."""
RECORDS = 64
"""Of the training set, whose loss is measured."""
LOST, LEAST, LASTING = 0.25, 0.05, 3
"""A run is broken whose loss has risen, at so many marks in a row, by more than the first share of what it had gained
and by more than the second one of what it began with."""
SHARE = 1 / 25
"""Of the rate that breaks a run, for a long one."""
LONG, MOST = 2500, 4
"""Steps of MeZO from which on a run is long; how much more a short one gets at most."""


@dataclass(frozen=True)
class Mark:
    """What was measured after steps whose rates grew up to this one.

    Attributes:
        loss: that of the steps (cross entropy per supervised token, or among answers), nats; infinite where it is no
            number.
    """

    rate: float
    loss: float


@dataclass(frozen=True)
class RangeTest:
    """What was found.

    Attributes:
        start: the same loss before the first step.
        marks: with rates that grow.
        share: of the rate that breaks a run, for this one.
    """

    start: float
    marks: Sequence[Mark]
    share: float = SHARE

    @property
    def breaking_rate(self) -> float | None:
        """Of the first of `LASTING` marks that are broken; None if there are none after a good one."""
        return self.marks[self._broken].rate if self._broken else None

    @property
    def settled(self) -> bool:
        """Whether further marks change nothing."""
        return self._broken is not None and len(self.marks) > self._broken + LASTING

    @property
    def _broken(self) -> int | None:
        """The number of that mark."""
        losses = [mark.loss for mark in self.marks]
        smooth = [statistics.median(losses[max(0, k - 1) : k + 2]) for k in range(len(losses))]
        lowest = self.start
        for number, loss in enumerate(smooth):
            risen = min(smooth[number : number + LASTING]) - lowest
            if risen > max(LOST * (self.start - lowest), LEAST * self.start):
                return number
            lowest = min(lowest, loss)
        return None

    @property
    def rate(self) -> float | None:
        """For a run."""
        return None if self.breaking_rate is None else self.share * self.breaking_rate

    def report(self) -> dict[str, Any]:
        """For programs."""
        marks = [{"rate": mark.rate, "loss": mark.loss if math.isfinite(mark.loss) else None} for mark in self.marks]
        found = {"start": self.start, "marks": marks, "breaking_rate": self.breaking_rate, "share": self.share}
        return found | {"learning_rate": self.rate}


def steps_of_decade(args: TrainingArguments) -> int:
    """In which the rate of a test for these flags grows tenfold."""
    return OF_MANY_DIRECTIONS if args.trainer_mode == "zo" and args.zo_estimator == "fzoo" else STEPS_OF_DECADE


def most_steps(args: TrainingArguments) -> int:
    """Of a test for these flags."""
    return 2 * DECADES * steps_of_decade(args)


def share_for(args: TrainingArguments, records: int) -> float:
    """Of the rate that breaks a run, for a run of these flags on so many records.

    Zeroth-order steps carry weights by their noise as far as rate x sqrt(steps), so a short run can take a higher rate,
    and a short test finds a higher one.
    """
    if args.trainer_mode != "zo":
        return SHARE
    steps = args.max_steps if args.max_steps > 0 else args.num_train_epochs * records / records_of_a_step(args)
    of_test = math.sqrt(steps_of_decade(args) / STEPS_OF_DECADE)
    return SHARE * of_test * min(math.sqrt(LONG / min(steps, LONG)), MOST)


def trial_settings(training_args: TrainingArguments, folder: str) -> TrainingArguments:
    """Those of a run, for a trainer with which something is tried out and which keeps nothing outside of `folder`."""
    changed = copy.copy(training_args)
    changed.output_dir = folder
    changed.max_steps = most_steps(training_args)
    changed.save_strategy = changed.eval_strategy = IntervalStrategy.NO
    # a measurement takes no more memory than a step
    changed.per_device_eval_batch_size = min(changed.per_device_eval_batch_size, changed.per_device_train_batch_size)
    changed.eval_on_start = changed.load_best_model_at_end = False
    changed.report_to = []
    changed.zo_journal, changed.zo_on_divergence, changed.zo_probe_steps = False, "off", 0
    return changed


def run_range_test(
    make: Callable[[TrainingArguments], Any], training_args: TrainingArguments, version: str
) -> RangeTest:
    """Train until it breaks, from `DECADES` below the flags' rate to as many above it.

    Args:
        make: gives a run's trainer, whose weights are lost.
        training_args: of the run.
        version: name of the conversation template.

    Raises:
        InputError: the loss is not finite before the first step.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(trial_settings(training_args, folder))
        growing = _GrowingRate(trainer, version)
        trainer.add_callback(growing)
        try:
            trainer.train()
        except FloatingPointError:
            growing.marks.append(Mark(growing.rate, math.inf))
    return RangeTest(growing.start, growing.marks, share_for(training_args, len(trainer.train_dataset)))


class _GrowingRate(TrainerCallback):
    def __init__(self, trainer: Any, version: str) -> None:
        data = trainer.train_dataset
        # drawn, since records that are evenly apart may be of one kind
        some: Any = Subset(data, random.Random(0).sample(range(len(data)), min(RECORDS, len(data))))
        self.trainer = trainer
        self.validation = Validation(Curve(LOSS, "", ()), some, trainer.data_collator, version, of_steps=True)
        self.steps_of_decade = steps_of_decade(trainer.args)
        self.rate = self.start = math.nan
        self.marks: list[Mark] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = self.validation.measure(self.trainer)
        if not math.isfinite(self.start):
            raise InputError(
                f"the loss of {len(self.validation.dataset)} records of --data_path is {self.start} before the first "
                "step: no rate mends that. Look at --model_name_or_path and at the data"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        growth: float = 10 ** (state.global_step / self.steps_of_decade - DECADES)
        self.rate = args.learning_rate * growth
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * growth

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = False  # also where it has diverged
        if state.global_step % (self.steps_of_decade // MARKS_OF_DECADE):
            return
        loss = self.validation.measure(self.trainer)
        self.marks.append(Mark(self.rate, loss if math.isfinite(loss) else math.inf))
        logger.info("rate %.2g: loss %.4f (%.4f at the start)", self.rate, loss, self.start)
        if RangeTest(self.start, self.marks).settled or self.marks[-1].loss >= 2 * self.start:
            control.should_training_stop = True
