"""Where the processes of a launch meet that torchrun has started again.

torchrun's agent hands its store to every start of the processes (torch 2.4 to 2.13 at least), with what those of the
start before have left there: a process then looks for one that is dead, at its old address, until it gives up, and the
restarts are used up by and by. So the processes of a start agree, by that store, on a port of rank 0 that is theirs
alone, as torch itself does under TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from datetime import timedelta

import torch

from llava.mezo.lost_ranks import LostRankError

SECONDS = 600.0
"""How long a process waits for the others, which may load slowly."""
_PLACE = "llava/meeting"


def meet_anew() -> None:
    """Before torch.distributed begins, in every process that torchrun may start again.

    Raises:
        LostRankError: the others did not come.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts, ranks = (int(os.environ.get(n) or 0) for n in ("TORCHELASTIC_MAX_RESTARTS", "WORLD_SIZE"))
    if not shared or restarts == 0 or ranks < 2 or torch.distributed.is_initialized():
        return
    rank, place = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        patience = timedelta(seconds=SECONDS)
        store = torch.distributed.TCPStore(*place, is_master=False, timeout=patience, wait_for_workers=False)
        port = _invite(store, ranks) if rank == 0 else _join(store, rank)
    except RuntimeError as error:  # what torch's store raises is of it, in every version
        raise LostRankError(f"rank {rank} of {ranks}: not all processes of this run have come ({error})") from error
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _invite(store: torch.distributed.Store, ranks: int) -> int:
    """As rank 0: a free port of this machine, once all others have heard of it."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = int(free.getsockname()[1])
    meeting = f"{port}-{uuid.uuid4().hex}"
    store.set(_PLACE, meeting)
    for rank in range(1, ranks):
        guest = store.get(f"llava/{meeting}/{rank}").decode()
        store.set(f"llava/{meeting}/{rank}/{guest}", "welcome")
    return port


def _join(store: torch.distributed.Store, rank: int) -> int:
    """As another rank: the port, once rank 0 has answered; that of an earlier start does not."""
    own, until = uuid.uuid4().hex, time.monotonic() + SECONDS
    while True:
        meeting = store.get(_PLACE).decode()
        store.set(f"llava/{meeting}/{rank}", own)
        try:
            store.wait([f"llava/{meeting}/{rank}/{own}"], timedelta(seconds=1))
            return int(meeting.split("-")[0])
        except RuntimeError:
            if time.monotonic() > until:
                raise
