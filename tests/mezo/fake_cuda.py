"""A CUDA device that is not there: torch's FakeTensorMode, which knows devices, with values beside it, which it lacks.

Every operation runs twice: on fake tensors, which refuses tensors of two devices, and on plain CPU tensors that hold
the values. Where the result's shape or a Python number depends on values, the latter gives it.

A few methods of torch.Tensor ask for the CUDA runtime before they dispatch; they are written here in operations that
do not, since a build without CUDA has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from llava.mezo.kernels import torch_any
from llava.mezo.tables import PerturbedTable


class _WithValues(TorchDispatchMode):
    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        kwargs = dict(kwargs or {})
        values_kwargs = kwargs | ({"device": torch.device("cpu")} if kwargs.get("device") is not None else {})
        with _disable_current_modes():
            values = func(*_values(args), **_values(values_kwargs))
        try:
            with self.fake:
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            device = next(t.device for t in tree_flatten((args, kwargs))[0] if isinstance(t, FakeTensor))
            with self.fake:
                result = tree_map_only(
                    torch.Tensor,
                    lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device),
                    values,
                )
        for fake, value in zip(tree_flatten(result)[0], tree_flatten(values)[0], strict=True):
            if isinstance(fake, FakeTensor):
                assert fake.shape == value.shape
                # some by-products, such as the mean of a layer norm in 16 bits, differ in dtype between devices
                with _disable_current_modes():
                    fake.value = value.to(fake.dtype)  # type: ignore[attr-defined]
        return result


def _like(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _values(nested: Any) -> Any:
    return tree_map(lambda item: item.value if isinstance(item, FakeTensor) else item, nested)


@contextlib.contextmanager
def fake_cuda() -> Iterator[_WithValues]:
    """Within it, tensors may be made on "cuda"."""
    with contextlib.ExitStack() as stack:
        for name, method in _PATCHED.items():
            stack.enter_context(mock.patch.object(torch.Tensor, name, method))
        stack.enter_context(mock.patch("torch.cuda._lazy_init"))
        fake = stack.enter_context(FakeTensorMode())
        yield stack.enter_context(_WithValues(fake))


@contextlib.contextmanager
def tables_of_values() -> Iterator[None]:
    """A fake tensor cannot be a perturbed table at the same time, which is made of its values; and none is kept."""
    make = PerturbedTable.make

    def of_values(raw: Any, *rest: Any) -> PerturbedTable:
        with _disable_current_modes():
            return make(getattr(raw, "value", raw), *rest)

    torch_any._quantiles.cache_clear()
    try:
        with mock.patch.object(PerturbedTable, "make", staticmethod(of_values)):
            yield
    finally:
        torch_any._quantiles.cache_clear()


class DeviceReadError(Exception):
    """Something waited for the device."""


class Reads:
    """Whether the device may be read."""

    allowed = False


@contextlib.contextmanager
def refusing_reads() -> Iterator[Reads]:
    """Within it, whatever makes the host wait for the fake device raises DeviceReadError. Only within `fake_cuda`."""
    reads = Reads()

    def refuse(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def method(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not reads.allowed and isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                raise DeviceReadError(f"Tensor.{name} of {tuple(tensor.shape)}")
            return original(tensor, *args, **kwargs)

        return method

    def choose(tensor: torch.Tensor, index: Any, *rest: Any) -> Any:
        items = index if isinstance(index, tuple) else (index,)
        if not reads.allowed and any(isinstance(item, FakeTensor) and item.dtype == torch.bool for item in items):
            raise DeviceReadError(f"a boolean index into {tuple(tensor.shape)}")  # how many are true?
        return (_setitem if rest else _getitem)(tensor, index, *rest)

    with contextlib.ExitStack() as stack:
        for name in (*_READS, "nonzero", "cpu", "numpy"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, refuse(name)))
        for name in ("__getitem__", "__setitem__"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, choose))
        stack.enter_context(mock.patch("torch.equal", refuse("equal")))
        yield reads


def _contiguous(tensor: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    return tensor.clone(memory_format=memory_format)


def _getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    if not isinstance(tensor, FakeTensor):  # a perturbed table
        if isinstance(index, slice):
            return type(tensor).__torch_function__(_GETITEM, (type(tensor),), (tensor, index))
        return _getitem(tensor.whole(), index)
    view, chosen = _basic(tensor, index)
    return view if all(item is None for item in chosen) else torch.ops.aten.index(view, chosen)


def _setitem(tensor: torch.Tensor, index: Any, value: Any) -> None:
    view, chosen = _basic(tensor, index)
    value = value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=view.dtype, device=view.device)
    if all(item is None for item in chosen):
        _copy_(view, value)
    else:
        torch.ops.aten.index_put_(view, chosen, value)


def _copy_(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Between any two devices, as in torch. Within torch's decomposition of another operation, values are not known."""
    if isinstance(source, FakeTensor) and not hasattr(source, "value"):
        return tensor
    with _disable_current_modes():
        torch.ops.aten.copy_(_values(tensor), _values(source))
    return tensor


