"""How a run makes use of its devices: flags of MeZO beyond those that `settings.py` has."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from llava.mezo.errors import InputError
from llava.mezo.sharding.shards import check_torch
from llava.train.zo.settings import Settings, processes

GRAPHS = ("auto", "off")
SHARDS = ("none", "fsdp")
OFFLOADS = ("none", "cpu", "auto")
"""Where weights are: on the device of the run, or in the host's memory; "auto": there if they do not fit the device."""


@dataclass(frozen=True)
class DeviceSettings:
    """A run's flags `--zo_...` of this kind, read once."""

    cuda_graphs: str = "auto"
    """"auto": on CUDA, forwards are recorded as graphs of kernels, see `llava/mezo/graphs.py`; "off": never."""
    graph_memory_gb: float = 4.0
    """Memory of the device, in GiB, that graphs may take; those that were not used for the longest time go; > 0."""
    length_bucket: int = 1
    """Rows are padded to a multiple of so many tokens where graphs are recorded."""
    shard: str = "none"
    """Whether each process has the whole model, or a shard of every weight, see `sharded_run.py`."""
    offload: str = "none"
    """Whether weights stay on the host: one of `OFFLOADS`."""

    @classmethod
    def of(cls, args: Any) -> DeviceSettings:
        """From training arguments, as transformers has them or as they stand on the command line.

        Raises:
            InputError: a value out of range.
        """
        given: dict[str, Any] = {one.name: getattr(args, f"zo_{one.name}", one.default) for one in fields(cls)}
        place = cls(**given)
        for name, allowed in (("cuda_graphs", GRAPHS), ("shard", SHARDS), ("offload", OFFLOADS)):
            value = getattr(place, name)
            if value not in allowed:
                raise InputError(f"--zo_{name} {value} must be one of {', '.join(allowed)}")
        if not (math.isfinite(place.graph_memory_gb) and place.graph_memory_gb > 0):
            raise InputError(f"--zo_graph_memory_gb {place.graph_memory_gb} must be a finite number above 0")
        if place.length_bucket < 1:
            raise InputError(f"--zo_length_bucket {place.length_bucket} must be at least 1")
        return place


def refuse_placement(args: Any) -> None:
    """Raise `InputError` for a flag of these that is out of its range, or cannot go with shards.

    Args:
        args: as for `DeviceSettings.of`.
    """
    place, config = DeviceSettings.of(args), Settings.of(args).config
    if place.shard == "none":
        return
    given = f"--zo_shard {place.shard}"
    if place.offload != "none":
        raise InputError(
            f"--zo_offload {place.offload} excludes {given}: a shard of every weight is on each card already"
        )
    check_torch()
    if processes(args) < 2:
        raise InputError(f"{given} needs several processes, which share the weights: start it by torchrun")
    if config.storage != "native":
        raise InputError(
            f"--zo_weight_storage {config.storage} excludes {given}, which keeps weights in the model's dtype: give "
            "native"
        )
    for name, value, excluded in (
        ("zo_estimator", config.estimator, config.estimator == "per_example"),
        ("zo_parallel", config.parallel, config.parallel != "data"),
    ):
        if excluded:
            raise InputError(f"--{name} {value} excludes {given}: processes that share weights measure the same points")
    if getattr(args, "bits", 16) != 16:
        raise InputError(f"--bits {args.bits} excludes {given}: quantised weights are not cut into shards")
