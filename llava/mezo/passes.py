"""Forwards that run side by side: calls of a function, a lane each, that take turns where they need perturbed weights.

All lanes are forwards of the same batch through the same modules, at different points (+eps and -eps of a direction).
A lane runs until it asks for weights that were not made yet, and then the others go on until they ask for the same:
whoever asks last makes the copies for all of them. So a weight is read, and its noise computed, once for all lanes,
and at any time the copies of one group of weights exist. Lanes are coroutines of one thread (greenlet), since a forward
is a call deep in other people's code, which cannot be written as a generator. Each runs the operations that it would
run alone, on tensors of the same shapes: the results are the same bits. Without greenlet the lanes run one after the
other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from llava.mezo.scratch import Memory

try:
    from greenlet import GreenletExit, greenlet
except ImportError:
    greenlet = None

logger = logging.getLogger(__name__)

SIDE_BY_SIDE_ON = frozenset({"cuda"})
"""Types of devices whose forwards run side by side. Where reading a weight and making its noise is a large part of a
step this is faster; on a CPU it saves a twentieth, and costs the activations of a second forward."""

Make = Callable[[Sequence[int], Memory], Sequence[Any]]
"""Makes something for the lanes with these numbers, in their order."""


class Lane:
    """One of the forwards."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.depth: dict[nn.Module, int] = {}
        """How many forwards of a module are running."""
        self.copies: dict[int, torch.Tensor] = {}
        """Perturbed weights of the units that are running, until their owners return."""
        self.made: dict[nn.Module, set[int]] = {}
        """For each unit that is running, which of its weights were made."""
        self.kept: dict[int, Any] = {}
        """Perturbed weights that were read from elsewhere, until the pass ends."""
        self.delivered: dict[Hashable, Any] = {}
        """What another lane has made for this one, which has not asked for it yet; at most one thing."""
        self.coroutine: Any = None
        self.autocast = _Autocast()

    @property
    def running(self) -> bool:
        return self.coroutine is None or not self.coroutine.dead


class Passes:
    """Runs lanes, and hands them what they share."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.current: Lane | None = None
        """The lane that is running."""
        self._streams: _Streams | None = None

    def run(self, function: Callable[[], Any], count: int, devices: Container[str]) -> list[Any]:
        """The results of `count` calls of `function`, one in each lane, side by side if that is better, and can be.

        Args:
            devices: types of those that the weights are on.
        """
        if count == 1 or not any(device in devices for device in SIDE_BY_SIDE_ON) or not side_by_side():
            return [self._alone(function, number) for number in range(count)]
        self.lanes = [Lane(number) for number in range(count)]
        results: dict[int, Any] = {}
        for lane in self.lanes:
            lane.coroutine = greenlet(lambda lane=lane: results.update({lane.number: function()}))
        autocast = _Autocast()
        with _Streams.of(count) as self._streams:
            try:
                for lane in self.lanes:
                    while lane.running:  # a lane that ends, in whosever turn, comes back here
                        self._turn(lane)
            finally:
                for lane in self.lanes:
                    if lane.coroutine and lane.running:  # another one has failed
                        lane.coroutine.throw(GreenletExit)
                self.lanes, self.current = [], None
                autocast.restore()
        return [results[number] for number in range(count)]

    def _alone(self, function: Callable[[], Any], number: int) -> Any:
        with self.single(number):
            return function()

    @contextmanager
    def single(self, number: int) -> Iterator[None]:
        """Within it, one lane is running: the code inside."""
        lane = Lane(number)
        self.lanes, self.current = [lane], lane
        try:
            yield
        finally:
            self.lanes, self.current = [], None

    @property
    def running(self) -> Lane:
        """The lane that is running. RuntimeError: none is."""
        if self.current is None:
            raise RuntimeError("a perturbed weight is read after its pass has ended; keep what was computed from it")
        return self.current

    def fetch(self, key: Hashable, make: Make) -> Any:
        """What `make` gives for the lane that asks; made for all lanes at once where all ask for the same `key`."""
        lane = self.running
        while key not in lane.delivered:
            lane.delivered.clear()  # something else: the lanes go different ways
            behind = next((other for other in self.lanes if other.running and other.delivered), None)
            if behind is None:
                self._deliver(key, make)
            else:
                lane.autocast = _Autocast()
                self._turn(behind)
                self._resume(lane)
        return lane.delivered.pop(key)

    def _deliver(self, key: Hashable, make: Make) -> None:
        lanes = [lane for lane in self.lanes if lane.running]
        with nullcontext() if self._streams is None else self._streams.shared():
            made = make([lane.number for lane in lanes], self._memory_of)
        for lane, own in zip(lanes, made, strict=True):
            lane.delivered = {key: own}

    def _memory_of(self, number: int) -> AbstractContextManager[Any]:
        """Within it, memory is a lane's."""
        streams = self._streams
        return nullcontext() if streams is None else torch.cuda.stream(streams.streams[number])

    def _turn(self, lane: Lane) -> None:
        """Let a lane run until it lets this one go on, or ends."""
        self._resume(lane)
        lane.coroutine.switch()

    def _resume(self, lane: Lane) -> None:
        self.current = lane
        lane.autocast.restore()
        if self._streams is not None:
            torch.cuda.set_stream(self._streams.streams[lane.number])


