"""Two processes on this machine: steps without exchange, the exchange alone, and steps with it, in turns.

`scaling.py` fits its simulator to the first two and is compared with the third.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from shapes import batch, build
from torch import distributed

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.ranks import Ranks
from llava.train.zo.laid_out_forwards import laid_out_loss
from llava.train.zo.step_inputs import StepInputs

RANKS = 2
TOKENS, SUPERVISED = 200, 12


class TimedRanks(Ranks):
    """The ranks of a step, and when their exchange begins and ends; not `together`, each rank takes its own for all."""

    together, begin, end = False, 0.0, 0.0

    def exchange(self, numbers: Sequence[float], device: torch.device) -> list[list[float]]:
        """As `Ranks`."""
        TimedRanks.begin = time.perf_counter()
        found = super().exchange(numbers, device) if self.together else [list(numbers)] * self.count
        TimedRanks.end = time.perf_counter()
        return found


class TimedStep:
    """A step of the tiny shape (random weights, language model tuned), and how long its parts take."""

    def __init__(self, directions: int, rank: int) -> None:
        device = torch.device("cpu")
        torch.manual_seed(0)
        model = build("tiny", torch.float32, device, "mm_language_model")
        trained = [p for p in model.parameters() if p.requires_grad]
        config = MeZOConfig(eps=1e-3, num_directions=directions, check_ranks_steps=0)
        self.ranks = TimedRanks(rank, RANKS)
        self.mezo = MeZO(trained, model, config, self.ranks, lr=1e-9)
        self.inputs = StepInputs(model, self.mezo, 1)(batch(model, TOKENS, 1, SUPERVISED))
        self.loss = functools.partial(laid_out_loss, model)
        self.step = 0

    def __call__(self, together: bool) -> dict[str, float]:
        """Seconds of the forwards, of the update and of the whole step."""
        TimedRanks.together, begin = together, time.perf_counter()
        self.mezo.accumulate(self.step, self.loss, self.inputs)
        self.mezo.step()
        self.step, end = self.step + 1, time.perf_counter()
        return {"forwards": TimedRanks.begin - begin, "update": end - TimedRanks.end, "step": end - begin}


def _exchanges(ranks: TimedRanks, times: int, numbers: int, period: float) -> list[float]:
    """Seconds of exchanges for which both ranks are ready at once, each after `period` seconds of work.

    One exchange right after the other is faster by far: a process that has worked for long is woken up later.
    """
    TimedRanks.together, found = True, []

    def agreed() -> float:
        told = ranks.exchange([time.perf_counter()] * numbers, torch.device("cpu"))
        return max(own[0] for own in told) + period  # one clock for all processes

    due = agreed()
    for _ in range(times):
        while time.perf_counter() < due:
            pass
        begin, due = due, agreed()
        found.append(time.perf_counter() - begin)
    return found


def _rank(rank: int, folder: str, blocks: int, steps: int, directions: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    timed = TimedStep(directions, rank)
    found: dict[str, list[Any]] = {"apart": [], "exchange": [], "together": []}
    for block in range(blocks + 1):
        distributed.barrier()
        apart = [timed(False) for _ in range(steps)]
        exchange = _exchanges(timed.ranks, steps, 2 * directions + 1, statistics.median(row["step"] for row in apart))
        distributed.barrier()
        together = [timed(True) for _ in range(steps)]
        if block:  # the first is to warm up
            found["apart"] += apart
            found["exchange"] += exchange
            found["together"] += together
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


def measured(blocks: int, steps: int, directions: int) -> list[dict[str, list[Any]]]:
    """Of each of two processes: parts of the steps apart and together, and seconds of exchanges."""
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, blocks, steps, directions)
        torch.multiprocessing.spawn(_rank, given, nprocs=RANKS)
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]
