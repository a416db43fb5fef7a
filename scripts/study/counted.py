"""Bytes of live tensors at the peak of some work, counted without doing its arithmetic.

What a caching allocator would report (`torch.cuda.max_memory_allocated`), on a CPU and in seconds: matrix products,
convolutions and attention, which take all of the time, give empty results of the right shape, everything else runs. So
the numbers computed have no meaning, and kernels' own scratch memory is not in the count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measuring import LiveStorages
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten


def _like(*shape: int, of: torch.Tensor) -> torch.Tensor:
    return of.new_zeros(shape)


def _convolution(x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, *_: Any) -> torch.Tensor:
    of_all = len(x.shape[2:])
    steps, pads = (list(one) * of_all if len(one) == 1 else one for one in (stride, padding))
    sides = [
        (side + 2 * pad - kernel) // step + 1
        for side, pad, kernel, step in zip(x.shape[2:], pads, weight.shape[2:], steps, strict=True)
    ]
    return x.new_zeros(x.shape[0], weight.shape[0], *sides)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
    rows, heads, length, size = q.shape
    output = q.new_zeros(rows, length, heads, size).transpose(1, 2)
    return output, q.new_zeros(rows, length, heads, dtype=torch.float32).transpose(1, 2)


FREE: dict[Any, Callable[..., Any]] = {
    _aten.mm.default: lambda a, b: _like(a.shape[0], b.shape[1], of=a),
    _aten.addmm.default: lambda bias, a, b, **_: _like(a.shape[0], b.shape[1], of=a),
    _aten.bmm.default: lambda a, b: _like(a.shape[0], a.shape[1], b.shape[2], of=a),
    _aten.convolution.default: _convolution,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: lambda grad, q, k, v, *_, **__: (
        torch.zeros_like(q),
        torch.zeros_like(k),
        torch.zeros_like(v),
    ),
}


class LiveBytes(LiveStorages):
    """Counts storages that operations inside it make."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation, or an empty result in its place."""
        given = {_pointer(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = FREE.get(func, func)(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _pointer(leaf) not in given:
                self.count(leaf)
        return result


def _pointer(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
