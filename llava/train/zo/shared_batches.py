"""Steps of a run that was begun with another number of processes: the same records, shared out anew."""

from __future__ import annotations

from typing import Any

from torch.utils.data import RandomSampler, Sampler

from llava.train.zo.planned_batches import PlannedBatches
from llava.train.zo.settings import Settings
from llava.train.zo.shared_steps import Begun, CollateParts, SharedSteps, TogetherInParts


class SharedBatches(PlannedBatches):
    """`PlannedBatches` where the training arguments have a `begun`, see `shared_steps.py`."""

    _by_example = False

    @property
    def _begun(self) -> Begun | None:
        return getattr(self.args, "begun", None)

    def plan_batches(self, zo: Settings) -> None:
        """As the base class, as the run was begun."""
        collate = self.data_collator
        super().plan_batches(zo)
        if self._begun is not None:
            self._shares, self._by_example = self._begun.processes, zo.config.estimator == "per_example"
            self._items, self.data_collator = TogetherInParts, CollateParts(collate)

    def _get_train_sampler(self, *given: Any) -> Sampler[Any] | None:
        order: Any = super()._get_train_sampler(*given)
        if order is None or self._begun is None:
            return order
        if isinstance(order, RandomSampler):
            order = _as_accelerate_has_it(order, self.args.data_seed)
        ways: Any = self.args.accelerator_config
        drop, even = self.args.dataloader_drop_last, bool(ways.even_batches)
        size, ranks = self.args.train_batch_size, self._ranks.rows
        return SharedSteps(order, size, drop, even, self._begun, ranks, self._by_example)


def _as_accelerate_has_it(sampler: RandomSampler, seed: int | None) -> Sampler[int]:
    """The order that accelerate makes of a random one."""
    from accelerate.data_loader import SeedableRandomSampler

    count = {"replacement": sampler.replacement, "num_samples": sampler._num_samples}
    return SeedableRandomSampler(sampler.data_source, **count, generator=sampler.generator, data_seed=seed)
