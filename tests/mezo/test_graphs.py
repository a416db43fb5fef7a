"""When functions are recorded as CUDA graphs, replayed, refused and forgotten; on a device that records calls alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.graphs import ForwardGraphs, Graphs, Places, graphs_for
from llava.mezo.trained import TrainedWeights
from llava.mezo.weights import store

GRAPH_BYTES = 100


class Device:
    """Stands in for torch.cuda, on the CPU. A graph that is launched calls what was recorded again."""

    def __init__(self) -> None:
        self.capturing = False
        self.recorded = 0
        self.launched = 0
        self.free = 1000
        self.waiting = "default"

    def __enter__(self) -> Device:
        self._stack = contextlib.ExitStack()
        replaced = {
            "Stream": lambda device: mock.MagicMock(),
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda device=None: mock.MagicMock(),
            "current_device": lambda: 0,
            "graph_pool_handle": lambda: (0, 1),
            "CUDAGraph": lambda: Graph(self),
            "graph": self.graph,
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None,
            "mem_get_info": lambda device=None: (self.free, 1000),
            "get_sync_debug_mode": lambda: self.waiting,
            "set_sync_debug_mode": lambda mode: setattr(self, "waiting", mode),
        }
        for name, value in replaced.items():
            self._stack.enter_context(mock.patch(f"torch.cuda.{name}", value))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def graph(self, graph: Graph, **settings: Any) -> Iterator[None]:
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
        self.recorded += 1
        self.free -= GRAPH_BYTES

    def wait(self) -> None:
        """What `.item()` would do."""
        if self.waiting == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


class Graph:
    def __init__(self, device: Device) -> None:
        self.device = device

    def replay(self) -> None:
        self.device.launched += 1


@pytest.fixture
def device() -> Iterator[Device]:
    with Device() as device:
        yield device


def make(limit: float = 1e9) -> Graphs:
    return Graphs(torch.device("cpu"), limit)


def inputs(length: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.ones(length)}


def twice(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return 2 * tensors["x"]


def test_the_second_call_of_a_shape_records_and_the_next_ones_launch(device: Device) -> None:
    graphs, seen = make(), []
    for number in range(5):
        graphs.run("twice", lambda t, number=number: seen.append(number) or twice(t), inputs())
    assert (seen, device.recorded, device.launched) == ([0, 1], 1, 4)
    assert graphs.run("twice", twice, inputs(4)).tolist() == [2.0] * 4  # another shape is run as it is
    assert (device.recorded, graphs.count) == (1, 1)


def test_a_graph_reads_its_inputs_where_they_were_recorded(device: Device) -> None:
    graphs = make()
    for _ in range(2):
        graphs.run("twice", twice, inputs())
    (recorded,) = (r for r in graphs._recorded.values() if r is not None)
    graphs.run("twice", twice, {"x": torch.full((3,), 7.0)})
    assert recorded.inputs["x"].tolist() == [7.0] * 3


def test_what_it_gives_is_not_overwritten_by_the_next_launch(device: Device) -> None:
    graphs = make()
    outputs = [graphs.run("twice", twice, inputs()) for _ in range(4)]
    assert len({output.data_ptr() for output in outputs}) == 4


def test_dtypes_and_keys_have_graphs_of_their_own(device: Device) -> None:
    graphs = make()
    for _ in range(2):
        graphs.run("one", twice, inputs())
        graphs.run("other", twice, inputs())
        graphs.run("one", twice, {"x": torch.ones(3, dtype=torch.long)})
    assert graphs.count == 3


def test_the_least_recently_used_go_when_memory_is_reached(device: Device) -> None:
    graphs = make(limit=2.5 * GRAPH_BYTES)
    for length in (1, 2, 3):
        graphs.run("twice", twice, inputs(length))
    for length in (1, 2, 1, 3):  # the third graph is one too many, and 2 was used before 1
        graphs.run("twice", twice, inputs(length))
    assert (device.recorded, graphs.count) == (3, 2)
    graphs.run("twice", twice, inputs(1))
    assert device.recorded == 3
    graphs.run("twice", twice, inputs(2))
    graphs.run("twice", twice, inputs(2))
    assert device.recorded == 4


def test_a_single_graph_stays_however_large_it_is(device: Device) -> None:
    graphs = make(limit=1)
    for _ in range(4):
        graphs.run("twice", twice, inputs())
    assert (device.recorded, graphs.count) == (1, 1)


@pytest.mark.parametrize(
    ("waits", "message"),
    [
        (lambda device: True, "it waits for the device"),
        (lambda device: device.capturing, "operation not permitted when stream is capturing"),
    ],
)
def test_a_function_that_waits_runs_as_it_is_and_the_log_says_so_once(
    waits: Callable[[Device], bool], message: str, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    def waiting(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if waits(device):
            device.wait()
        return twice(tensors)

    graphs = make()
    with caplog.at_level(logging.WARNING):
        results = [graphs.run(waiting, waiting, inputs(length)).tolist() for length in (3, 3, 3, 4, 4, 4)]
    assert results == [[2.0] * 3] * 3 + [[2.0] * 4] * 3
    assert graphs.count == 0
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"mezo: no CUDA graph of waiting, which runs as it is: {message}"]
    assert device.waiting == "default"
    for _ in range(2):  # another function is recorded all the same
        graphs.run(twice, twice, inputs())
    assert graphs.count == 1


def test_other_errors_are_the_callers(device: Device) -> None:
    def wrong(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        make().run(wrong, wrong, inputs())
    assert device.waiting == "default"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).square().mean()


def test_the_optimizer_forgets_graphs_of_weights_that_have_moved(device: Device) -> None:
    model = Small()
    mezo = MeZO(model.parameters(), model, MeZOConfig())
    graphs = make()
    mezo.recorder = ForwardGraphs(graphs, mezo)

    def loss(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(tensors["x"])

    def step(number: int) -> None:
        mezo.accumulate(number, loss, {"x": torch.ones(2, 4)})
        mezo.step()

    for number in range(3):
        step(number)
    assert (device.recorded, graphs.count) == (1, 1)
    model.layer.bias.data = model.layer.bias.data.clone()
    step(3)
    assert graphs.count == 0
    model.register_buffer("offset", torch.zeros(1))  # another module's tensors may matter as well
    step(4)
    step(5)
    assert graphs.count == 1
    mezo.release()
    assert graphs.count == 0


def test_places_notice_what_moves() -> None:
    model = Small()
    places = Places(model)
    model.layer.weight.data.add_(1)
    assert places.unmoved()
    model.layer.weight.data = model.layer.weight.data.clone()
    assert not places.unmoved()
    places = Places(model)
    model.layer.weight = nn.Parameter(model.layer.weight.data)
    assert not places.unmoved()


def test_no_graphs_without_cuda_or_where_they_are_off() -> None:
    weights = TrainedWeights([store(nn.Parameter(torch.ones(4)), "native")], "gaussian", "auto")
    assert graphs_for(weights, "auto", 1.0) is None
    assert graphs_for(weights, "off", 1.0) is None


def test_graphs_take_the_kernel_whose_launches_read_the_device(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    weights = TrainedWeights([store(nn.Parameter(torch.ones(4)), "native")], "gaussian", "torch")
    weights.tables = {torch.device("cuda"): next(iter(weights.tables.values()))}
    assert graphs_for(weights, "auto", 1.0) is None
    assert "no CUDA graphs, which take one device and the triton kernel; trained weights are on cuda" in caplog.text
