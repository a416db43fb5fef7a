"""Which records a step has: in an order that a resumed run has again, as many as are planned, in parts that fit."""

from __future__ import annotations

from typing import Any

import transformers
from torch.utils.data import DataLoader, RandomSampler, Sampler

from llava.train.zo.epoch_sampler import EpochSampler
from llava.train.zo.settings import Settings
from llava.train.zo.step_batches import MicroBatches, StepSampler, Together


class PlannedBatches(transformers.Trainer):
    """A Trainer whose steps may be of unequal size, or taken in parts; `plan_batches` says so before it trains."""

    data_collator: Any
    _rows_of_steps: list[int] | None = None

    def plan_batches(self, zo: Settings) -> None:
        """Take batches as the flags of MeZO ask for them."""
        self._rows_of_steps = zo.planned_rows(self.args)
        if zo.config.estimator == "per_example":
            self.data_collator = MicroBatches(self.data_collator, 1)
        elif self._rows_of_steps is not None:
            self.data_collator = MicroBatches(self.data_collator, self.args.train_batch_size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the base class, or with as many records a step as are planned."""
        if self._rows_of_steps is None:
            return super().get_train_dataloader()
        dataset, size = self.train_dataset, self._train_batch_size
        self.train_dataset, self._train_batch_size = Together(dataset), 1
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self._train_batch_size = dataset, size

    def _get_train_sampler(self, *given: Any) -> Sampler[Any] | None:
        """As the base class, in an order that does not depend on what was drawn before: a resumed run has it again."""
        rows, sampler = self._rows_of_steps, super()._get_train_sampler(*given)
        seedable = isinstance(sampler, RandomSampler) and getattr(self.accelerator, "use_seedable_sampler", False)
        if sampler is None or (seedable and rows is None):
            return sampler
        if not isinstance(sampler, EpochSampler):
            sampler = EpochSampler(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        return sampler if rows is None else StepSampler(sampler, rows, self.args.world_size)
