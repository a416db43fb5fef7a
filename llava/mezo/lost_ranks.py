"""What a process says when another one of its run is gone, in place of the words of a network library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class RanksError(RuntimeError):
    """A run of several processes cannot go on with all of them; what its journal has stays."""


class LostRankError(RanksError):
    """Another process of the run has ended, or does not answer; no step is lost by it."""


_LIBRARIES = re.compile("gloo|nccl", re.IGNORECASE)
_TYPES: Any = getattr(torch.distributed, "DistError", ())


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """For what ranks do together, by itself or among other things.

    A rank that ended is noticed at once by gloo, one that is stuck after the time-out of the process group. NCCL's own
    watchdog ends a process after that time, before this can speak.

    Raises:
        LostRankError: in place of a network library's error. Some have types of their own; gloo's names its file.
    """
    try:
        yield
    except RanksError:
        raise
    except RuntimeError as error:
        distributed = torch.distributed
        ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        said = " ".join(str(error).split())
        if ranks == 1 or not (isinstance(error, _TYPES) or _LIBRARIES.search(said)):
            raise
        raise LostRankError(
            f"rank {distributed.get_rank()} of {ranks}: another process of this run has ended, or has not answered for "
            f"as long as --ddp_timeout allows ({said[:200]})"
        ) from error
