"""Whether all ranks have the same weights, as they must: a rank with others would measure losses of another model.

Nothing in the arithmetic lets them differ. What does is another base model on one machine, a bit that flips in memory,
a program that writes into one rank's weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from llava.mezo.checksums import first_difference
from llava.mezo.lost_ranks import RanksError
from llava.mezo.ranks import Ranks
from llava.mezo.weights import Storage

SHARE = 8
"""One weight in so many is compared at a time, others the next time."""


class RanksDifferError(RanksError):
    """Some rank's weights are not those of the others."""


def check_same_weights(
    storages: Mapping[str, Storage], step: int, turn: int, ranks: Ranks, device: torch.device
) -> None:
    """Compare some of the weights after a step; collective, and a copy to the host.

    Args:
        storages: of all weights, by name.
        turn: number of the comparison, by which it is others each time.
        device: as for `Ranks.exchange`.

    Raises:
        RanksDifferError: on every rank, naming the ranks that are in the minority.
    """
    if ranks.count == 1:
        return
    share = min(SHARE, len(storages))
    names = list(storages)[turn % share :: share]
    differs = first_difference({name: storages[name].value for name in names}, ranks, device)
    if differs is not None:
        name, others = differs
        raise RanksDifferError(
            f"after step {step} rank {', '.join(map(str, others))} of {ranks.count} has other weights than the "
            f"rest ({name}), so losses since the last comparison are not all of one model. Look for other files of "
            "the base model, or memory at fault, on that machine. The same command again goes on from the journal, "
            "with equal weights on all ranks"
        )
