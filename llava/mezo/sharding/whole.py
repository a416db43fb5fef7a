"""Whole weights of a model in shards, on the host of the first rank: for saving, and to know a base model by.

All ranks call what is here, in the same order. No device holds more than its shards meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import distributed, nn

from llava.mezo.held import borders, is_sharded, local_part
from llava.mezo.journal.fingerprint import combined, line
from llava.mezo.messages import handed_out, rank_and_count
from llava.mezo.names import canonical_names
from llava.mezo.sharding.turns import host_group
from llava.mezo.units import owned_parameters


def on_first_host(tensor: torch.Tensor) -> torch.Tensor | None:
    """A whole weight on the CPU of the first rank; None on the others. One that is not sharded stays where it is."""
    rank, ranks = rank_and_count()
    if not is_sharded(tensor):
        return tensor.detach() if rank == 0 else None
    part, cuts = local_part(tensor).cpu(), borders(len(tensor), ranks)
    padded = torch.zeros(cuts[1], *tensor.shape[1:], dtype=tensor.dtype)
    padded[: len(part)] = part
    flat = padded.view(-1).view(torch.uint8)
    whole = torch.empty(ranks * len(flat), dtype=torch.uint8) if rank == 0 else None
    pieces = None if whole is None else list(whole.chunk(ranks))
    distributed.gather(flat, pieces, 0, group=host_group())
    return None if whole is None else whole.view(tensor.dtype).view(ranks * cuts[1], *tensor.shape[1:])[: len(tensor)]


@contextmanager
def whole_on_first(model: nn.Module) -> Iterator[None]:
    """Within it, the model of the first rank has whole parameters on the CPU, for saving; others wait for it."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in owned_parameters(module).items():
            if is_sharded(parameter):
                places.setdefault(parameter, []).append((module, name))
    names = canonical_names(model)
    try:
        for parameter in sorted(places, key=names.__getitem__):
            whole = on_first_host(parameter)
            if whole is not None:
                made = nn.Parameter(whole, requires_grad=parameter.requires_grad)
                for module, name in places[parameter]:
                    module._parameters[name] = made
        yield
    finally:
        for parameter, owners in places.items():
            for module, name in owners:
                module._parameters[name] = parameter
    if places:
        distributed.barrier(group=host_group())


def fingerprint_of_shards(parameters: Mapping[str, torch.Tensor]) -> str:
    """`fingerprint` of whole weights, a weight at a time; every rank gets it."""
    lines, device = [], torch.device("cpu")
    for name, parameter in parameters.items():
        whole, device = on_first_host(parameter), parameter.device
        lines.append("" if whole is None else line((name, whole)))
    return handed_out(combined(lines).encode(), 0, device).decode()
