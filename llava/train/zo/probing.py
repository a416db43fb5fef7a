"""Probes of the loss around the weights while a run trains, see `llava/mezo/progress.py`.

A probe costs three forwards for each of two batches; where several processes train, each has one. A step that is in the
journal has its probe on the disk already, since that comes first, so that all processes agree on which are due.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llava.mezo.curvature import Landscape, Probe, probe_of, probe_points, probe_seed
from llava.mezo.progress import PROBES_FILE, Probes
from llava.train.zo import state as states
from llava.train.zo.step_batches import parts_of

logger = logging.getLogger(__name__)

BATCHES = 2
"""At least, along each direction."""
LATEST, MUCH = 10, 0.25
"""Rounding is told once the latest so many probes have more than this share of it."""


class ProbeNowAndThen(TrainerCallback):
    """Probes before every `--zo_probe_steps`-th step, the first one included; nothing of a step is moved by it.

    Args:
        trainer: a MeZOTrainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.probes = Probes(Path(str(trainer.args.output_dir)) / PROBES_FILE)
        self._first = 0
        self._said = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up what was measured before the first step that is to be taken now."""
        journal = self.trainer.mezo.journal
        self._first = max(state.global_step, 0 if journal is None else len(journal.records))
        if args.should_save:
            self.probes.take_up(self._first)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, unless the step is replayed."""
        step = state.global_step
        if step < self._first or step % self.trainer.zo.probe_steps:
            return
        before = states.random_states()  # loading a record may draw from them
        try:
            self.probes.found[step] = self._measured(step)
        finally:
            states.set_random_states(before)
        if args.should_save:
            self.probes.save()
            self._say_rounding()

    def _say_rounding(self) -> None:
        """Once, where it may be much of what steps follow by now."""
        latest = list(self.probes.found.items())[-LATEST:]
        if self._said or len(latest) < LATEST:
            return
        share = Landscape([along for _, along in latest]).rounding(self.trainer.zo.config.eps)
        if share > MUCH:
            self._said = True
            logger.warning(
                "between steps %d and %d up to %.0f %% of what steps follow is rounding: a larger --zo_eps "
                "would leave less",
                *(latest[0][0], latest[-1][0], 100 * share),
            )

    def _measured(self, step: int) -> list[Probe]:
        mezo, eps = self.trainer.mezo, self.trainer.zo.config.eps
        seed, ranks = probe_seed(self.trainer.zo.config.seed, step), mezo.ranks
        draw = random.Random(f"{seed} {ranks.rank}")
        own = [x for _ in range(-(-BATCHES // ranks.count)) for x in self._losses(seed, eps, draw)]
        losses = [x for found in ranks.exchange(own, mezo.device) for x in found]
        return [probe_of(losses[first : first + 3], eps) for first in range(0, len(losses), 3)]

    def _losses(self, seed: int, eps: float, draw: random.Random) -> list[float]:
        """Of as many records as a micro-batch has, drawn with replacement, at the points of a probe."""
        trainer = self.trainer
        forwards, data = trainer._forwards_of(trainer.model_wrapped), trainer.train_dataset
        records = [data[draw.randrange(len(data))] for _ in range(trainer.args.train_batch_size)]
        parts = parts_of(trainer.data_collator(records))
        found = [[rows * loss for loss in forwards.losses_at(probe_points(seed, eps), part)] for part, rows in parts]
        return [sum(of_point) / sum(rows for _, rows in parts) for of_point in zip(*found, strict=True)]
