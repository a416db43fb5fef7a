"""`MeZO` of a model in shards, as `shard_model` cuts it."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from llava.mezo.held import is_sharded
from llava.mezo.names import canonical_names
from llava.mezo.optimizer import MeZO
from llava.mezo.sharding.shards import check_shards
from llava.mezo.sharding.weights import ShardedWeights


class ShardedMeZO(MeZO):
    """As `MeZO`; all processes build it together.

    ValueError: also weights that are cut in another way, or settings that have processes measure different points.
    """

    def _read_along(self, model: nn.Module, trained: Collection[nn.Parameter]) -> list[nn.Parameter]:
        shards = [parameter for parameter in canonical_names(model) if is_sharded(parameter)]
        check_shards(shards)
        if self.config.estimator == "per_example" or self.ranks.point_ways > 1:
            raise ValueError(
                "processes that share weights measure the same points at a time: neither the estimator per_example nor "
                f"parallel {self.config.parallel!r} can have them measure different ones"
            )
        return [parameter for parameter in shards if parameter not in trained]

    def _made_weights(self) -> ShardedWeights:
        return ShardedWeights(*self._of_weights(), self.frozen)
