"""Trained weights that live in the host's memory, and come to the device for the time that they are used.

A layer (an entry of a ModuleList) comes up as a whole, frozen weights included, while the one before it runs
(`cargo.py`); a weight outside of all layers comes by itself, an output head in slices. The update of a step is not
applied at its end: it is kept, and applied on the device when the weights come up for the next step, from where they go
back. So a weight crosses the bus once in either direction in a step whose forwards run side by side. Whoever reads the
host's weights calls `flush` first, which applies what is left there; kernels agree, so it makes no difference where
(`kernels/`). Rows of an embedding matrix are looked up, and perturbed, on the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from llava.mezo.config import KERNEL_DEVICES
from llava.mezo.head import chunk_rows
from llava.mezo.kernels.choice import kernel_for
from llava.mezo.kernels.interface import Kernel, Part, Weight, WeightTable
from llava.mezo.kernels.interface import Piece as Elements
from llava.mezo.offloading.bus import Bus
from llava.mezo.offloading.cargo import Cargo, Piece, Slot, Slots, moves, placeholder
from llava.mezo.offloading.host_reads import HostReads
from llava.mezo.passes import Passes
from llava.mezo.scratch import Memory
from llava.mezo.trained import Copies, TrainedWeights, anyone
from llava.mezo.units import layers_of, owned_parameters
from llava.mezo.updates import Update
from llava.mezo.weights import Storage

MOST_KEPT = 64
"""Updates that wait for weights which do not come up; then the host applies them."""


class OffloadedWeights(TrainedWeights):
    """`TrainedWeights` whose storages are on the host and whose copies are on `device`.

    Args:
        device: where forwards run; of type "cpu", it is memory beside the weights, which tests make use of.
    """

    def __init__(
        self,
        storages: Sequence[Storage],
        noise: str,
        kernel: str,
        groups: Sequence[int] | None,
        sizes: Sequence[float],
        device: torch.device,
    ) -> None:
        self.device = torch.empty(0, device=device).device  # with its number
        self.bus = Bus(self.device)
        self._log: list[Update] = []
        self._done: dict[Cargo, int] = {}
        """Of each cargo, how many of the log it has; none, where it is not there."""
        self._pinned = False
        self._arranged: tuple[nn.Module, dict[nn.Parameter, int]] | None = None
        super().__init__(storages, noise, kernel, groups, sizes)

    apart = True

    def other_reads(self, model: nn.Module, numbers: dict[nn.Parameter, int], passes: Passes) -> HostReads:
        self.arrange(model, numbers)
        return HostReads(self, numbers, passes)

    def _build(self) -> None:
        super()._build()
        if self._arranged is not None:
            self.arrange(*self._arranged)

    def _kernel_on(self, device: torch.device) -> Kernel:
        allowed = KERNEL_DEVICES.get(self.kernel)
        host = device.type == "cpu" != self.device.type
        return kernel_for("auto" if host and allowed and "cpu" not in allowed else self.kernel, device.type, self.noise)

    def arrange(self, model: nn.Module, numbers: dict[nn.Parameter, int]) -> None:
        """Find out what is copied together. Layers in 4 or 8 bits move to the device, and stay there."""
        if self._arranged is not None:
            self.flush()
            self.bus.finish()  # before the memory goes that is copied to
        self._arranged = model, numbers
        for module in model.modules():
            for name, parameter in owned_parameters(module).items():
                if not moves(parameter) and parameter.device != self.device:
                    module._parameters[name] = parameter.to(self.device)  # type: ignore[assignment]
        self.blocks = _blocks(model, numbers)
        self._block_of = {piece.number: block for block in self.blocks.values() for piece in _trained(block)}
        self._pieces: dict[torch.Tensor, tuple[Cargo, ...]] = {}
        self._numbers: dict[torch.Tensor, int] = dict(numbers.items())
        self._parameters = {number: p for p, number in numbers.items()}
        in_blocks = {piece.tensor for block in self.blocks.values() for piece in block.pieces}
        alone = [p for p in model.parameters() if moves(p) and p not in in_blocks]
        cargos = [*self.blocks.values(), *(piece for p in alone for piece in self.pieces_of(p))]
        size = max(cargo.size(self.storages) for cargo in cargos)
        self.slots = Slots(self._load, size, self.device)
        self._tables: dict[tuple[Cargo, Slot], _Table] = {}
        self._frozen = [p.detach() for p in model.parameters() if moves(p) and p not in numbers]
        self._pinned = False

    def pieces_of(self, tensor: torch.Tensor) -> tuple[Cargo, ...]:
        """A weight outside of all layers: slices of a matrix as `head.py` takes them, else all of it."""
        if tensor not in self._pieces:
            rows = chunk_rows(placeholder(tensor, self.device), 1) if tensor.dim() == 2 else 0
            self._pieces[tensor] = self._cut(tensor, rows)
        return self._pieces[tensor]

    def _cut(self, tensor: torch.Tensor, rows: int) -> tuple[Cargo, ...]:
        """Slices of so many rows; 0: all of it."""
        number = self._numbers.get(tensor)
        is_home = number is None or number not in self._block_of
        if not rows or not tensor.numel():
            return (Cargo((Piece.whole(tensor, number),), is_home),)
        starts = range(0, len(tensor), rows)
        return tuple(Cargo((Piece(tensor, a, min(a + rows, len(tensor)), number),), is_home) for a in starts)

    # ---- what comes and goes

    def _load(self, slot: Slot, cargo: Cargo) -> None:
        if not self._pinned:
            self._pinned = True
            self.bus.pin([*(storage.value for storage in self.storages), *self._frozen])
        pairs = slot.lay_out(cargo, self.storages)
        slot.ready = self.bus.up(pairs, (slot.written, cargo.written))

    def land(self, cargo: Cargo) -> Slot:
        """The cargo on the device, with all updates."""
        slot = self.slots.take(cargo, cargo.size(self.storages))
        self.bus.join(slot.ready)
        slot.ready = None
        waiting = self._waiting(cargo)
        if waiting:
            self._table(slot).table.update(waiting)
            self._done[cargo] = len(self._log)
            back = [(p.of(self.storages[p.number].value), slot.values[p.tensor]["value"]) for p in _trained(cargo)]
            slot.written = cargo.written = self.bus.down(back)
            if not self.slots.has(slot):
                self.bus.join(slot.written)  # its memory goes with it
        return slot

    def enter(self, block: Cargo) -> None:
        """A forward of this layer begins."""
        self.land(block).users += 1
        self.slots.fill_ahead()

    def leave(self, block: Cargo) -> None:
        """It ends."""
        slot = self.slots.holding(block)
        if slot is not None:
            slot.users -= 1
        self.slots.fill_ahead()

    def end_of_use(self) -> None:
        """No forward is running."""
        self.slots.end_of_use()

    def running(self, tensor: torch.Tensor) -> Slot | None:
        """The slot of a running layer that has this tensor."""
        return next((slot for slot in self.slots.in_use() if tensor in slot.values), None)

    def _waiting(self, cargo: Cargo) -> list[Update]:
        """Updates that it does not have yet."""
        return self._log[self._done.get(cargo, 0) :] if cargo.is_home and any(_trained(cargo)) else []

    def _table(self, slot: Slot) -> _Table:
        assert slot.cargo is not None
        if slot.table is None:
            key = slot.cargo, slot
            slot.table = self._tables.get(key)
            if slot.table is None:
                slot.table = _Table(self._kernel_on(self.device), self._weights_of(slot.cargo, slot.values), self.noise)
            if slot.cargo.is_home and self.slots.has(slot):
                self._tables[key] = slot.table
        return slot.table  # type: ignore[no-any-return]

    def _weights_of(self, cargo: Cargo, values: Any = None) -> list[tuple[int, Weight]]:
        """Its trained weights for kernels: those on the device, or where they are stored."""
        found = []
        for piece in _trained(cargo):
            storage = self.storages[piece.number]
            here = {"value": piece.of(storage.value)} if values is None else values[piece.tensor]
            grid = storage.grid
            if grid is not None and values is not None:
                grid = type(grid)(here["steps"], grid.width)
            weight = Weight(
                here["value"],
                piece.number,
                storage.dtype,
                self._classes.index(self._pairs[piece.number]),
                grid,
                piece.first * storage.shape[1:].numel(),
            )
            found.append((piece.number, weight))
        return found

    # ---- perturbed copies

    def perturbed(self, numbers: Sequence[int], points: Sequence[int], memory_of: Memory = anyone) -> list[Copies]:
        slot = self.running(self._parameters[numbers[0]]) if numbers[0] in self._block_of else None
        if slot is not None:
            part = self._table(slot).part(numbers)
            memory = self._memory(part, self.device, points, memory_of)
            self._table(slot).aimed(self._aim).perturb(part, memory)
            return [self._shaped(part, numbers, bytes_) for bytes_ in memory.values()]
        copies: list[Copies] = [{} for _ in points]
        for number in numbers:
            shape = self.storages[number].shape
            spans = self.span(number, 0, shape[0] if shape else 1, points, memory_of)
            for found, span in zip(copies, spans, strict=True):
                found[number] = span.view(shape)
        return copies

    def span(
        self, number: int, first: int, last: int, points: Sequence[int], memory_of: Memory = anyone
    ) -> list[torch.Tensor]:
        cargo = self.cargo_of(self._parameters[number], first, last)
        slot = self.land(cargo)
        table = self._table(slot)
        part = table.part((number,))
        memory = self._memory(part, self.device, points, memory_of)
        table.aimed(self._aim).perturb(part, memory)
        self.slots.fill_ahead()
        rest = self.storages[number].shape[1:]
        return [part.views(bytes_)[0].view(last - first, *rest) for bytes_ in memory.values()]

    def cargo_of(self, parameter: torch.Tensor, first: int, last: int) -> Cargo:
        """Slices of a weight: one of its pieces or, if they are taken otherwise, some of it as it is on the host.

        A trained one is brought up to date for this.
        """
        number = self._numbers.get(parameter)
        if number not in self._block_of:
            pieces = self.pieces_of(parameter)
            if first == 0 != last != pieces[0].pieces[0].last:  # from now on it is taken in slices of this size
                self._apply_on_host(pieces)
                pieces = self._pieces[parameter] = self._cut(parameter, last)
                self._done |= dict.fromkeys(pieces, len(self._log))
            for cargo in pieces:
                if (cargo.pieces[0].first, cargo.pieces[0].last) == (first, last):
                    return cargo
        if number is not None:
            self.settle(number)
        return Cargo((Piece(parameter, first, last, number),), is_home=False)

    def settle(self, number: int) -> None:
        """Bring a weight on the host up to date, by way of the device if it is outside of all layers."""
        block = self._block_of.get(number)
        if block is not None:
            self._apply_on_host([block])
        else:
            for cargo in self.pieces_of(self._parameters[number]):
                if self._waiting(cargo):
                    self.land(cargo)
                    self.slots.fill_ahead()
        self.bus.settle()

    def rows(self, number: int, rows: torch.Tensor, points: Sequence[int]) -> list[torch.Tensor]:
        self.settle(number)
        return [self.bus.send(copy) for copy in super().rows(number, rows.cpu(), points)]

    # ---- updates

    def update(self, updates: Sequence[Update]) -> None:
        """One is kept until the weights come up; several, as of a journal, are applied where the weights are."""
        self.refresh()
        if len(updates) == 1 and self._arranged is not None:
            if len(self._log) >= MOST_KEPT:
                self.flush()
            self._log += self._by_class(updates)
            return
        self.flush()
        super().update(updates)

    def flush(self) -> None:
        """Apply on the host all that waits: after that its weights are what they should be, and may be changed."""
        self.bus.settle()
        if self._arranged is None:
            return
        pieces = [cargo for cargos in self._pieces.values() for cargo in cargos]
        self._apply_on_host([*self.blocks.values(), *pieces])
        self._log.clear()
        self._done.clear()
        self.slots.drop()

    def _apply_on_host(self, cargos: Iterable[Cargo]) -> None:
        """To these; pieces with equally many updates in one pass over their weights."""
        behind: dict[int, list[Cargo]] = {}
        for cargo in cargos:
            if self._waiting(cargo):
                behind.setdefault(self._done.get(cargo, 0), []).append(cargo)
        if behind:
            self.bus.settle()
        for done, some in behind.items():
            for cargo in some:
                weights = [weight for _, weight in self._weights_of(cargo)]
                host = weights[0].value.device
                self._kernel_on(host).table(weights, self.noise).update(self._log[done:])
                self._done[cargo] = len(self._log)
                self.slots.drop(cargo)

    def close(self) -> None:
        """Flush, and give the device's memory and pinned memory back."""
        self.flush()
        self.bus.close()
        if self._arranged is not None:
            self._arranged = None
            self._tables.clear()
            self.slots.clear()


