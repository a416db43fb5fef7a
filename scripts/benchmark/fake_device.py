"""A card that is not there, for counting: tensors with shapes and devices, without values and without memory.

Beside torch's FakeTensorMode, a count of the bytes of the card that are in use, and kernels of `llava.mezo` that do
nothing: the engine's own code decides what is made, copied and dropped, and when.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from measuring import LiveStorages
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from llava.mezo import trained
from llava.mezo.kernels.interface import Aim, Kernel, Part, Piece, Weight, laid_out
from llava.mezo.offloading import weights as offload
from llava.mezo.scratch import ScratchPool
from llava.mezo.tables import PerturbedTable, Source
from llava.mezo.updates import Update

CARD = torch.device("cuda", 0)


class Memory(LiveStorages):
    """Counts the bytes of tensors on the card, memory that they share once."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                self.count(tensor)
        return result


@contextmanager
def fake_card() -> Iterator[Memory]:
    """Within it tensors are fake ones; gives the count of the card's memory."""
    memory = Memory()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # that a fake tensor's address means nothing
        for name, method in {"__getitem__": _indexed, "copy_": _copied, "contiguous": _contiguous}.items():
            stack.enter_context(mock.patch.object(torch.Tensor, name, method))
        stack.enter_context(mock.patch("torch.nn.functional.scaled_dot_product_attention", _attention))
        for module in (offload, trained):
            stack.enter_context(mock.patch.object(module, "kernel_for", lambda *given: Kernel("none", _NoTable)))
        stack.enter_context(mock.patch("torch.cuda.is_available", lambda: False))
        stack.enter_context(mock.patch("torch.cuda._lazy_init"))
        stack.enter_context(mock.patch.object(ScratchPool, "empty", _empty))
        stack.enter_context(mock.patch.object(PerturbedTable, "make", staticmethod(Table)))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(memory)
        yield memory


def _indexed(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """`tensor[index]` for numbers, slices, None, dots and tensors, in operations that do not ask for CUDA's runtime."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(item is Ellipsis for item in items):
        place = next(k for k, item in enumerate(items) if item is Ellipsis)
        given = sum(item is not None for item in items) - 1
        items[place : place + 1] = [slice(None)] * (tensor.ndim - given)
    dimension, chosen = 0, []
    for item in items:
        if isinstance(item, int):
            tensor = torch.ops.aten.select(tensor, dimension, item)
            continue
        if item is None:
            tensor = torch.ops.aten.unsqueeze(tensor, dimension)
        elif isinstance(item, slice):
            tensor = torch.ops.aten.slice(tensor, dimension, item.start, item.stop, item.step or 1)
        chosen.append(item if isinstance(item, torch.Tensor) else None)
        dimension += 1
    return tensor if all(item is None for item in chosen) else torch.ops.aten.index(tensor, chosen)


def _copied(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return tensor


def _attention(query: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
    """What flash attention keeps on the card: its result alone."""
    return torch.empty_like(query)


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def _empty(pool: ScratchPool, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


class Table:
    """In the place of a `PerturbedTable`, which is a tensor and so cannot be a fake one."""

    def __init__(self, raw: torch.Tensor, source: Source, number: int) -> None:
        self.shape, self.dtype, self.device, self.ndim = raw.shape, raw.dtype, raw.device, raw.dim()
        self._source, self._number = source, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source.whole(self._number), name)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        first, last, _ = rows.indices(self.shape[0])
        return self._source.span(self._number, first, last)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.embedding:
            return args[1]._source.rows(args[1]._number, args[0])
        whole = [one._source.whole(one._number) if isinstance(one, Table) else one for one in args]
        return function(*whole, **(kwargs or {}))


class _NoTable:
    """Kernels that compute nothing."""

    def __init__(self, weights: Sequence[Weight], noise: str) -> None:
        self.weights = weights

    def part(self, pieces: Sequence[Piece]) -> Part:
        return laid_out(self.weights, pieces)

    def aim(self, aim: Aim) -> None:
        pass

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        pass

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        pass

    def update(self, updates: Sequence[Update]) -> None:
        pass
