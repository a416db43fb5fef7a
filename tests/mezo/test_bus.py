"""Pinning the host's memory, as far as that can be tested without a card."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from llava.mezo.offloading import bus
from llava.mezo.offloading.bus import Bus
from llava.mezo.offloading.host_memory import MappedFiles, free_bytes

ELEMENTS = 2**20


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    file = tmp_path / "weights"
    file.write_bytes(bytes(4 * ELEMENTS))
    return torch.from_file(str(file), shared=False, size=ELEMENTS, dtype=torch.float32)


class Runtime:
    """CUDA's, which registers memory."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.registered: list[int] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.registered.append(address)
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        self.registered.remove(address)
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    monkeypatch.setattr(bus, "_runtime", lambda: made)
    return made


def with_a_card() -> Bus:
    one = Bus(torch.device("cpu"))
    one._real = True
    return one


def test_tensors_in_files_are_told_from_others(mapped: torch.Tensor) -> None:
    files = MappedFiles()
    assert mapped in files
    assert mapped[5:] in files
    assert torch.ones(ELEMENTS) not in files
    free = free_bytes()
    assert free is not None
    assert free > 2**20


def test_large_tensors_are_pinned_until_the_end(
    mapped: torch.Tensor, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    large, small, one = torch.ones(ELEMENTS), torch.ones(5), with_a_card()
    one.pin([large, small, mapped])
    assert runtime.registered == [large.data_ptr(), mapped.data_ptr()]
    one.close()
    assert runtime.registered == []


def test_what_does_not_fit_stays_in_its_files(
    mapped: torch.Tensor, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bus, "free_bytes", lambda: 2**20)
    large = torch.ones(ELEMENTS)
    with_a_card().pin([large, mapped])
    assert runtime.registered == [large.data_ptr()]
    assert "0.0 GB of weights stay in their files" in caplog.text


def test_memory_that_cannot_be_pinned_is_used_as_it_is(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.error = 2
    with_a_card().pin([torch.ones(ELEMENTS), torch.ones(ELEMENTS)])
    assert len(runtime.registered) == 1
    assert "cannot be pinned (CUDA error 2)" in caplog.text


def test_a_bus_counts_what_crosses() -> None:
    one, host, there = Bus(torch.device("cpu")), torch.ones(6), torch.zeros(6)
    assert one.up([(there, host)]) is None
    assert torch.equal(there, host)
    one.down([(host[:2], there[:2] * 3)])
    assert host.tolist() == [3, 3, 1, 1, 1, 1]
    assert (one.up_bytes, one.down_bytes) == (24, 8)
    assert torch.equal(one.send(host), host)
    assert one.up_bytes == 48


def test_streams_are_joined_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of CUDA: copies wait for the use of their memory, and nothing but `join` waits for them."""
    told: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            told.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: str) -> None:
            told.append(f"{self.name} waits for {event}")

        def record_event(self) -> str:
            return f"event of {self.name}"

        def synchronize(self) -> None:
            told.append(f"the host waits for {self.name}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    one = Bus(torch.device("cpu"))
    one._up, one._down = Stream("up"), Stream("down")  # type: ignore[assignment]
    pair = [(torch.zeros(1), torch.ones(1))]
    event = one.up(pair, (None, "an earlier copy"))
    one.join(event)
    one.down(pair)
    one.settle()
    assert told == [
        "up waits for main",
        "up waits for an earlier copy",
        "main waits for event of up",
        "down waits for main",
        "the host waits for down",
    ]
