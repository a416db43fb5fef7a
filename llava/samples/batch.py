"""A batch on its way from a data loader's process: its tensors travel as one.

PyTorch hands each tensor over through a file descriptor and a connection of its own, which costs the training process
milliseconds in each step.
"""

from __future__ import annotations

from typing import Any

import torch

ALIGNMENT = 64

Place = tuple[int, torch.dtype, torch.Size]


class Batch(dict[str, Any]):
    """A dict of tensors, lists with tensors in them, and other values."""

    def __reduce__(self) -> tuple[Any, ...]:
        places: list[tuple[Place, torch.Tensor]] = []
        end = 0

        def put(value: Any) -> Any:
            nonlocal end
            if isinstance(value, list):
                return [put(element) for element in value]
            if not isinstance(value, torch.Tensor):
                return value
            place = _Placed((end, value.dtype, value.shape))
            places.append((place, value))
            end += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
            return place

        values = {name: put(value) for name, value in self.items()}
        together = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))  # type: ignore[call-overload, unused-ignore]
        for place, tensor in places:
            _view(together, place).copy_(tensor)
        return _unpacked, (together, values)

    def __copy__(self) -> Batch:
        return Batch(self)


class _Placed(tuple[Any, ...]):
    """Where a tensor lies in the bytes: first byte, dtype, shape."""


def _unpacked(together: torch.Tensor, values: dict[str, Any]) -> Batch:
    def take(value: Any) -> Any:
        if isinstance(value, list):
            return [take(element) for element in value]
        return _view(together, value) if isinstance(value, _Placed) else value

    return Batch({name: take(value) for name, value in values.items()})


def _view(together: torch.Tensor, place: Place) -> torch.Tensor:
    start, dtype, shape = place
    count = shape.numel() * dtype.itemsize
    return together[start : start + count].view(dtype).view(shape)