class _Streams:
    """CUDA streams of lanes while a graph is recorded: what they launch may then run at the same time.

    A small model's kernels leave most of a large card idle. The first lane has the stream that is recorded, and what
    all lanes share is made there, once all have come so far. Memory belongs to the stream of the lane that it is for:
    torch gives it out again, on that stream, while what the lane has launched may still be using it.
    """

    def __init__(self, count: int) -> None:
        self.main = torch.cuda.current_stream()
        self.side = [_side_stream(self.main.device_index, number) for number in range(1, count)]
        self.streams = [self.main, *self.side]

    @classmethod
    @contextmanager
    def of(cls, count: int) -> Iterator[_Streams | None]:
        """Those of so many lanes; None where nothing is recorded."""
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            yield None
            return
        streams = cls(count)
        streams._fork()
        try:
            yield streams
        finally:
            torch.cuda.set_stream(streams.main)
            streams._join()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """What is launched within comes after all that lanes have launched, and before what they launch next."""
        self._join()
        with torch.cuda.stream(self.main):
            yield
        self._fork()

    def _join(self) -> None:
        for stream in self.side:
            self.main.wait_stream(stream)

    def _fork(self) -> None:
        for stream in self.side:
            stream.wait_stream(self.main)


@cache
def _side_stream(device: int, number: int) -> torch.cuda.Stream:
    """The same in every recording: cuBLAS keeps a workspace, of 32 MiB on Hopper, for each stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Autocast:
    """What torch.autocast has set for the thread; where it is entered within a forward, it is that lane's alone."""

    def __init__(self) -> None:
        self.enabled = torch.is_autocast_enabled(), torch.is_autocast_cpu_enabled()
        self.dtypes = torch.get_autocast_gpu_dtype(), torch.get_autocast_cpu_dtype()

    def restore(self) -> None:
        torch.set_autocast_enabled(self.enabled[0])
        torch.set_autocast_cpu_enabled(self.enabled[1])
        torch.set_autocast_gpu_dtype(self.dtypes[0])
        torch.set_autocast_cpu_dtype(self.dtypes[1])


@cache
def side_by_side() -> bool:
    """Whether lanes can take turns; says once if they cannot."""
    if greenlet is None:
        logger.warning(
            "mezo: greenlet is not installed, so both forwards of a direction run one after the other and perturb each "
            "weight twice. The results are the same; pip install greenlet makes steps faster"
        )
    return greenlet is not None
