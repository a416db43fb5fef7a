"""What is copied to a device together, and the two places there that take turns in holding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llava.mezo.kernels.interface import ALIGNMENT
from llava.mezo.weights import Storage


@dataclass(frozen=True)
class Piece:
    """Slices first ... last - 1 of a tensor of the host along dimension 0; all of one without dimensions."""

    tensor: torch.Tensor
    """A frozen one, or the parameter of a trained weight."""
    first: int
    last: int
    number: int | None = None
    """Of a trained weight."""

    @classmethod
    def whole(cls, tensor: torch.Tensor, number: int | None = None) -> Piece:
        """All of a tensor."""
        return cls(tensor, 0, len(tensor) if tensor.dim() else 1, number)

    def of(self, value: torch.Tensor) -> torch.Tensor:
        """The slices of this tensor, which may be stored elsewhere."""
        whole = value.dim() == 0 or (self.first, self.last) == (0, len(value))
        return value if whole else value[self.first : self.last]


@dataclass(eq=False)
class Cargo:
    """Pieces that are copied together: a layer's, or one piece of a weight outside of all layers.

    Attributes:
        is_home: whether it is always the same, and updates of its trained weights are kept for it until it comes up.
        written: event of its latest copy to the host.
    """

    pieces: tuple[Piece, ...]
    is_home: bool = True
    written: Any = None

    def sources(self, storages: Sequence[Storage]) -> list[tuple[Piece, str, torch.Tensor]]:
        """Tensors of the host that it consists of: values and, where these are on a grid, the steps of that."""
        found = []
        for piece in self.pieces:
            if piece.number is None:
                found.append((piece, "value", piece.of(piece.tensor.detach())))
                continue
            storage = storages[piece.number]
            found.append((piece, "value", piece.of(storage.value)))
            if storage.grid is not None:
                found.append((piece, "steps", storage.grid.steps))
        return found

    def size(self, storages: Sequence[Storage]) -> int:
        """Bytes that it takes on the device."""
        return sum(_aligned(source) for _, _, source in self.sources(storages))


@dataclass(eq=False)
class Slot:
    """Memory of the device for one cargo at a time.

    Attributes:
        users: forwards that are inside of the layer; the cargo stays as long as there are any.
        ready: event of the copy that fills it.
        written: event of the latest copy to the host.
        values: of each piece, what it consists of on the device.
    """

    memory: torch.Tensor
    cargo: Cargo | None = None
    users: int = 0
    ready: Any = None
    written: Any = None
    values: dict[torch.Tensor, dict[str, torch.Tensor]] = field(default_factory=dict)
    table: Any = None
    """Kernels for its trained weights, once they were asked for."""

    def lay_out(self, cargo: Cargo, storages: Sequence[Storage]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Give the memory to this cargo; targets and sources of the copies that are to fill it."""
        self.cargo, self.values, self.table = cargo, {}, None
        pairs, offset = [], 0
        for piece, name, source in cargo.sources(storages):
            target = _view(self.memory, offset, source)
            self.values.setdefault(piece.tensor, {})[name] = target
            pairs.append((target, source))
            offset += _aligned(source)
        return pairs


def moves(parameter: torch.Tensor) -> bool:
    """Whether it comes and goes: floating-point ones do; codes in 4 or 8 bits stay on the device."""
    return parameter.is_floating_point() and not hasattr(parameter, "quant_state")


def placeholder(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """One of this shape and dtype on the device, without memory."""
    return torch.empty((), dtype=tensor.dtype, device=device).expand(tensor.shape)


def _aligned(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


def _view(memory: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor of this shape and order of elements in the memory, `offset` bytes from its beginning."""
    flat = memory[offset : offset + like.numel() * like.element_size()].view(like.dtype)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    dense = reach == like.numel()  # transposed ones too, of which a product is the same bits only as they lie
    return flat.as_strided(like.shape, like.stride(), flat.storage_offset()) if dense else flat.view(like.shape)


class Slots:
    """Two slots, filled one ahead of what is used.

    What comes after what is learnt on the way: what followed the latest two the last time.

    Args:
        load: fills a slot with a cargo.
        size: bytes of each slot.
    """

    def __init__(self, load: Callable[[Slot, Cargo], None], size: int, device: torch.device) -> None:
        self._load = load
        self._size = size
        self._device = device
        self._slots: list[Slot] = []
        self._before: Cargo | None = None
        self._latest: Cargo | None = None
        self._next: dict[tuple[Cargo | None, Cargo | None], Cargo] = {}

    @property
    def bytes(self) -> int:
        """Of the device."""
        return sum(slot.memory.numel() for slot in self._slots)

    def holding(self, cargo: Cargo | None) -> Slot | None:
        """The slot that holds it, if one does."""
        return next((slot for slot in self._slots if cargo is not None and slot.cargo is cargo), None)

    def has(self, slot: Slot) -> bool:
        """Whether it is one of the two."""
        return slot in self._slots

    def in_use(self) -> list[Slot]:
        """Those of layers that are running."""
        return [slot for slot in self._slots if slot.users]

    def take(self, cargo: Cargo, size: int) -> Slot:
        """A slot with this cargo, filled now if it was not already.

        One that is too large for a slot gets memory of its own, as long as the caller keeps it.
        """
        slot = self.holding(cargo)
        if slot is None:
            slot = (self._free() if size <= self._size else None) or self._made(size)
            self._load(slot, cargo)
        if cargo.is_home and cargo is not self._latest:
            self._next[self._before, self._latest] = cargo
            self._before, self._latest = self._latest, cargo
        return slot

    def fill_ahead(self) -> None:
        """Begin to copy what should come next, if a slot is free for it."""
        cargo, slot = self._next.get((self._before, self._latest)), self._free()
        if cargo is None or slot is None or slot.cargo is self._latest or self.holding(cargo) is not None:
            return
        self._load(slot, cargo)

    def drop(self, cargo: Cargo | None = None) -> None:
        """Forget what is held of a cargo, or of all, since the host has something else now."""
        for slot in self._slots:
            if cargo is None or slot.cargo is cargo:
                slot.cargo, slot.table = None, None

    def clear(self) -> None:
        """Give the memory back."""
        self._slots.clear()
        self._next.clear()
        self._before = self._latest = None

    def end_of_use(self) -> None:
        """No layer is running, whatever was counted: a forward may have failed."""
        for slot in self._slots:
            slot.users = 0

    def _free(self) -> Slot | None:
        """A slot that nobody uses, rather not the latest."""
        if len(self._slots) < 2:
            self._slots.append(self._made(self._size))
            return self._slots[-1]
        free = [slot for slot in self._slots if not slot.users]
        return min(free, key=lambda slot: slot.cargo is self._latest and slot.cargo is not None, default=None)

    def _made(self, size: int) -> Slot:
        return Slot(torch.empty(size, dtype=torch.uint8, device=self._device))
