"""Memory of this process: the most that it had, and what it can do without."""

from __future__ import annotations

import gc
import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far: allocated tensors on a CUDA device, else the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> None:
    """Of models that nothing has any more but their trainers, which refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
