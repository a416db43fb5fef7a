"""Several runs at a time on one machine: what of it each has."""

from __future__ import annotations

import os

import torch


def environment_of_slot(slot: int, jobs: int) -> dict[str, str]:
    """Variables for a run that has number `slot` of `jobs` at a time: its card or, on a CPU, its share of the cores."""
    if torch.cuda.is_available():
        usual = ",".join(map(str, range(torch.cuda.device_count())))
        visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or usual).split(",")
        return {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
