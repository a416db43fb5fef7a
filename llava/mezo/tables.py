"""A perturbed weight of which only what is used is ever computed: rows of an embedding, chunks of a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch.nn import functional

from llava.mezo.held import is_sharded


class Source(Protocol):
    """Where a table's values come from; each method gives plain tensors with the bits of the whole matrix."""

    def rows(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """Rows `rows` [...] (integers 0 to V-1) of weight `number`, a matrix [V, D], as [..., D]."""

    def span(self, number: int, first: int, last: int) -> torch.Tensor:
        """Slices first ... last - 1 along dimension 0."""

    def whole(self, number: int) -> torch.Tensor:
        """All of it."""


class PerturbedTable(torch.Tensor):
    """Stands for weight + scale * z; values are made when an operation asks for them.

    Looking up rows of a matrix (`functional.embedding`) and slicing (`table[a:b]`) compute these. Any other operation
    is given the whole perturbed weight, computed once and kept as long as this object. Shape, dtype and device cost
    nothing. Results are plain tensors.
    """

    _source: Source
    _number: int
    _whole: torch.Tensor | None

    @staticmethod
    def make(raw: torch.Tensor, source: Source, number: int) -> PerturbedTable:
        """`raw` gives shape, dtype and device; its values are never used."""
        stand_in = torch.empty((), dtype=raw.dtype, device=raw.device).expand(raw.shape) if is_sharded(raw) else raw
        table = stand_in.detach().as_subclass(PerturbedTable)
        table._source, table._number, table._whole = source, number, None
        return table

    def whole(self) -> torch.Tensor:
        """The whole perturbed weight."""
        if self._whole is None:
            self._whole = self._source.whole(self._number)
        return self._whole

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows `index` [...] (integers 0 to V-1) as [..., D]."""
        if self._whole is not None or index.numel() >= len(self):
            return functional.embedding(index, self.whole())
        return self._source.rows(self._number, index)

    def span(self, first: int, last: int) -> torch.Tensor:
        """Slices first ... last - 1 along dimension 0."""
        if self._whole is not None:
            return self._whole[first:last]
        return self._source.span(self._number, first, max(first, last))

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
    """The value with every table in it (lists, tuples and dicts included) replaced by its whole weight."""
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
        first, last, _ = index.indices(len(table))
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
