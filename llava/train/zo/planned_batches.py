"""Which records a step has: in an order that a resumed run has again, as many as are planned, in parts that fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch.utils.data import DataLoader, RandomSampler, Sampler

from llava.mezo.ranks import Ranks
from llava.train.zo.epoch_sampler import EpochSampler
from llava.train.zo.settings import Settings
from llava.train.zo.shared_steps import Begun, CollateParts, SharedSteps, TogetherInParts
from llava.train.zo.step_batches import MicroBatches, StepSampler, Together


class PlannedBatches(transformers.Trainer):
    """A Trainer whose steps may be of unequal size, or taken in parts; `plan_batches` says so before it trains."""

    data_collator: Any
    _rows_of_steps: list[int] | None = None
    _ranks = Ranks()
    _shared: bool = False
    """Whether the steps are those of another number of processes, see `shared_steps.py`."""
    _by_example: bool = False

    def plan_batches(self, zo: Settings) -> None:
        """Take batches as the flags of MeZO ask for them."""
        self._ranks = zo.ranks()
        self._rows_of_steps = zo.planned_rows(self.args)
        self._shared = getattr(self.args, "begun", None) is not None
        self._by_example = zo.config.estimator == "per_example"
        if self._shared:
            self.data_collator = CollateParts(self.data_collator)
        elif self._by_example:
            self.data_collator = MicroBatches(self.data_collator, 1)
        elif self._rows_of_steps is not None:
            self.data_collator = MicroBatches(self.data_collator, self.args.train_batch_size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the base class, or with as many records a step as are planned; ranks of a row get the same ones."""
        with _shared_out_to_rows(self.accelerator, self._ranks):
            if self._rows_of_steps is None and not self._shared:
                return super().get_train_dataloader()
            dataset, size = self.train_dataset, self._train_batch_size
            together = TogetherInParts if self._shared else Together
            self.train_dataset, self._train_batch_size = together(dataset), 1
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
        if sampler is None or (seedable and rows is None and not self._shared):
            return sampler
        if seedable and rows is None:
            sampler = _as_accelerate_has_it(sampler, self.args.data_seed)
        elif not isinstance(sampler, EpochSampler):
            sampler = EpochSampler(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        begun = getattr(self.args, "begun", None) or Begun(self._ranks.rows, self.args.gradient_accumulation_steps)
        order = sampler if rows is None else StepSampler(sampler, rows, begun.processes)
        if not self._shared:
            return order
        ways: Any = self.args.accelerator_config
        drop, even = self.args.dataloader_drop_last, bool(ways.even_batches)
        size, ranks = self.args.train_batch_size, self._ranks.rows
        return SharedSteps(order, size, drop, even, begun, ranks, self._by_example)


def _as_accelerate_has_it(sampler: RandomSampler, seed: int | None) -> Sampler[int]:
    """The order that accelerate makes of a random one."""
    from accelerate.data_loader import SeedableRandomSampler

    count = {"replacement": sampler.replacement, "num_samples": sampler._num_samples}
    return SeedableRandomSampler(sampler.data_source, **count, generator=sampler.generator, data_seed=seed)


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
