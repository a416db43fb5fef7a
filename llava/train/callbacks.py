"""What a run shows and how it is stopped: its outlook, a progress bar, times per step, Ctrl-C."""

from __future__ import annotations

import logging
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from llava.runs.run_folder import save_arguments
from llava.train.zo.shared_steps import accumulated

logger = logging.getLogger(__name__)

SHOWN_IN_BAR = ("loss", "projected_grad", "learning_rate")


def records_of_a_step(args: Any) -> int:
    """Over all processes, where no plan says otherwise."""
    processes = 1 if args.accelerator_config.split_batches else args.data_processes
    return int(args.train_batch_size * accumulated(args) * processes)


class Outlook(TrainerCallback):
    """Says before the first step how long a run is, and that the first step takes longer than others.

    Args:
        records: number of records in the data.
        seen: records of each step, over all processes, where `--zo_batch_growth` and its kin plan them.
    """

    def __init__(self, records: int, seen: Sequence[int] | None = None) -> None:
        self.records = records
        self.seen = seen

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        each = records_of_a_step(args)
        seen = state.max_steps * each if self.seen is None else sum(self.seen[: state.max_steps])
        by_step = f"{each:,} records" if self.seen is None else "a planned number of records"
        logger.info(
            "%s steps of %s: %s records seen, %.2f epochs of %s",
            *(f"{state.max_steps:,}", by_step, f"{seen:,}", seen / self.records, f"{self.records:,}"),
        )
        logger.info("the first step: workers start, kernels are compiled where they have not been before")


class LogLastStep(TrainerCallback):
    """The last step is logged, however many steps lie between others: a run has a final loss.

    Where an evaluation may end the run, that is every step that is evaluated.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps or (args.early_stopping_patience and control.should_evaluate)
        if last and args.logging_strategy != "no":
            control.should_log = True


class ProgressBar(TrainerCallback):
    """Steps, time left, loss, learning rate and (MeZO) projected gradient on one line of the main process.

    Args:
        done: tells the steps that are not measured again; the time left is that of the others.
    """

    def __init__(self, done: Callable[[], int]) -> None:
        self._tell_done = done
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done = self._tell_done()
        if state.is_world_process_zero and not args.disable_tqdm:
            quiet = not sys.stderr.isatty()  # a log file wants a line now and then
            self.bar = tqdm(
                total=state.max_steps,
                initial=max(state.global_step, self.done),
                desc="train",
                unit="step",
                dynamic_ncols=True,
                mininterval=10 if quiet else 0.5,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None and state.global_step == self.done:
            self.bar.unpause()  # the time of replayed steps is not that of one
        elif self.bar is not None and state.global_step > self.done:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        values = logs or {}
        shown = {key: f"{values[key]:.4g}" for key in SHOWN_IN_BAR if key in values}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
        elif state.is_world_process_zero and shown:
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class SaveArguments(TrainerCallback):
    """Writes the flags of a run into a folder that exists once it trains, as a journal's does.

    Args:
        too: whether this process writes them, if it is not the main one.
    """

    def __init__(self, arguments: dict[str, Any], folder: Path, too: bool = False) -> None:
        self.arguments = arguments
        self.folder = folder
        self.too = too

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.is_world_process_zero or self.too) and self.folder.is_dir():
            save_arguments(self.arguments, self.folder)


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step, data loading included; the median is robust against pauses for saving.

    Args:
        done: tells the steps before this start of the run, which are replayed, if anything, and not counted.
    """

    def __init__(self, done: Callable[[], int]) -> None:
        self._tell_done = done
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done, self._last = self._tell_done(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self._last is not None and state.global_step > self.done:
            self.seconds.append(now - self._last)
        self._last = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.perf_counter()  # what was measured is no step

    def median(self) -> float | None:
        """Median seconds a step; None before the first one."""
        return statistics.median(self.seconds) if self.seconds else None


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM ends the run after the step in progress; a second one ends it at once.

    Args:
        save: a checkpoint is saved first.
    """

    def __init__(self, save: bool = True) -> None:
        self.save = save
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever runs us there handles signals
                return

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.received is not None:
            kept = "a checkpoint is saved" if self.save else "the journal has all of it"
            logger.warning(
                "stopping after step %d on %s: %s; the same command goes on from there",
                *(state.global_step, self.received.name, kept),
            )
            args.load_best_model_at_end = False  # which of all is the best is not known yet
            control.should_save = control.should_save or self.save
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._previous[number])
