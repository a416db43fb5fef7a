"""Whether all ranks have the same weights, as they must: a rank with others would measure losses of another model.

Nothing in the arithmetic lets them differ. What does is another base model on one machine, a bit that flips in memory,
a program that writes into one rank's weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from llava.mezo.ranks import Ranks
from llava.mezo.weights import Storage

SHARE = 8
"""One weight in so many is compared at a time, others the next time."""
EXACT_BITS = 52
"""Of a sum: what a float64 holds."""


class RanksDifferError(RuntimeError):
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
    sums = torch.stack([_checksum(storages[name].value).to(device) for name in names])
    found = ranks.exchange([float(x) for x in sums.tolist()], device)
    for name, of_ranks in zip(names, zip(*found, strict=True), strict=True):
        usual, _ = Counter(of_ranks).most_common(1)[0]
        others = [rank for rank, value in enumerate(of_ranks) if value != usual]
        if others:
            raise RanksDifferError(
                f"after step {step} rank {', '.join(map(str, others))} of {ranks.count} has other weights than the "
                f"rest ({name}), so losses since the last comparison are not all of one model. Look for other files of "
                "the base model, or memory at fault, on that machine. The same command again goes on from the journal, "
                "with equal weights on all ranks"
            )


def _checksum(value: torch.Tensor) -> torch.Tensor:
    """Sum of the bits of each row times the row's number, an integer of `EXACT_BITS` bits, on the weight's device."""
    bits = value.reshape(1, -1) if value.dim() < 2 else value.flatten(1)
    rows = bits.view(torch.int16).sum(1, dtype=torch.int64)
    numbers = torch.arange(1, len(rows) + 1, device=rows.device)
    return torch.bitwise_and((rows * numbers).sum(), 2**EXACT_BITS - 1)
