"""Tells while a run still goes that it diverges, and from which step to start again."""

from __future__ import annotations

import logging
import statistics
from typing import Any

from transformers import TrainerCallback

from llava.mezo.journal.diverging import WINDOW, diverging, losses_of

logger = logging.getLogger(__name__)


class WatchDivergence(TrainerCallback):
    """Looks at the losses every `WINDOW` steps; stops the run where its flags say so.

    Args:
        trainer: a MeZOTrainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.why: str | None = None
        """Once it diverges."""
        self._losses: list[float] = []
        self._begun = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Also once the run has gone back."""
        self.why, self._losses, self._begun = None, [], False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an applied or a refused step, measured now or taken from the journal."""
        mezo = self.trainer.mezo
        if not self._begun:
            self._begun = True
            if mezo.journal is not None:  # steps before the point that the run goes on from
                self._losses = losses_of(mezo.journal.header, mezo.journal.records[: state.global_step - 1])
        result = mezo.last
        if result is None or not result.applied or not result.terms:
            return
        self._losses.append(result.loss)
        if self.why is None and len(self._losses) % WINDOW == 0:
            self.why = diverging(self._losses)
            if self.why is not None and not self.trainer.may_halve:
                logger.warning("%s. %s", self.why, self.way_out())
        if self.why is not None and self.trainer.zo.on_divergence != "warn":
            control.should_save = control.should_training_stop = True

    def way_out(self) -> str:
        """What to do about it."""
        rate = self.trainer.args.learning_rate / 2 ** len(self.trainer.gone_back)
        lower = f"Lower --learning_rate (half of it: {rate / 2:g})"
        if self.trainer.gone_back:
            lower = f"It was halved {len(self.trainer.gone_back)} times and was {rate:g}. {lower}"
        if self.trainer.starting_point is None:
            return f"{lower} and start again"
        return (
            f"{lower}: in a new --output_dir, from the step where the loss was lowest, with --zo_from_journal "
            f"{self.trainer.starting_point.folder}:{self.lowest()}"
        )

    def lowest(self) -> int:
        """Steps before the middle of the windows with the lowest loss; 0 before the end of the first one."""
        starts = range(0, len(self._losses) - WINDOW + 1, WINDOW)
        middles = {start + WINDOW // 2: statistics.median(self._losses[start : start + WINDOW]) for start in starts}
        return min(middles, key=lambda step: middles[step], default=0)
