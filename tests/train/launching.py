"""Runs of several processes in tests: by torchrun, as a user starts them, or forked, which takes less time."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from llava.train.train import train

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""
PRELOADED = ["llava.train.train", "llava.train.zo.extended_trainer"]
TRAIN = Path(__file__).parents[2] / "llava" / "train" / "train_mem.py"


def torchrun(words: Sequence[str], processes: int, *options: str) -> list[str]:
    """The command line that starts so many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--standalone"]
    return [*launcher, f"--nproc_per_node={processes}", *options, str(TRAIN), *words]


def start_ranks(words: Sequence[Sequence[str]], log: Path, env: dict[str, str] | None = None) -> list[Any]:
    """A training for each command line, see `start`."""
    return start([(train, (None, list(own))) for own in words], log, env)


def start(calls: Sequence[Call], log: Path, env: dict[str, str] | None = None) -> list[Any]:
    """A process for each call, forked from one that has imported all: imports take longest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(len(calls)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(env or {})}
    ranks: list[Any] = []
    for rank, call in enumerate(calls):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(len(calls))}
        ranks.append(context.Process(target=_rank, args=(group | place, call, log)))
        ranks[-1].start()
    return ranks


def codes(ranks: Sequence[Any]) -> list[int]:
    """The exit codes of processes, waited for; once one has failed, the others have a while to end by themselves."""
    for rank in ranks:
        rank.join(300)
        if rank.exitcode != 0:
            for other in ranks:
                other.join(30)
                other.kill()
                other.join()
    return [rank.exitcode for rank in ranks]


def run_ranks(words: Sequence[Sequence[str]], log: Path) -> None:
    """Each command line is a rank; all end well."""
    _end_well(start_ranks(words, log), log)


def run_on_two(words: Sequence[str], log: Path) -> None:
    """One command line on two ranks."""
    run_ranks([words] * 2, log)


def run_on(count: int, function: Callable[..., Any], given: tuple[Any, ...], log: Path) -> None:
    """`function(*given)` on so many ranks, which end well."""
    _end_well(start([(function, given)] * count, log), log)


def _end_well(ranks: Sequence[Any], log: Path) -> None:
    assert codes(ranks) == [0] * len(ranks), log.read_text()[-3000:]


def _rank(env: dict[str, str], call: Call, log: Path) -> None:
    os.environ |= env
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    function, given = call
    function(*given)


def launch_elastic(words: Sequence[str], processes: int, restarts: int, log: Path, folder: Path) -> None:
    """torchrun's agent in this process, with forked ranks. Each leaves its process id in `folder`, rank.RESTART.RANK.

    Raises:
        ChildFailedError: it gave up.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=restarts,
        start_method="forkserver",
    )
    elastic_launch(config, _elastic_rank)(list(words), log, folder)


def _elastic_rank(words: list[str], log: Path, folder: Path) -> None:
    """As the agent starts it, which sets the environment."""
    name = f"rank.{os.environ['TORCHELASTIC_RESTART_COUNT']}.{os.environ['RANK']}"
    (folder / f".{name}").write_text(str(os.getpid()))
    (folder / f".{name}").rename(folder / name)
    _rank({}, (train, (None, words)), log)
