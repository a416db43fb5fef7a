"""Copies between the host's memory and a device's, on streams of their own, and how many bytes they were."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from llava.mezo.offloading.host_memory import MappedFiles, free_bytes

logger = logging.getLogger(__name__)

Pairs = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Target and source of each copy."""

SMALLEST_PINNED = 2**20
"""Bytes; the pages of a smaller tensor may hold others, too."""


class Bus:
    """To and from `device`. On CUDA a copy waits for nothing but what its memory is used for, and nobody for it.

    On other devices, the CPU among them, copies are made at once. An event that a method gives is None there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.up_bytes = 0
        """To the device so far."""
        self.down_bytes = 0
        """From it."""
        self._real = device.type == "cuda" and torch.cuda.is_available()
        self._up = torch.cuda.Stream(device) if self._real else None  # type: ignore[no-untyped-call]
        self._down = torch.cuda.Stream(device) if self._real else None  # type: ignore[no-untyped-call]
        self._pinned: list[torch.Tensor] = []

    def up(self, pairs: Pairs, after: Iterable[Any] = ()) -> Any:
        """Begin to copy into memory of which all use was launched, behind the events `after`; gives an event."""
        pairs = list(pairs)
        self.up_bytes += sum(source.numel() * source.element_size() for _, source in pairs)
        if self._up is None:
            _copy(pairs)
            return None
        self._up.wait_stream(torch.cuda.current_stream(self.device))
        for event in filter(None, after):
            self._up.wait_event(event)
        with torch.cuda.stream(self._up):
            _copy(pairs)
            return self._up.record_event()

    def down(self, pairs: Pairs) -> Any:
        """Begin to copy to the host what was launched so far; gives an event."""
        pairs = list(pairs)
        self.down_bytes += sum(source.numel() * source.element_size() for _, source in pairs)
        if self._down is None:
            _copy(pairs)
            return None
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            _copy(pairs)
            return self._down.record_event()

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A small tensor of the host on the device."""
        self.up_bytes += tensor.numel() * tensor.element_size()
        return tensor.to(self.device)

    def join(self, event: Any) -> None:
        """What is launched from now on comes after the event."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def settle(self) -> None:
        """Wait until the host has all that was sent to it."""
        if self._down is not None:
            self._down.synchronize()

    def finish(self) -> None:
        """Wait for all copies."""
        if self._real:
            torch.cuda.synchronize(self.device)

    def pin(self, tensors: Iterable[torch.Tensor]) -> None:
        """Let the device read these tensors of the host where they are, so that nobody waits for their copies.

        Those that lie in files stay there if the host has no memory for all of them.
        """
        large = [t for t in tensors if t.numel() * t.element_size() >= SMALLEST_PINNED and not t.is_pinned()]
        if not self._real or not large:
            return
        files, free = MappedFiles(), free_bytes()
        needed = sum(t.numel() * t.element_size() for t in large if t in files)
        if free is not None and needed > free:
            logger.warning(
                "mezo: %.1f GB of weights stay in their files, since the host has %.1f GB of free memory: copies to "
                "the device are slower",
                needed / 1e9,
                free / 1e9,
            )
            large = [t for t in large if t not in files]
        for tensor in large:
            size = tensor.numel() * tensor.element_size()
            error = int(_runtime().cudaHostRegister(tensor.data_ptr(), size, 0))
            if error:
                logger.warning("mezo: memory of the host cannot be pinned (CUDA error %d): copies are slower", error)
                return
            self._pinned.append(tensor)

    def close(self) -> None:
        """Wait for all copies, and give pinned memory back to the system."""
        self.finish()
        for tensor in self._pinned:
            _runtime().cudaHostUnregister(tensor.data_ptr())
        self._pinned.clear()


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _copy(pairs: Pairs) -> None:
    for target, source in pairs:
        target.copy_(source, non_blocking=True)
