"""Steps of many workers: how long each takes, with workers of different speed, by collective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from coordinator import Coordinator
from network import Network, Times, all_gather, all_reduce
from numpy.typing import NDArray

NUMBER = 8.0
"""Bytes of a loss: float64."""
WAYS = ("data", "direction", "gradient")


@dataclass(frozen=True)
class Work:
    """What a worker does in a step, and what it sends.

    Attributes:
        way: "data", each worker has the step's directions on records of its own, and the losses are summed;
            "direction", each has a share of the directions, and the losses are gathered; "gradient", backpropagation,
            whose gradients are summed.
        directions: of a step, over all workers.
        forward: seconds of one forward; for "gradient", of forward and backward together.
        update: seconds in which one direction is applied to the weights; for "gradient", of the optimizer's step.
        gradient: bytes of the gradients.
    """

    way: str
    directions: int
    forward: float
    update: float
    gradient: float = 0.0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"way is {self.way}; it must be one of {', '.join(WAYS)}")

    def forwards(self, workers: int) -> float:
        """Of each worker in a step: two a direction; where directions are shared out, of the one that has most."""
        if self.way == "gradient":
            return 1
        return 2 * (self.directions if self.way == "data" else -(-self.directions // workers))

    def applying(self) -> float:
        """Seconds in which a worker applies a step: all directions, whoever measured them."""
        return self.update * (1 if self.way == "gradient" else self.directions)

    def sent(self, workers: int) -> float:
        """Bytes of what a worker has measured."""
        return self.gradient if self.way == "gradient" else NUMBER * self.forwards(workers)

    def received(self, workers: int) -> float:
        """Bytes of the result, as a coordinator sends it."""
        return self.sent(workers) * (workers if self.way == "direction" else 1)


@dataclass(frozen=True)
class Fleet:
    """Workers: `slowness` multiplies all times of each, [workers]; `jitter` is the log-normal of single steps."""

    slowness: Times
    jitter: float
    network: Network

    @classmethod
    def drawn(cls, network: Network, spread: float, jitter: float, rng: np.random.Generator) -> Fleet:
        """Slowness is log-normal around 1 with `spread`."""
        return cls(np.exp(spread * rng.standard_normal(len(network.latency))), jitter, network)

    def computing(self, work: Work, steps: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Seconds of the forwards, [steps, workers]."""
        workers = len(self.slowness)
        noise = np.exp(self.jitter * rng.standard_normal((steps, workers)))
        return work.forwards(workers) * work.forward * self.slowness * noise


def step_seconds(
    fleet: Fleet, work: Work, how: str, steps: int, rng: np.random.Generator, drop: float = 0.0
) -> dict[str, float]:
    """The mean and the 95th percentile of a step's seconds, and the mean share of the workers whose losses counted.

    Args:
        how: "ring", "tree" or "coordinator".
        drop: share of the workers that a step does not wait for; by coordinator alone.

    ValueError: `drop` with a collective in which everybody has to take part.
    """
    workers = len(fleet.slowness)
    compute = fleet.computing(work, steps, rng)
    update = work.applying() * fleet.slowness
    if how == "coordinator":
        sizes = work.sent(workers), work.received(workers)
        ahead = Coordinator(fleet.network, lambda w, t: compute[t % steps, w], update, *sizes, drop)
        course = ahead.run(steps)
        ends, used = np.array(course.closed), float(np.mean(course.used)) / workers
    else:
        if drop:
            raise ValueError(f"nobody can be left out of a {how}; use a coordinator")
        ends, used = _in_step(compute, update, fleet.network, work, how), 1.0
    seconds = np.diff(ends, prepend=0.0)[1:] if steps > 1 else ends
    return {"mean": float(seconds.mean()), "p95": float(np.quantile(seconds, 0.95)), "used": used}


def _in_step(compute: NDArray[np.float64], update: Times, network: Network, work: Work, how: str) -> Times:
    """When the last worker has the result of each step, where everybody waits for everybody."""
    workers, begin, ends = len(update), np.zeros(len(update)), []
    collective = all_gather if work.way == "direction" else all_reduce
    for row in compute:
        done = collective(how, begin + row, network, work.sent(workers))
        begin = done + update
        ends.append(done.max())
    return np.array(ends)