def _to_python(name: str) -> Any:
    original = getattr(torch.Tensor, name)

    def method(tensor: torch.Tensor) -> Any:
        with _disable_current_modes():
            return original(_values(tensor))

    return method


_GETITEM = torch.Tensor.__getitem__
_PATCHED = {"contiguous": _contiguous, "__getitem__": _getitem, "__setitem__": _setitem, "copy_": _copy_}
_PATCHED["nonzero"] = lambda tensor: torch.ops.aten.nonzero(tensor)
_READS = ("__int__", "__float__", "__bool__", "__index__", "item", "tolist")
_PATCHED |= {name: _to_python(name) for name in _READS}


def _basic(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Numbers, slices, None and dots applied; index tensors as a list by dimension."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(
        item.ndim if isinstance(item, torch.Tensor) and item.dtype == torch.bool else 1
        for item in items
        if item is not None and item is not Ellipsis
    )
    if Ellipsis in [item for item in items if not isinstance(item, torch.Tensor)]:
        place = next(k for k, item in enumerate(items) if item is Ellipsis)
        items[place : place + 1] = [slice(None)] * (tensor.ndim - used)
    chosen: list[torch.Tensor | None] = []
    for item in items:
        if item is None:
            tensor = tensor.unsqueeze(len(chosen))
            chosen.append(None)
        elif isinstance(item, int):
            tensor = tensor.select(len(chosen), item)
        elif isinstance(item, slice):
            tensor = torch.ops.aten.slice(tensor, len(chosen), item.start, item.stop, item.step or 1)
            chosen.append(None)
        else:
            item = item if isinstance(item, torch.Tensor) else torch.tensor(item, device=tensor.device)
            chosen += torch.ops.aten.nonzero(item).unbind(1) if item.dtype == torch.bool else [item]
    return tensor, chosen


def on_fake_cuda(nested: Any, device: str = "cuda") -> Any:
    """Tensors of a nested structure as fake tensors of a device with these values. Only within `fake_cuda`."""

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        with _disable_current_modes():
            fake.value = tensor.detach().clone()  # type: ignore[attr-defined]
        return fake

    return tree_map_only(torch.Tensor, convert, nested)


def move(module: torch.nn.Module, device: str = "cuda") -> None:
    """Parameters and buffers of a module to the fake device, or to the host as it is there. Only within `fake_cuda`."""
    moved: dict[torch.Tensor, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if parameter not in moved:
                    moved[parameter] = torch.nn.Parameter(
                        on_fake_cuda(parameter, device), requires_grad=parameter.requires_grad
                    )
                    moved[parameter].value = moved[parameter].data.value
                part._parameters[name] = moved[parameter]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_fake_cuda(buffer, device)
