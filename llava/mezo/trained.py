"""All trained weights of a run: perturbed copies of them, and updates.

This is what the perturbed forward and the optimizer know of weights; how each is stored (`weights.py`) and who computes
(`kernels/`) is settled here. The weights of each device have one table of kernels, which is prepared once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from llava.mezo.algorithms.interface import Point
from llava.mezo.kernels.choice import kernel_for
from llava.mezo.kernels.interface import Aim, Kernel, Part, Piece, Weight, WeightTable
from llava.mezo.passes import Passes
from llava.mezo.scratch import Memory, ScratchPool
from llava.mezo.updates import Update, as_float32
from llava.mezo.weights import Storage

Copies = dict[int, torch.Tensor]
"""Perturbed copies by the number of their weight."""


def anyone(point: int) -> AbstractContextManager[Any]:
    """Memory as it is given out otherwise."""
    return nullcontext()


@dataclass(frozen=True)
class Unit:
    """Weights that are perturbed together: a part for each device that holds some of them."""

    numbers: tuple[int, ...]
    parts: tuple[tuple[torch.device, Part, tuple[int, ...]], ...]
    """Device, part, numbers of the weights in it."""


class OtherReads(Protocol):
    """Reads of weights as they are, for a forward that runs elsewhere than the model is."""

    def parameter(self, parameter: torch.Tensor) -> Any:
        """What a read gives."""

    def listed(self, parameter: torch.Tensor) -> torch.Tensor:
        """What a list of parameters has in its place: shape, dtype and device, and no values."""

    def stand_ins(self, modules: Iterable[nn.Module], read: Callable[[Any], Any]) -> Iterator[Any]:
        """For the modules' tables of parameters and buffers, see `perturb.py`; `read` gives a parameter."""

    def watch(self, hooks: ExitStack) -> None:
        """Have hooks put on modules, until the stack is closed."""


