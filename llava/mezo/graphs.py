"""CUDA graphs of functions of tensors: recorded once for each shape of the inputs, then launched as a whole.

A forward is thousands of kernels, and on a fast card Python launches them more slowly than they run. A function that
depends on its inputs and on tensors that stay where they are (weights, the seed in device memory) can be recorded and
launched again with other values, to the same bits.

A shape is run as it is the first time and recorded the second. All graphs share one pool of memory, since they never
run at the same time.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava.mezo.kernels.choice import kernel_for
from llava.mezo.measuring import Inputs
from llava.mezo.optimizer import MeZO
from llava.mezo.trained import TrainedWeights

logger = logging.getLogger(__name__)

GIB = 2**30

Function = Callable[[Inputs], torch.Tensor]


@dataclass
class _Recorded:
    graph: Any
    inputs: Inputs
    output: torch.Tensor
    size: int
    """Bytes of the device that recording it took."""

    def replay(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name], non_blocking=True)
        self.graph.replay()
        return self.output.clone()


class Graphs:
    """Runs functions of tensors on one CUDA device, as graphs where that can be.

    Args:
        limit_bytes: when graphs take more of the device's memory than this, those that were not used for the longest
            time go.
    """

    def __init__(self, device: torch.device, limit_bytes: float) -> None:
        self.device = device
        self.limit_bytes = limit_bytes
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()
        self._recorded: OrderedDict[Hashable, _Recorded | None] = OrderedDict()
        self._refused: set[Hashable] = set()

    def run(self, key: Hashable, function: Function, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`function(inputs)` for inputs on any device; the function gets them on this one.

        Args:
            key: tells functions apart: equal keys are the same function, which depends on its inputs alone.

        A function that is seen to wait for the device, or that cannot be recorded for another reason, is run as it is
        from then on, which the log says once.
        """
        shape = key, *((n, t.shape, t.dtype) for n, t in sorted(inputs.items()))
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            output = self._replay(key, shape, function, inputs)
            if output is None:
                output = function(self._moved(inputs))
        here.wait_stream(self.stream)
        return output

    def _replay(
        self, key: Hashable, shape: Hashable, function: Function, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """From the graph of this shape, which is recorded if it is the second time; None if there is none."""
        if key in self._refused:
            return None
        if shape not in self._recorded:
            self._recorded[shape] = None
            return self._first(key, function, inputs)
        recorded = self._recorded[shape] or self._record(key, function, inputs)
        if recorded is None:
            return None
        self._recorded[shape] = recorded
        self._recorded.move_to_end(shape)
        self._make_room()
        return recorded.replay(inputs)

    def _first(self, key: Hashable, function: Function, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The function as it is, which also loads its kernels; None if it waits for the device."""
        moved = self._moved(inputs)
        try:
            with _refusing_to_wait():
                return function(moved)
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            self._refuse(key, "it waits for the device")
        return None

    def _record(self, key: Hashable, function: Function, inputs: Mapping[str, torch.Tensor]) -> _Recorded | None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what the first run left: the graph has memory of its own
        free, _ = torch.cuda.mem_get_info(self.device)
        own = {n: t.to(self.device, copy=True) for n, t in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads of the process (a data loader's) may use CUDA meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                output = function(own)
        except RuntimeError as error:  # where it began is more telling than that the recording came to nothing
            self._refuse(key, str(error.__context__ or error).splitlines()[0])
            self._end_failed_recording()
            return None
        torch.cuda.synchronize(self.device)
        return _Recorded(graph, own, output, max(0, free - torch.cuda.mem_get_info(self.device)[0]))

    def _end_failed_recording(self) -> None:
        """Torch goes on as if it still recorded: memory comes from the graphs' pool, and random generators refuse.

        The former ends when it is told to, the latter with the next recording that succeeds.
        """
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
        self.pool = torch.cuda.graph_pool_handle()
        number = torch.zeros((), device=self.device)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=self.pool, stream=self.stream):
            number.zero_()

    def _refuse(self, key: Hashable, why: str) -> None:
        self._refused.add(key)
        logger.warning("mezo: no CUDA graph of %s, which runs as it is: %s", _name(key), why)

    def _make_room(self) -> None:
        while len(self._recorded) > 1 and sum(r.size for r in self._recorded.values() if r) > self.limit_bytes:
            self._recorded.popitem(last=False)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(recorded is not None for recorded in self._recorded.values())

    def clear(self) -> None:
        """Forget all graphs: tensors that they use have moved."""
        self._recorded.clear()

    def _moved(self, inputs: Mapping[str, torch.Tensor]) -> Inputs:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}


class Places:
    """Where the tensors of a model are: a graph reads and writes there, whatever becomes of them."""

    def __init__(self, model: nn.Module) -> None:
        self._found = [
            (table, name, tensor, tensor.data_ptr())
            for module in model.modules()
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]

    def unmoved(self) -> bool:
        """Whether each is still the same, in the same place."""
        return all(table.get(name) is t and t.data_ptr() == place for table, name, t, place in self._found)


class ForwardGraphs:
    """Graphs of an optimizer's forwards; a `Recorder`. They go when a tensor of its model has moved."""

    def __init__(self, graphs: Graphs, mezo: MeZO) -> None:
        self.graphs = graphs
        self.mezo = mezo
        self._places, self._version = Places(mezo.perturbation.model), mezo.weights.version

    def run(self, key: Hashable, function: Function, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `Graphs.run`."""
        self.mezo.weights.refresh()
        if self._version != self.mezo.weights.version or not self._places.unmoved():
            self._places, self._version = Places(self.mezo.perturbation.model), self.mezo.weights.version
            self.clear()
        return self.graphs.run(key, function, inputs)

    def clear(self) -> None:
        """Forget all graphs."""
        self.graphs.clear()


def record_forwards(mezo: MeZO, wanted: str = "auto", gigabytes: float = 4.0) -> None:
    """Have forwards whose inputs are tensors recorded, where they can be; to the same bits.

    Args:
        wanted: "auto", or "off" for none.
        gigabytes: memory of the device, in GiB, that graphs may take; the least used go.
    """
    alone = mezo.course.estimator.several_seeds or mezo.weights.sharded or mezo.weights.apart
    graphs = graphs_for(mezo.weights, "off" if alone else wanted, gigabytes)
    mezo.recorder = None if graphs is None else ForwardGraphs(graphs, mezo)


def graphs_for(weights: TrainedWeights, wanted: str, gigabytes: float) -> Graphs | None:
    """Graphs for forwards with these weights, or None: off, not on CUDA, or (said once) where they cannot be."""
    devices = list(weights.tables)
    if wanted == "off" or all(device.type != "cuda" for device in devices):
        return None
    kernels = {kernel_for(weights.kernel, device.type, weights.noise).name for device in devices}
    if len(devices) > 1 or kernels != {"triton"}:
        logger.warning(
            "mezo: no CUDA graphs, which take one device and the triton kernel; trained weights are on %s, kernel %s",
            ", ".join(map(str, devices)),
            ", ".join(sorted(kernels)),
        )
        return None
    return Graphs(devices[0], gigabytes * GIB)


def _name(key: Hashable) -> str:
    function = key[0] if isinstance(key, tuple) else key
    function = getattr(function, "func", function)
    return getattr(function, "__name__", str(function))


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Operations that wait for the device raise RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is a prototype feature
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
