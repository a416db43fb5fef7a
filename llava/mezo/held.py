"""What this process holds of a weight: all of it or, of a DTensor, its rows.

Who cuts a model into shards sees to it that these are the rows that `borders` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from llava.mezo.messages import exchanged, rank_and_count


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, of which this rank holds a part."""
    return hasattr(tensor, "to_local")


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds, in the same memory: rows [first, last) of a sharded one, else all of it."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        part: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def borders(length: int, ranks: int) -> list[int]:
    """[ranks + 1]: where each rank's rows begin among `length`, and the end. The last ranks may have fewer, or none."""
    size = -(-length // ranks)
    return [min(rank * size, length) for rank in range(ranks + 1)]


def first_element(tensor: torch.Tensor) -> int:
    """Number in the whole tensor of the first element that this rank holds."""
    if not is_sharded(tensor):
        return 0
    rank, ranks = rank_and_count()
    return borders(len(tensor), ranks)[rank] * tensor.shape[1:].numel()


@torch.no_grad()
def write_into(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy the values of a whole weight into a parameter: a sharded one takes its rows. ValueError: another shape."""
    if whole.shape != parameter.shape:
        raise ValueError(f"a weight of shape {list(whole.shape)} for a parameter of shape {list(parameter.shape)}")
    local_part(parameter).copy_(_same_rows(parameter, whole))


def has_values(parameter: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether what this rank holds of a parameter equals the weight [shape of the parameter] on the CPU there."""
    return torch.equal(local_part(parameter).cpu(), _same_rows(parameter, whole))


def _same_rows(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Of a whole weight what this rank holds of the parameter."""
    if not is_sharded(parameter):
        return whole
    rank, ranks = rank_and_count()
    first, last = borders(len(parameter), ranks)[rank : rank + 2]
    return whole[first:last]


def agreed(found: str | None, parameters: Iterable[torch.Tensor]) -> str | None:
    """What the first of the ranks with something has found about a model; this rank's where nothing is in shards."""
    shards = [parameter for parameter in parameters if is_sharded(parameter)]
    if not shards:
        return found
    everyone = exchanged((found or "").encode(), shards[0].device)
    return next((one.decode() for one in everyone if one), None)
