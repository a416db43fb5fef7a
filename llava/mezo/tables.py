"""A perturbed embedding table of which only the rows that are read are ever computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from llava.mezo.scratch import ScratchPool
from llava.mezo.weights import Storage


class PerturbedTable(torch.Tensor):
    """Stands for weight + scale * z of a matrix [V, D]; values are made when an operation asks for them.

    Looking up rows (`functional.embedding`) and slicing rows (`table[a:b]`) compute these rows. Any other operation is
    given the whole perturbed matrix, computed once and kept as long as this object. Shape, dtype and device cost
    nothing. Results are plain tensors, the same bits as from the whole matrix.
    """

    _storage: Storage
    _pool: ScratchPool
    _point: tuple[int, float]
    _whole: torch.Tensor | None

    @staticmethod
    def make(raw: torch.Tensor, storage: Storage, pool: ScratchPool, seed: int, scale: float) -> PerturbedTable:
        """`raw` [V, D] gives shape, dtype and device; its values are never used."""
        table = raw.detach().as_subclass(PerturbedTable)
        table._storage, table._pool, table._point, table._whole = storage, pool, (seed, scale), None
        return table

    def whole(self) -> torch.Tensor:
        """The whole perturbed matrix [V, D]."""
        if self._whole is None:
            self._whole = self._empty(self._storage.shape)
            self._storage.perturb(self._whole, *self._point)
        return self._whole

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows `index` [...] (integers 0 to V-1) as [..., D]."""
        if self._whole is not None or index.numel() >= self._storage.shape[0]:
            return functional.embedding(index, self.whole())
        out = self._empty(torch.Size((index.numel(), self._storage.shape[1])))
        flat = index.reshape(-1).to(device=self._storage.device, dtype=torch.int64)
        self._storage.perturb_rows(flat, out, *self._point)
        return out.view(*index.shape, out.shape[1])

    def span(self, first: int, last: int) -> torch.Tensor:
        """Rows first ... last - 1 as [last - first, D]."""
        if self._whole is not None:
            return self._whole[first:last]
        out = self._empty(torch.Size((max(last - first, 0), self._storage.shape[1])))
        if last > first:
            self._storage.perturb(out, *self._point, first=first)
        return out

    def _empty(self, shape: torch.Size) -> torch.Tensor:
        return self._pool.empty(shape, self._storage.dtype, self._storage.device)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **named)
        special = _SPECIAL.get(func)
        if special is not None:
            result = special(*args, **named)
            if result is not None:
                return result
        return func(*(_plain(value) for value in args), **{name: _plain(value) for name, value in named.items()})


def _plain(value: Any) -> Any:
    """The value with every table in it (lists, tuples and dicts included) replaced by its whole matrix."""
    if isinstance(value, PerturbedTable):
        return value.whole()
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value


def _embedding(index: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    return weight.rows(index) if isinstance(weight, PerturbedTable) else None


def _getitem(table: torch.Tensor, index: Any) -> torch.Tensor | None:
    if isinstance(table, PerturbedTable) and isinstance(index, slice) and index.step in (None, 1):
        first, last, _ = index.indices(table._storage.shape[0])
        return table.span(first, last)
    return None


_SPECIAL: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    functional.embedding: _embedding,
    torch.Tensor.__getitem__: _getitem,
}

_METADATA: frozenset[Callable[..., Any]] = frozenset(
    [
        getattr(torch.Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_meta", "requires_grad", "is_sparse")
    ]
    + [torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.Tensor.__len__]
)
