"""A run that goes back once it diverges, and on with half the rate: `--zo_on_divergence halve`.

It goes back to the step where its loss was lowest, by its journal, and from there on as an interrupted run does, in the
same process. What decides lies in the journal's folder (`llava/mezo/journal/kept.py`) and is there at once, so that a
run that is killed at any moment either diverges again at the same step, or has gone back. Checkpoints and resume points
of later steps are gone before that.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from llava.mezo.errors import InputError
from llava.mezo.journal.files import Journal
from llava.mezo.journal.going_back import go_back
from llava.mezo.journal.kept import Kept, halvings, kept_journals
from llava.mezo.journal.locking import FolderLock
from llava.mezo.messages import raising_together
from llava.train.zo.journaled_run import JournaledRun
from llava.train.zo.resume_points import discard_after, start_of
from llava.train.zo.state import settings_of_flags
from llava.train.zo.watch import WatchDivergence

logger = logging.getLogger(__name__)

MOST_HALVINGS = 5
"""A rate that has to be halved more often was far from any that works."""


class HalvedRun(JournaledRun):
    """A `JournaledRun` that may go back."""

    watch: WatchDivergence
    gone_back: Sequence[Kept] = ()
    """What it had gone back in when it was started, or last went back: the same for all ranks."""

    @property
    def why_diverged(self) -> str | None:
        """In a few words; None where it did not."""
        return self.watch.why

    @property
    def may_halve(self) -> bool:
        """Whether it is to go back if it diverges."""
        wanted = self.zo.on_divergence == "halve" and self.starting_point is not None
        return wanted and len(self.gone_back) < MOST_HALVINGS

    @property
    def _goes_back(self) -> bool:
        return self.why_diverged is not None and self.may_halve

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the base class, from the best step again as often as the run diverges and may go back."""
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        while self._goes_back:
            point = self._go_back()
            result = super().train(point, *args, **kwargs)
        return result

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, of rates that are halved as often as the run has gone back."""
        scheduler: Any = super().create_scheduler(*args, **kwargs)
        start = self.starting_point
        self.gone_back = times = () if start is None else kept_journals(start.folder)
        if times and not isinstance(scheduler, LambdaLR):
            raise InputError(
                f"--lr_scheduler_type {self.args.lr_scheduler_type}: this run has halved its rate "
                "(--zo_on_divergence halve), which takes a schedule that is a function of the step"
            )
        if times:
            with settings_of_flags(self.optimizer, scheduler):
                scheduler.lr_lambdas = [functools.partial(_halved, one, times) for one in scheduler.lr_lambdas]
        return scheduler

    def load_best_step(self) -> None:
        """As the base class, once the run is over."""
        if not self._goes_back:
            super().load_best_step()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if not self._goes_back:  # a checkpoint would be gone on from
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def _go_back(self) -> str:
        """Let the journals on all disks and the model become those of the best step; where to go on from."""
        start, disks, step = self.starting_point, self.disks, self.watch.lowest()
        assert start is not None and disks is not None
        output = Path(str(self.args.output_dir))
        with raising_together(disks.device):
            if disks.is_owner:
                lock = FolderLock(start.folder)
                try:
                    self._forget_after(step, output)
                    kept = go_back(Journal.read(start.folder), step)
                finally:
                    lock.release()
                if disks.rank == 0:
                    logger.warning(
                        "%s. The run goes back to step %d, and on with %g of its rates (%d of at most %d halvings); "
                        "what it had until step %d is kept in %s",
                        *(self.why_diverged, step, 0.5**kept.number, kept.number, MOST_HALVINGS),
                        *(kept.steps, kept.inside(start.folder)),
                    )
        disks.level(output)  # resume points as well
        self.load_base()
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model
        return str(start_of(output, not disks.several))

    def _forget_after(self, step: int, output: Path) -> None:
        """On a disk, as its owner."""
        discard_after(step, output)


def _halved(schedule: Callable[[int], float], times: Sequence[Kept], step: int) -> float:
    """The factor of a schedule for a step."""
    return schedule(step) * 0.5 ** halvings(step, times)
