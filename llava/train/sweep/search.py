"""The search of a sweep, by Optuna: which values come next, which trials are not worth going on with.

Values are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011), trials are stopped by asynchronous
successive halving (Li et al. 2020, ASHA): at evaluations k, k^2, ... a trial goes on if it is among the best 1/k of
those that came as far. Optuna's pruner would compare with trials that diverged later as well: too high a rate often
learns fastest, and would leave none. What is known lies in an Optuna journal in the sweep's folder, an entry an event,
so that a sweep can be stopped at any time.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.train.sweep.space import Parameter

STORAGE_FILE = "optuna_journal.log"
OUTCOME, STUDY = "outcome", "sweep"
DIVERGED = "diverged"
NEVER_BEGUN = "failed: it was never begun"
ATTEMPTS = 40
"""To draw values that were not tried before."""
SEEDS = 1_000_003
"""Between the seeds of two attempts; more than a sweep has trials."""


def optuna() -> Any:
    """The package. InputError: it is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError("a sweep needs Optuna: pip install optuna")
    module = importlib.import_module("optuna")
    module.logging.set_verbosity(module.logging.WARNING)
    return module


class Search:
    """A study of Optuna.

    Args:
        folder: None keeps it in memory alone.
        halving: k above; 0 stops no trial.
        seed: of what is drawn; the values of trial number n follow from the seed and the trials that are over by then.
    """

    def __init__(
        self, space: Sequence[Parameter], folder: Path | None, greater_is_better: bool, halving: int, seed: int
    ) -> None:
        self.optuna, self.space, self.seed = optuna(), space, seed
        storage = None
        if folder is not None:
            backend = importlib.import_module("optuna.storages.journal").JournalFileBackend
            storage = self.optuna.storages.JournalStorage(backend(str(folder / STORAGE_FILE)))
        self.halving, self.sign = halving, 1 if greater_is_better else -1
        self.study = self.optuna.create_study(
            storage=storage,
            study_name=STUDY,
            load_if_exists=True,
            direction="maximize" if greater_is_better else "minimize",
            pruner=self.optuna.pruners.NopPruner(),
        )

    def draw(self) -> tuple[Any, dict[str, str]] | None:
        """A new trial, and its values as they stand on a command line; None if all that were drawn have been tried.

        They are drawn in a copy of the study, so that what was tried before leaves no trial behind.
        """
        known = self.study.get_trials(deepcopy=False)
        begun = [trial for trial in known if trial.user_attrs.get(OUTCOME) != NEVER_BEGUN]
        tried = [{one.name: one.draw(trial) for one in self.space} for trial in begun]
        for attempt in range(ATTEMPTS):
            copy = self._in_memory(known, self.seed + len(known) + SEEDS * attempt).ask()
            values = {one.name: one.draw(copy) for one in self.space}
            if values not in tried:
                self.study.enqueue_trial(copy.params)
                trial = self.study.ask()
                return trial, {one.name: one.draw(trial) for one in self.space}
        return None

    def _in_memory(self, trials: Sequence[Any], seed: int) -> Any:
        """A study of these trials with a sampler of its own, which holds running ones for bad: others go elsewhere."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        copy = self.optuna.create_study(direction=self.study.direction, sampler=sampler)
        copy.add_trials(trials)
        return copy

    def unfinished(self) -> list[Any]:
        """Trials that were running when the sweep was stopped, in their order."""
        state = self.optuna.trial.TrialState.RUNNING
        found = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state == state]
        return [self.optuna.trial.Trial(self.study, trial._trial_id) for trial in found]

    def count(self) -> int:
        """Trials, whatever became of them."""
        return len(self.study.get_trials(deepcopy=False))

    def report(self, trial: Any, points: Mapping[int, float | None]) -> bool:
        """Tell what a trial has reached, and ask whether it is to be stopped.

        Args:
            points: its curve, by step; what was told before is not told again.
        """
        told = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        after_start = [value for step, value in sorted(points.items()) if step > 0]
        stop = False
        for number, value in enumerate(after_start, start=1):
            if number in told or value is None:
                continue
            trial.report(value, number)
            stop = stop or self._is_worse(trial.number, number, value)
        return stop

    def _is_worse(self, own: int, evaluation: int, value: float) -> bool:
        """Whether trial number `own` is not among the best 1/k at this evaluation, if that is one that counts."""
        rung = self.halving
        while 0 < rung < evaluation:
            rung *= self.halving
        if rung != evaluation:
            return False
        rivals = [
            self.sign * trial.intermediate_values[evaluation]
            for trial in self.study.get_trials(deepcopy=False)
            if trial.number != own
            and evaluation in trial.intermediate_values
            and not str(trial.user_attrs.get(OUTCOME)).startswith(DIVERGED)
        ]
        ranked = sorted([*rivals, self.sign * value], reverse=True)
        return self.sign * value < ranked[max(1, len(ranked) // self.halving) - 1]

    def finish(self, trial: Any, value: float) -> None:
        """The trial came to its end."""
        self.study.tell(trial, value)

    def give_up(self, trial: Any, outcome: str) -> None:
        """The trial was stopped, or diverged: its values were no good."""
        trial.set_user_attr(OUTCOME, outcome)
        self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def fail(self, trial: Any, outcome: str) -> None:
        """The trial tells nothing of its values."""
        trial.set_user_attr(OUTCOME, outcome)
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
