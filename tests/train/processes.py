"""Runs on several processes of this machine, for tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava.train.train import train


def run_on_two(words: list[str], log: Path) -> None:
    """`train` with these words on two processes, without the launcher."""
    run_on(2, train, (None, words), log)


def run_on(count: int, function: Callable[..., Any], given: tuple[Any, ...], log: Path) -> None:
    """`function(*given)` on so many processes, forked from one that has imported all: their imports take longest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llava.train.train", "llava.train.zo.trainer"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [context.Process(target=_rank, args=(rank, count, port, function, given, log)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
        if rank.exitcode != 0:
            for other in ranks:
                other.kill()
    assert [rank.exitcode for rank in ranks] == [0] * count, log.read_text()[-3000:]


def _rank(rank: int, count: int, port: str, function: Callable[..., Any], given: tuple[Any, ...], log: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    function(*given)
