"""Which records a step has: in an order that a resumed run has again, as many as are planned, in parts that fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch.utils.data import DataLoader, RandomSampler, Sampler

from llava.mezo.ranks import Ranks
from llava.train.zo.epoch_sampler import EpochSampler
from llava.train.zo.settings import Settings
from llava.train.zo.step_batches import MicroBatches, StepSampler, Together

logger = logging.getLogger(__name__)


class PlannedBatches(transformers.Trainer):
    """A Trainer whose steps may be of unequal size, or taken in parts; `plan_batches` says so before it trains."""

    data_collator: Any
    _rows_of_steps: list[int] | None = None
    _ranks = Ranks()
    _shares = 1
    """Processes that the records of a step are planned for."""
    _items: Callable[[Any], Any] | None = None
    """Gives a step's records of a process at once, where it has a list of them."""

    def plan_batches(self, zo: Settings) -> None:
        """Take batches as the flags of MeZO ask for them."""
        self._ranks = zo.ranks()
        self._shares = self._ranks.rows
        self._rows_of_steps = zo.planned_rows(self.args)
        if zo.config.estimator == "per_example":
            self.data_collator = MicroBatches(self.data_collator, 1)
        elif self._rows_of_steps is not None:
            self.data_collator = MicroBatches(self.data_collator, self.args.train_batch_size)
        if self._rows_of_steps is not None:
            self._items = Together
            for flag in ("group_by_modality_length", "group_by_modality_length_auto"):
                if getattr(self.args, flag, False):
                    logger.warning(
                        "--%s True with --%s: steps take so many records of the order as they need, so that a step may "
                        "have several modalities",
                        flag,
                        "zo_anchor_batches" if zo.batch_growth is None else "zo_batch_growth",
                    )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the base class, or with as many records a step as are planned; ranks of a row get the same ones."""
        with _shared_out_to_rows(self.accelerator, self._ranks):
            if self._items is None:
                return super().get_train_dataloader()
            dataset, size = self.train_dataset, self._train_batch_size
            self.train_dataset, self._train_batch_size = self._items(dataset), 1
            try:
                return super().get_train_dataloader()
            finally:
                self.train_dataset, self._train_batch_size = dataset, size

    def get_total_train_batch_size(self, args: Any) -> int:
        """As the base class, without counting the records of a row of ranks more than once."""
        total: int = super().get_total_train_batch_size(args)
        return total // self._ranks.point_ways

    def _get_train_sampler(self, *given: Any) -> Sampler[Any] | None:
        """As the base class, in an order that does not depend on what was drawn before: a resumed run has it again."""
        sampler: Any
        rows, sampler = self._rows_of_steps, super()._get_train_sampler(*given)
        seedable = isinstance(sampler, RandomSampler) and getattr(self.accelerator, "use_seedable_sampler", False)
        if sampler is None or (seedable and rows is None):
            return sampler
        if not isinstance(sampler, EpochSampler):
            sampler = EpochSampler(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        return sampler if rows is None else StepSampler(sampler, rows, self._shares)


@contextmanager
def _shared_out_to_rows(accelerator: Any, ranks: Ranks) -> Iterator[None]:
    """Within it, accelerate shares batches out as if each row of ranks were a single process."""
    usual = type(accelerator)
    if ranks.point_ways > 1:
        rows = {"num_processes": ranks.rows, "process_index": ranks.row}
        accelerator.__class__ = type(usual.__name__, (usual,), rows)
    try:
        yield
    finally:
        accelerator.__class__ = usual