class TrainedWeights:
    """The trained weights in the order of their numbers, which select their noise.

    Args:
        groups: of each weight, which of an update's coefficients, and of a point's scales, are its own; default: all
            the first.
        sizes: of each weight, a factor of its noise; default: 1.
    """

    sharded = False
    """Whether each process holds a part of every weight."""
    apart = False
    """Whether the modules of a layer are perturbed one by one, since its weights are on the device for a while only."""
    perturbs = True
    """Whether copies are made at the points that were aimed at, and not of the weights as they are."""

    def __init__(
        self,
        storages: Sequence[Storage],
        noise: str,
        kernel: str,
        groups: Sequence[int] | None = None,
        sizes: Sequence[float] = (),
    ) -> None:
        self.storages = list(storages)
        self.noise = noise
        self.kernel = kernel
        self.groups = list(groups) if groups is not None else [0] * len(self.storages)
        self._pairs = list(zip(self.groups, sizes or [1.0] * len(self.groups), strict=True))
        self._classes = list(dict.fromkeys(self._pairs))
        """Group and size of the noise of weights that are treated alike, which are a group to kernels."""
        self.pool = ScratchPool()
        self._aim = Aim.along(0, (0.0,), len(self._classes))
        self.version = 0
        """Grows whenever a weight has moved to other memory."""
        self._build()

    def _build(self) -> None:
        self.version += 1
        self._addresses = self._current_addresses()
        self._place: dict[int, tuple[torch.device, int]] = {}
        weights: dict[torch.device, list[Weight]] = {}
        for number, (storage, pair) in enumerate(zip(self.storages, self._pairs, strict=True)):
            there = weights.setdefault(storage.device, [])
            self._place[number] = storage.device, len(there)
            group = self._classes.index(pair)
            there.append(Weight(storage.value, number, storage.dtype, group, storage.grid, storage.first))
        self.tables: dict[torch.device, WeightTable] = {
            device: self._kernel_on(device).table(some, self.noise) for device, some in weights.items()
        }
        self._spans: dict[tuple[int, int, int], Part] = {}
        self._units: dict[tuple[int, ...], Unit] = {}
        self._aim_tables()

    def _kernel_on(self, device: torch.device) -> Kernel:
        return kernel_for(self.kernel, device.type, self.noise)

    def refresh(self) -> None:
        """Prepare anew if a weight has moved to other memory."""
        if self._addresses != self._current_addresses():
            self._build()

    def _current_addresses(self) -> list[int]:
        return [storage.address for storage in self.storages]

    def aim(self, points: Sequence[Point], undone: Sequence[Update] = ()) -> None:
        """Copies are made at these points, one or two with the same seeds, from now on.

        Args:
            undone: updates, of no decay, that are taken back for them, the latest first.
        """
        seeds = [seed for update in undone for seed in update.seeds]
        groups = range(1 + max(self.groups))
        back = [[-c for update in undone for c in update.coefficients[group]] for group in groups]
        scales = [[(*back[group], *point.scales) for group in groups] for point in points]
        self._aim = Aim((*seeds, *points[0].seeds), tuple(map(self._of_classes, scales)))
        self._aim_tables()

    def _aim_tables(self) -> None:
        for table in self.tables.values():
            table.aim(self._aim)

    def _of_classes(self, of_groups: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
        """Factors of noise, one a pair, of each class from those of each group."""
        return tuple(tuple(as_float32(factor * size) for factor in of_groups[group]) for group, size in self._classes)

    def other_reads(self, model: nn.Module, numbers: dict[nn.Parameter, int], passes: Passes) -> OtherReads | None:
        """Of a model that is elsewhere than its forward runs; None of any other."""
        return None

    def unperturbed(self) -> AbstractContextManager[None]:
        """Within it, copies at a scale of 0 have the bits of the weights."""
        return nullcontext()

    def flush(self) -> None:
        """Let the storages be what they should be. Nothing waits where weights are updated at once."""

    def close(self) -> None:
        """Flush, and give back what belongs to training."""

    def report(self) -> dict[str, Any]:
        """What a run's report says of where the weights are."""
        return {}

    def finish(self, point: int) -> None:
        """A forward at this point has ended. Nothing to do where no other process waits for this one."""

    def unit(self, numbers: Sequence[int]) -> Unit:
        """Weights to be perturbed together."""
        key = tuple(numbers)
        if key not in self._units:
            by_device: dict[torch.device, list[int]] = {}
            for number in numbers:
                by_device.setdefault(self._place[number][0], []).append(number)
            parts = []
            for device, some in by_device.items():
                pieces = [Piece(self._place[n][1], 0, self.storages[n].value.numel()) for n in some]
                parts.append((device, self.tables[device].part(pieces), tuple(some)))
            self._units[key] = Unit(key, tuple(parts))
        return self._units[key]

    def perturbed(self, numbers: Sequence[int], points: Sequence[int], memory_of: Memory = anyone) -> list[Copies]:
        """The weights at each of the points; `memory_of`: see `passes.py`."""
        copies: list[Copies] = [{} for _ in points]
        for device, part, some in self.unit(numbers).parts:
            memory = self._memory(part, device, points, memory_of)
            self.tables[device].perturb(part, memory)
            for found, bytes_ in zip(copies, memory.values(), strict=True):
                found.update(self._shaped(part, some, bytes_))
        return copies

    def _shaped(self, part: Part, numbers: Sequence[int], memory: torch.Tensor) -> Copies:
        typed = {dtype: memory.view(dtype) for dtype in set(part.dtypes)}
        copies = {}
        for number, dtype, offset in zip(numbers, part.dtypes, part.offsets, strict=True):
            value = self.storages[number].value
            copies[number] = typed[dtype].as_strided(value.shape, value.stride(), offset // dtype.itemsize)
        return copies

    def span(
        self, number: int, first: int, last: int, points: Sequence[int], memory_of: Memory = anyone
    ) -> list[torch.Tensor]:
        """Slices first ... last - 1 along dimension 0, at each of the points."""
        storage, (device, index) = self.storages[number], self._place[number]
        rest = storage.shape[1:]
        key = number, first, last
        if key not in self._spans:
            piece = Piece(index, first * rest.numel(), (last - first) * rest.numel())
            self._spans[key] = self.tables[device].part([piece])
        part = self._spans[key]
        memory = self._memory(part, device, points, memory_of)
        self.tables[device].perturb(part, memory)
        return [part.views(bytes_)[0].view(last - first, *rest) for bytes_ in memory.values()]

    def rows(self, number: int, rows: torch.Tensor, points: Sequence[int]) -> list[torch.Tensor]:
        """Rows `rows` [...] (integers 0 to V-1) of a matrix [V, D], at each of the points, as [..., D].

        For rows that the matrix does not have see `WeightTable.look_up`.
        """
        storage, (device, index) = self.storages[number], self._place[number]
        flat = rows.reshape(-1).to(device=device, dtype=torch.int64)
        shape = torch.Size((len(flat), storage.shape[1]))
        copies = {point: self.pool.empty(shape, storage.dtype, device) for point in points}
        self.tables[device].look_up(index, flat, copies)
        return [copy.view(*rows.shape, shape[1]) for copy in copies.values()]

    def update(self, updates: Sequence[Update]) -> None:
        """Change all weights by one update after the other; see `kernels/interface.py` for the arithmetic."""
        self.refresh()
        by_class = self._by_class(updates)
        for table in self.tables.values():
            table.update(by_class)

    def _by_class(self, updates: Sequence[Update]) -> list[Update]:
        """As kernels take them."""
        return [
            Update(u.seeds, self._of_classes(u.coefficients), tuple(u.decays[group] for group, _ in self._classes))
            for u in updates
        ]

    def _memory(
        self, part: Part, device: torch.device, points: Sequence[int], memory_of: Memory
    ) -> dict[int, torch.Tensor]:
        """For the copies of a part at each point."""
        memory = {}
        for point in points:
            with memory_of(point):
                memory[point] = self.pool.empty(torch.Size((part.size,)), torch.uint8, device)
        return memory
