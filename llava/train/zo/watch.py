"""Tells while a run still goes that it diverges, and from which step to start again."""

from __future__ import annotations

import logging
import statistics
from typing import Any

from transformers import TrainerCallback

from llava.mezo.journal.diverging import WINDOW, diverging, of_steps, size_of

logger = logging.getLogger(__name__)


class WatchDivergence(TrainerCallback):
    """Looks at losses and projected gradients every `WINDOW` steps; stops the run where its flags say so.

    Args:
        trainer: a MeZOTrainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.why: str | None = None
        """Once it diverges."""
        self._losses: list[float] = []
        self._sizes: list[float] = []
        self._begun = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an applied or a refused step, measured now or taken from the journal."""
        mezo = self.trainer.mezo
        if not self._begun:
            self._begun = True
            if mezo.journal is not None:  # steps before the point that the run goes on from
                self._losses, self._sizes = of_steps(mezo.journal.header, mezo.journal.records[: state.global_step - 1])
        result = mezo.last
        if result is None or not result.applied or not result.terms:
            return
        self._losses.append(result.loss)
        self._sizes.append(size_of(result.terms))
        if self.why is None and len(self._losses) % WINDOW == 0:
            self.why = diverging(self._losses, self._sizes)
            if self.why is not None:
                logger.warning("%s. %s", self.why, self.way_out())
        if self.why is not None and self.trainer.zo.on_divergence == "stop":
            control.should_save = control.should_training_stop = True

    def way_out(self) -> str:
        """What to do about it."""
        lower = f"Lower --learning_rate (half of it: {self.trainer.args.learning_rate / 2:g})"
        if self.trainer.starting_point is None:
            return f"{lower} and start again"
        return (
            f"{lower}: in a new --output_dir, from the step where the loss was lowest, with --zo_from_journal "
            f"{self.trainer.starting_point.folder}:{self._lowest()}"
        )

    def _lowest(self) -> int:
        """Steps before the middle of the windows with the lowest loss."""
        starts = range(0, len(self._losses) - WINDOW + 1, WINDOW)
        best = min(starts, key=lambda start: statistics.median(self._losses[start : start + WINDOW]))
        return best + WINDOW // 2
