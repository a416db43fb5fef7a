"""Two processes on this machine: steps without exchange, the exchange alone, and steps with it, in turns.

`scaling.py` fits its simulator to the first two and is compared with the third.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shapes import batch, build
from torch import distributed

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.measuring import Reduce, mean_over_ranks
from llava.train.zo.sparse_loss import laid_out_loss
from llava.train.zo.step_inputs import StepInputs

RANKS = 2
TOKENS, SUPERVISED = 200, 12


class TimedStep:
    """A step of the tiny shape (random weights, language model tuned), and when its parts begin and end."""

    def __init__(self, directions: int) -> None:
        device = torch.device("cpu")
        torch.manual_seed(0)
        model = build("tiny", torch.float32, device, "mm_language_model")
        trained = [p for p in model.parameters() if p.requires_grad]
        config = MeZOConfig(eps=1e-3, num_directions=directions)
        self.mean, self.together = mean_over_ranks(device), False
        self.mezo = MeZO(trained, model, config, lr=1e-9, reduce=self._reduce)
        self.inputs = StepInputs(model, self.mezo, 1)(batch(model, TOKENS, 1, SUPERVISED))
        self.loss = functools.partial(laid_out_loss, model)
        self.step = 0

    def _reduce(self, values: list[float]) -> list[float]:
        self.forwards_end = time.perf_counter()
        found = self.mean(values) if self.together else values
        self.update_begin = time.perf_counter()
        return found

    def __call__(self, together: bool) -> dict[str, float]:
        """Seconds of the forwards, of the update and of the whole step."""
        self.together, begin = together, time.perf_counter()
        self.mezo.accumulate(self.step, self.loss, self.inputs)
        self.mezo.step()
        self.step, end = self.step + 1, time.perf_counter()
        parts = {"forwards": self.forwards_end - begin, "update": end - self.update_begin}
        return {**parts, "step": end - begin}


def _exchanges(mean: Reduce, times: int, numbers: int, period: float) -> list[float]:
    """Seconds of exchanges for which both ranks are ready at once, each after `period` seconds of work.

    One exchange right after the other is faster by far: a process that has worked for long is woken up later.
    """
    found, due = [], mean([time.perf_counter()] * numbers)[0] + period  # one clock for all processes
    for _ in range(times):
        while time.perf_counter() < due:
            pass
        begin, due = due, mean([time.perf_counter()] * numbers)[0] + period
        found.append(time.perf_counter() - begin)
    return found


def _rank(rank: int, folder: str, blocks: int, steps: int, directions: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    timed = TimedStep(directions)
    found: dict[str, list[Any]] = {"apart": [], "exchange": [], "together": []}
    for block in range(blocks + 1):
        distributed.barrier()
        apart = [timed(False) for _ in range(steps)]
        exchange = _exchanges(timed.mean, steps, 2 * directions, statistics.median(row["step"] for row in apart))
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
