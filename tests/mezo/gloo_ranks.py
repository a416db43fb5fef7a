"""Processes of one gloo group, for tests of what they do together."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Sequence

import torch
from torch import distributed

PRELOADED = ["llava.mezo", "llava.mezo.kernels.torch_any", "llava.mezo.kernels.numpy_reference"]


def on_ranks(count: int, checks: Sequence[Callable[[], None]]) -> None:
    """Each of the functions on so many processes, forked from one that has imported all; all end well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(rank, count, port, checks)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(100)
        if rank.exitcode != 0:
            for other in ranks:
                other.kill()
    assert [rank.exitcode for rank in ranks] == [0] * count


def _rank(rank: int, count: int, port: int, checks: Sequence[Callable[[], None]]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    for check in checks:
        check()
        distributed.barrier()  # the group is left to the process's end: torch 2.1 hangs now and then in destroying it