class _Table:
    """A kernel's table for the trained weights of a cargo in a slot."""

    def __init__(self, kernel: Kernel, weights: Sequence[tuple[int, Weight]], noise: str) -> None:
        self.table: WeightTable = kernel.table([weight for _, weight in weights], noise)
        self._place = {number: place for place, (number, _) in enumerate(weights)}
        self._counts = [weight.value.numel() for _, weight in weights]
        self._parts: dict[tuple[int, ...], Part] = {}
        self._aim: Any = None

    def part(self, numbers: Sequence[int]) -> Part:
        """Some of the weights, to be perturbed together."""
        key = tuple(numbers)
        if key not in self._parts:
            places = [self._place[number] for number in key]
            self._parts[key] = self.table.part([Elements(k, 0, self._counts[k]) for k in places])
        return self._parts[key]

    def aimed(self, aim: Any) -> WeightTable:
        """The table, at these points."""
        if self._aim is not aim:
            self.table.aim(aim)
            self._aim = aim
        return self.table


def _trained(cargo: Cargo) -> list[Any]:
    return [piece for piece in cargo.pieces if piece.number is not None]


def _blocks(model: nn.Module, numbers: dict[nn.Parameter, int]) -> dict[nn.Module, Cargo]:
    """Layers with all that they own, by their modules; a trained weight that is not one layer's alone is in none."""
    layers = {layer: _owned(layer) for layer in dict.fromkeys(layers_of(model))}
    inside = [inner for layer in layers for inner in layer.modules()]
    others = set(model.modules()) - set(inside)
    homes: dict[nn.Parameter, int] = {}
    for owned in [*layers.values(), *(list(owned_parameters(module).values()) for module in others)]:
        for parameter in owned:
            homes[parameter] = homes.get(parameter, 0) + 1
    blocks = {}
    for layer, owned in layers.items():
        chosen = [p for p in owned if moves(p) and (p not in numbers or homes[p] == 1)]
        if chosen:
            blocks[layer] = Cargo(tuple(Piece.whole(p, numbers.get(p)) for p in chosen))
    return blocks


def _owned(layer: nn.Module) -> list[nn.Parameter]:
    """All parameters within, but for matrices of which rows are looked up."""
    modules = [module for module in layer.modules() if not isinstance(module, nn.Embedding)]
    return list(dict.fromkeys(p for module in modules for p in owned_parameters(module).values()))
