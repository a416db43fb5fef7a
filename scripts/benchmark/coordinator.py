"""Steps through a coordinator, by discrete events: it collects losses, closes the step, and sends the result to all.

It may close a step when a share of the workers is still missing. Their losses then count for nothing, and each of them,
once it is done, applies the steps that it has missed and begins the latest one: a worker that is slow for good takes
part in some steps alone, and never holds the others up.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from network import OVERHEAD, Network, Times

Compute = Callable[[int, int], float]
"""Seconds of a worker's forwards, by worker and step."""


@dataclass
class Course:
    """What came of the steps: `closed` seconds at which each was closed, `used` workers whose losses were in it."""

    closed: list[float] = field(default_factory=list)
    used: list[int] = field(default_factory=list)


class Coordinator:
    """One run of a number of workers.

    Args:
        compute: seconds of the forwards of a step.
        update: seconds in which each worker applies a step, [workers].
        up: bytes of a worker's losses.
        down: bytes of the result that each of them gets.
        drop: share of the workers that a step does not wait for, 0 to below 1.
    """

    def __init__(self, network: Network, compute: Compute, update: Times, up: float, down: float, drop: float) -> None:
        self.network, self.compute, self.update = network, compute, update
        self.up, self.down = up, down
        self.workers = len(update)
        self.wanted = self.workers - math.floor(drop * self.workers)
        self._events: list[tuple[float, int, str, int, int]] = []
        self._order = 0
        self._known = np.full(self.workers, -1)  # the last step whose result a worker has received
        self._applied = np.full(self.workers, -1)
        self._idle = np.zeros(self.workers, dtype=bool)

    def run(self, steps: int) -> Course:
        """Take so many steps."""
        course, arrived, receiver = Course(), 0, 0.0
        for worker in range(self.workers):
            self._begin(worker, 0.0)
        for time, what, worker, step in self._each():
            if what == "finished":
                self._at(time + self.network.latency[worker] + self.network.sending(self.up), "sent", worker, step)
                self._idle[worker] = True
                self._go_on(worker, time)
            elif what == "sent" and step == len(course.closed):  # else it is too late
                receiver = max(receiver, time) + (self.up + OVERHEAD) / self.network.centre
                self._at(receiver, "arrived", worker, step)
            elif what == "arrived" and step == len(course.closed):
                arrived += 1
                if arrived == self.wanted:
                    course.closed.append(time)
                    course.used.append(arrived)
                    if len(course.closed) == steps:
                        return course
                    arrived = 0
                    self._answer(time, step)
            elif what == "result":
                self._known[worker] = max(self._known[worker], step)
                self._go_on(worker, time)
        raise AssertionError("no event is left and no step closed")

    def _answer(self, time: float, step: int) -> None:
        """Send a result to all, one after the other."""
        busy = (self.down + OVERHEAD) / self.network.centre
        link = self.network.sending(self.down)
        for worker in range(self.workers):
            self._at(time + (worker + 1) * busy + self.network.latency[worker] + link, "result", worker, step)

    def _go_on(self, worker: int, time: float) -> None:
        """A worker that is idle and has news applies it and begins the next step."""
        missed = self._known[worker] - self._applied[worker]
        if self._idle[worker] and missed > 0:
            self._applied[worker] = self._known[worker]
            self._begin(worker, time + missed * self.update[worker])

    def _begin(self, worker: int, time: float) -> None:
        self._idle[worker] = False
        step = int(self._applied[worker]) + 1
        self._at(time + self.compute(worker, step), "finished", worker, step)

    def _at(self, time: float, what: str, worker: int, step: int) -> None:
        self._order += 1  # equal times: in the order in which they were planned
        heapq.heappush(self._events, (float(time), self._order, what, worker, step))

    def _each(self) -> Iterator[tuple[float, str, int, int]]:
        while self._events:
            time, _, what, worker, step = heapq.heappop(self._events)
            yield time, what, worker, step
