"""What a process says when another one of its run is gone, in place of the words of a network library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RanksError(RuntimeError):
    """A run of several processes cannot go on with all of them; what its journal has stays."""


class LostRankError(RanksError):
    """Another process of the run has ended, or does not answer; no step is lost by it."""


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """For what all ranks do together.

    A rank that ended is noticed at once by gloo, one that is stuck after the time-out of the process group. NCCL's own
    watchdog ends a process after that time, before this can speak.

    Raises:
        LostRankError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        distributed = torch.distributed
        ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        if ranks == 1 or isinstance(error, torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else ()):
            raise
        said = " ".join(str(error).split())
        raise LostRankError(
            f"rank {distributed.get_rank()} of {ranks}: another process of this run has ended, or has not answered for "
            f"as long as --ddp_timeout allows ({said[:200]})"
        ) from error
