"""A run that is validated while it trains: when, what is the best, when to stop, which weights are kept."""

from __future__ import annotations

import contextlib
import logging
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers

from llava.train.validation import Validation
from llava.train.zo.resume_points import check_enough_steps

logger = logging.getLogger(__name__)


class ValidatedRun(transformers.Trainer):
    """A Trainer that takes its evaluations from a `Validation`, if it has one.

    What is the best, and when to stop, follow from the points of its curve, so that a run that goes on agrees with one
    that was never stopped. Points that were measured before are not measured again.
    """

    args: Any
    model: Any
    validation: Validation | None = None
    loaded_step: int | None = None
    """The step whose weights were taken at the end in place of the last ones."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class."""
        if self.validation is None:
            return super().evaluate(*args, **kwargs)
        curve, step = self.validation.curve, self.state.global_step
        if not self._is_due():
            self.control.should_evaluate = False
            return {}
        if step not in curve.points:
            begin = time.perf_counter()
            curve.add(step, self.validation.measure(self))
            if self.args.should_save:
                curve.save(Path(str(self.args.output_dir)))
            self._tell(time.perf_counter() - begin)
        value = curve.points[step]
        metrics = {} if value is None else {f"eval_{curve.metric}": value}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self._is_to_stop():
            logger.warning(
                "stopping early after step %d: %d evaluations were no better than that of step %s "
                "(--early_stopping_patience)",
                step,
                curve.since_best(step),
                curve.best_step(step),
            )
            self.control.should_training_stop = True
        return metrics

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """As the base class. InputError: the run has more steps than it is to have."""
        check_enough_steps(f"--num_train_epochs {self.args.num_train_epochs}", num_training_steps, self.steps_before())
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def steps_before(self) -> int:
        """Those that a run which goes on has, once its loop begins."""
        return int(self.state.global_step)

    def validation_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean over the supervised tokens of what the collator gave, as in training."""
        inputs: Any = self._prepare_inputs(batch)
        loss: Any = self.compute_loss(self.model, inputs)
        return loss

    def step_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """What steps lessen, of what the collator gave: here the same."""
        return self.validation_loss(batch)

    def current_weights(self) -> AbstractContextManager[Any]:
        """Within it, a forward through the model sees the weights as they are; here it always does."""
        return contextlib.nullcontext()

    def _is_due(self) -> bool:
        """Not where a run is stopped by a signal within an epoch, nor where it goes on between two evaluations."""
        step = self.state.global_step
        if step == 0 or step >= self.state.max_steps:
            return True
        if self.args.eval_strategy == "epoch":
            return float(self.state.epoch or 0.0).is_integer()
        return step % self.state.eval_steps == 0

    def _is_to_stop(self) -> bool:
        patience, validation = self.args.early_stopping_patience, self.validation
        if validation is None or patience == 0:
            return False
        return validation.curve.since_best(self.state.global_step) >= patience

    def _tell(self, seconds: float) -> None:
        """One line of the log."""
        assert self.validation is not None
        curve, step = self.validation.curve, self.state.global_step
        best, value = curve.best_step(), curve.points[step]
        shown = "not finite" if value is None else f"{value:.4f}"
        better = "" if best is None else f" (best {curve.points[best]:.4f} at step {best})"
        logger.info("validation at step %d: %s %s%s, in %.1f s", step, curve.metric, shown, better, seconds)

    def _catch_up(self) -> None:
        """The evaluation at an epoch's end, where the run was killed after the checkpoint before it."""
        step, validation = self.state.global_step, self.validation
        goes_on = step > 0 and step == self._initial_global_step
        if validation is None or not goes_on or self.args.eval_strategy != "epoch" or not self._is_due():
            return
        key = f"eval_{validation.curve.metric}"
        if not any(entry["step"] == step and key in entry for entry in self.state.log_history):
            self.evaluate()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._catch_up()
        return super()._finalize_training(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._catch_up()
        # as it had before it was killed; of a checkpoint with all steps transformers would take one more
        if self._is_to_stop() or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.validation is None:
            return super()._determine_best_metric(metrics, trial)
        curve, step = self.validation.curve, self.state.global_step
        best = curve.best_step(step)
        if best is not None:
            self.state.best_global_step, self.state.best_metric = best, curve.points[best]
        return best == step

    def _load_best_model(self) -> None:
        if self.validation is None:
            super()._load_best_model()
            return
        best = self.validation.curve.best_step(self.state.global_step)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{best}"
        if not folder.is_dir():
            logger.warning("--load_best_model_at_end: %s is gone; the last weights are kept", folder)
            return
        logger.info("the weights of step %s, the best one, are taken from %s", best, folder)
        self._load_from_checkpoint(str(folder))
        self.loaded_step = best
