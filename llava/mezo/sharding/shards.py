"""What a shard is: rows of a weight, cut as torch.chunk cuts them and as FSDP2 lays weights out.

A sharded parameter is a DTensor with the placement `Shard(0)` over all ranks, of the whole weight's shape. Each is cut
along dimension 0, so that a shard is a stretch of its elements, and noise, which counts the elements of the whole
weight, needs nothing of the other ranks. What has no dimension stays whole on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from llava.mezo.checksums import first_difference
from llava.mezo.errors import InputError
from llava.mezo.held import borders, is_sharded, local_part
from llava.mezo.messages import rank_and_count
from llava.mezo.names import canonical_names
from llava.mezo.ranks import Ranks
from llava.mezo.units import owned_parameters

OLDEST_TORCH = (2, 6)


def check_torch(version: str = torch.__version__) -> None:
    """InputError: this torch is too old for shards."""
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise InputError(f"weights in shards (--zo_shard fsdp) need torch {needed} or later, and this is {version}")


def check_shards(parameters: Iterable[Any]) -> None:
    """ValueError: one is cut in another way than `shard_model` cuts it."""
    rank, ranks = rank_and_count()
    for parameter in parameters:
        rows = borders(len(parameter), ranks)
        over_all = parameter.device_mesh.ndim == 1 and parameter.device_mesh.size() == ranks
        along_rows = [place.is_shard(0) for place in parameter.placements] == [True]
        if not (over_all and along_rows and len(local_part(parameter)) == rows[rank + 1] - rows[rank]):
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is {parameter.placements} on {parameter.device_mesh}; "
                "MeZO takes rows shared out to all processes, as llava.mezo.sharding.shards.shard_model cuts a model"
            )


@torch.no_grad()
def shard_model(model: nn.Module, device: torch.device) -> None:
    """Replace every parameter by this rank's shard of it on `device`, one after the other; a shared one stays shared.

    All ranks call it, with equal models; torch.distributed's default group is that of the shards. Parameters that are
    sharded already, are empty, or have no dimension stay as they are.

    Raises:
        RuntimeError: there is no process group.
        InputError: on every rank, the models are not equal: the shards would make a model that nobody has.
    """
    check_torch()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    if not torch.distributed.is_initialized():
        raise RuntimeError("shard_model needs torch.distributed's default group; start the processes by torchrun")
    rank, ranks = rank_and_count()
    mesh = init_device_mesh(device.type, (ranks,))
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in owned_parameters(module).items():
            if parameter.numel() and parameter.dim() and not is_sharded(parameter):
                places.setdefault(parameter, []).append((module, name))
    names = canonical_names(model)
    differs = first_difference({names[p]: p.detach() for p in places}, Ranks.here(), device) if places else None
    if differs is not None:
        name, others = differs
        raise InputError(
            f"rank {', '.join(map(str, others))} of {ranks}: its copy of the base model has another {name} than the "
            "rest. Copy the model's files from one machine to all"
        )
    while places:  # the whole weight goes before the next one's shard is made
        parameter, owners = places.popitem()
        first, last = borders(len(parameter), ranks)[rank : rank + 2]
        part = parameter.detach()[first:last].contiguous().to(device, copy=True)
        stride = torch.empty(parameter.shape, device="meta").stride()
        shard = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=stride)
        made = nn.Parameter(shard, requires_grad=parameter.requires_grad)
        for module, name in owners:
            module._parameters[name] = made
