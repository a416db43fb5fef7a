"""What the processes of a run tell each other: numbers, bytes, and what is wrong with one of them.

All functions are for every rank to call, in the same order; one process alone talks to itself. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from llava.mezo.errors import InputError
from llava.mezo.lost_ranks import waiting_for_others


def rank_and_count() -> tuple[int, int]:
    """This process's number in torch.distributed's default group, and their number."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def answer_within(seconds: float) -> None:
    """How long a rank waits for another one; transformers says so to groups on GPUs alone."""
    if rank_and_count()[1] > 1:
        change: Any = getattr(torch.distributed.distributed_c10d, "_set_pg_timeout", None)
        if change is not None:
            change(timedelta(seconds=seconds))


def exchanged(data: bytes, device: torch.device) -> list[bytes]:
    """What each rank gave, in the order of ranks.

    Args:
        device: where the group's messages are, if it is not gloo.
    """
    _, ranks = rank_and_count()
    if ranks == 1:
        return [data]
    lengths = [int(size) for size in gathered(torch.tensor([len(data)]), device)]
    padded = gathered(_tensor(data + bytes(max(lengths) - len(data))), device)
    return [_bytes(tensor)[:length] for tensor, length in zip(padded, lengths, strict=True)]


def gathered(own: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """`own` of each rank, of equal shape and dtype on all, in the order of ranks; wherever messages are."""
    own = own.to(_message_device(device))
    found = [torch.empty_like(own) for _ in range(rank_and_count()[1])]
    with waiting_for_others():
        torch.distributed.all_gather(found, own)
    return found


def handed_out(data: bytes, source: int, device: torch.device) -> bytes:
    """What rank `source` gave; what others give does not count."""
    rank, ranks = rank_and_count()
    if ranks == 1:
        return data
    device = _message_device(device)
    with waiting_for_others():
        size = torch.tensor([len(data)], dtype=torch.int64, device=device)
        torch.distributed.broadcast(size, source)
        tensor = _tensor(data if rank == source else bytes(int(size))).to(device)
        torch.distributed.broadcast(tensor, source)
    return _bytes(tensor)[: int(size)]


@contextmanager
def raising_together(device: torch.device) -> Iterator[None]:
    """An `InputError` inside it, on any rank, is one on all of them, so that none waits for one that is gone."""
    error = None
    try:
        yield
    except InputError as caught:
        error = caught
    told = exchanged(b"" if error is None else str(error).encode(errors="replace"), device)
    if error is not None:
        raise error
    for rank, message in enumerate(told):
        if message:
            raise InputError(f"rank {rank}: {message.decode()}")


def leave() -> None:
    """Wait for all ranks and end their group, which a process alone does not have."""
    if rank_and_count()[1] > 1:
        exchanged(b"", torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu"))
        torch.distributed.destroy_process_group()


def _message_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if torch.distributed.get_backend() == "gloo" else device


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
