"""The trials of a sweep while it runs: several at a time, bad ones stopped, unfinished ones gone on with."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

from llava.errors import EXIT_DIVERGED, InputError
from llava.runs.run_folder import remove_weights
from llava.train.flags.parsing import parse_arguments
from llava.train.sweep import trial as trials
from llava.train.sweep.search import DIVERGED, NEVER_BEGUN, Search
from llava.train.sweep.settings import TRIALS, Sweep
from llava.train.sweep.trial import TrialRun

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MOST_FAILURES = 3
"""One after the other: then it is not the values."""
HALVED, LEFT = "stopped: others were better at this point", "left for the next call"


class Runner:
    """Does trials until the time or their number is used up.

    Args:
        jobs: trials at a time.
        most: trials in all, those of earlier calls included; None for no limit.
        keep_models: whether the weights of trials that are over stay.
    """

    def __init__(self, sweep: Sweep, search: Search, jobs: int, most: int | None, keep_models: bool) -> None:
        self.sweep, self.search = sweep, search
        self.jobs, self.most, self.keep_models = jobs, most, keep_models
        self._again = deque(search.unfinished())
        self._running: dict[int, tuple[Any, TrialRun]] = {}
        self._failures = 0

    def run(self, deadline: float) -> None:
        """Until `time.monotonic()` is `deadline`: trials that run then are stopped, and go on with the next call.

        Raises:
            InputError: trials fail one after the other; with the end of the last one's log.
        """
        try:
            while time.monotonic() < deadline:
                while len(self._running) < self.jobs and self._begin():
                    pass
                if not self._running:
                    return
                time.sleep(POLL_SECONDS)
                for slot in list(self._running):
                    self._look_after(slot)
            logger.info("the budget is used up")
        finally:
            self._leave()

    def _begin(self) -> bool:
        """Start the next trial in a free slot; False if there is none."""
        slot = next(slot for slot in range(self.jobs) if slot not in self._running)
        if self._again:
            trial = self._again.popleft()
            folder = self.folder(trial.number)
            values = trials.noted(folder).get("values")
            if values is None:  # it was drawn and never begun
                self.search.fail(trial, NEVER_BEGUN)
                return True
        else:
            if self.most is not None and self.search.count() >= self.most:
                return False
            drawn = self.search.draw()
            if drawn is None:
                logger.info("no values are left that were not tried")
                return False
            trial, values = drawn
            folder = self.folder(trial.number)
            trials.note_start(folder, trial.number, values)
            try:
                parse_arguments(self.sweep.words(values, folder))
            except InputError as error:
                self._failed(trial, folder, f"failed: {error}")
                return True
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        logger.info("trial %d: %s", trial.number, shown)
        run = TrialRun(trial.number, folder, self.sweep.words(values, folder), slot, self.jobs)
        self._running[slot] = (trial, run)
        return True

    def folder(self, number: int) -> Path:
        """Of a trial."""
        return self.sweep.folder / TRIALS / f"{number:04d}"

    def _look_after(self, slot: int) -> None:
        """Stop a trial that is no good; take down what came of one that has ended."""
        trial, run = self._running[slot]
        code = run.ended()
        points = trials.curve(run.folder)
        worse = self.search.report(trial, points)
        if code is None:
            why = run.diverges() or _not_finite(points)
            if why is None and worse:
                why = run.diverges(now=True) or HALVED
            if why is not None:
                run.stop(why)
            return
        del self._running[slot]
        if code == 0:
            self._finished(trial, run.folder, points)
        elif run.why_stopped is not None:
            self._gave_up(trial, run.folder, run.why_stopped)
        elif code == EXIT_DIVERGED:
            self._gave_up(trial, run.folder, f"{DIVERGED}: a loss or a weight was not finite")
        else:
            said = trials.end_of_log(run.folder)
            self._failed(trial, run.folder, f"failed: exit code {code}, see {run.folder / trials.LOG_FILE}: ...{said}")
        if not self.keep_models:
            remove_weights(run.folder)

    def _finished(self, trial: Any, folder: Path, points: dict[int, float | None]) -> None:
        value = self.sweep.value(points)
        if value is None:
            self._gave_up(trial, folder, f"{DIVERGED}: its last validation was not finite")
            return
        self._failures = 0
        trials.note_outcome(folder, "finished", value)
        self.search.finish(trial, value)
        logger.info("trial %d: %s %.4f", trial.number, self.sweep.metric, value)

    def _gave_up(self, trial: Any, folder: Path, why: str) -> None:
        self._failures = 0
        trials.note_outcome(folder, why, None)
        self.search.give_up(trial, why)
        logger.info("trial %d %s", trial.number, why)

    def _failed(self, trial: Any, folder: Path, why: str) -> None:
        trials.note_outcome(folder, why, None)
        self.search.fail(trial, why)
        logger.warning("trial %d %s", trial.number, why)
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise InputError(f"{self._failures} trials failed one after the other; trial {trial.number} {why}")

    def _leave(self) -> None:
        """End what runs, each where it can go on; a trial that just came to its end, or was to be stopped, is over."""
        for _, run in self._running.values():
            run.stop(LEFT)
        for slot, (trial, run) in list(self._running.items()):
            run.wait()
            if run.process.returncode == 0 or run.why_stopped != LEFT:
                self._look_after(slot)
            else:
                logger.info("trial %d is %s", trial.number, LEFT)


def _not_finite(points: dict[int, float | None]) -> str | None:
    """That a run diverged, by its curve."""
    bad = [step for step, value in points.items() if value is None]
    return f"{DIVERGED}: the validation at step {bad[0]} was not finite" if bad else None
