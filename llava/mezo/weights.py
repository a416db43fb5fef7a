"""How a trainable weight is stored, read under a perturbation, and updated.

The perturbed forward (`perturb.py`) and the optimizer know a weight through `Storage` alone. What there is:

    native   the weight stays in the model's parameter; 16 bits are updated with stochastic rounding
    fixed16  16-bit weights become integers on a grid of their row: the memory of bfloat16, 16 times finer at least
             than bfloat16 at the largest weight of a row
    fp32     16-bit weights are kept in float32: twice the memory, no rounding to speak of

Weights that are float32 in the model are native under each of these. While a weight is stored elsewhere, its parameter
holds NaN without memory of its own, so that a read past the perturbed forward cannot go unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from llava.mezo.kernels import LARGEST_ON_GRID, SUPPORTED_DTYPES, Field, Grid, Update
from llava.mezo.noise import kernel_for_tensor

PART = 2**21
"""Elements that take several updates at a time: whole tiles, few megabytes, which the cache holds."""


class Storage(Protocol):
    """One trained weight, in the form in which its exact value lives."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight as the model sees it."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the forward reads it."""

    @property
    def device(self) -> torch.device:
        """Device on which the forward reads it."""

    def perturb(self, out: torch.Tensor, seed: int, scale: float, first: int = 0) -> None:
        """Write weight + scale * z of the slices first ... first + len(out) - 1 along dimension 0 into `out`.

        `out` is contiguous, of `dtype` and on `device`; its other dimensions are the weight's.
        """

    def perturb_rows(self, rows: torch.Tensor, out: torch.Tensor, seed: int, scale: float) -> None:
        """The same for rows [n] (int64, any order, repeats allowed) of a matrix, into `out` [n, D].

        Raises IndexError for a row that the matrix does not have.
        """

    def apply(self, updates: Sequence[Update]) -> None:
        """Change the weight by one update after the other; see `kernels/__init__.py` for the arithmetic."""

    def state(self) -> dict[str, torch.Tensor]:
        """The exact value, if it is not the model's parameter; for checkpoints."""

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state` gave."""

    def exported(self) -> torch.Tensor:
        """The weight in `dtype`, rounded to nearest where it is stored more finely; the parameter itself if native."""

    def at_the_limit(self) -> int:
        """How many weights have grown to the end of what can be stored and can grow no further."""

    def release(self) -> None:
        """Put the weight, as `exported`, back into the model's parameter; the storage is not used any more."""


class NativeStorage:
    """The weight lives in the model's parameter, in float32, bfloat16 or float16.

    Sixteen-bit weights are updated with stochastic rounding: lr * g * z is usually far below half of their spacing,
    where rounding to nearest would lose it.
    """

    def __init__(self, parameter: nn.Parameter, field: Field, kernel: str) -> None:
        self.parameter = parameter
        self.field = field
        self.kernel = kernel

    @property
    def shape(self) -> torch.Size:
        return self.parameter.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.parameter.dtype

    @property
    def device(self) -> torch.device:
        return self.parameter.device

    @property
    def value(self) -> torch.Tensor:
        """Where the weight is."""
        return self.parameter.detach()

    @property
    def grid(self) -> Grid | None:
        """What integers stand for; None when the value is the weight."""
        return None

    def perturb(self, out: torch.Tensor, seed: int, scale: float, first: int = 0) -> None:
        weight = self.value
        start = 0
        if out.shape != self.shape or first:
            weight = weight[first : first + out.shape[0]]
            start = first * self.shape[1:].numel()
        kernel = kernel_for_tensor(self.kernel, weight)
        kernel.perturb(weight.contiguous(), out, self.field, seed, scale, start, self.grid)

    def perturb_rows(self, rows: torch.Tensor, out: torch.Tensor, seed: int, scale: float) -> None:
        table = self.value.contiguous()
        kernel_for_tensor(self.kernel, table).perturb_rows(table, rows, out, self.field, seed, scale, self.grid)

    def apply(self, updates: Sequence[Update]) -> None:
        weight = self.value
        kernel = kernel_for_tensor(self.kernel, weight)
        ordered = weight.contiguous()
        flat = ordered.view(-1)
        # several updates go over the weight in one pass: a part stays in the cache until all of them are done
        size = flat.numel() if len(updates) == 1 else PART
        for start in range(0, flat.numel(), max(size, 1)):
            for update in updates:
                part = flat[start : start + size]
                kernel.update(part, self.field, update.seeds, update.coefficients, update.decay, start, self.grid)
        if ordered is not weight:
            weight.copy_(ordered)

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        if state:
            raise ValueError(f"a weight that is stored in the model got a state with {sorted(state)}")

    def exported(self) -> torch.Tensor:
        return self.value

    def at_the_limit(self) -> int:
        return 0

    def release(self) -> None:
        """Nothing: the weight is there."""


class DetachedStorage(NativeStorage):
    """The weight lives beside a model in 16 bits, whose parameter reads NaN meanwhile."""

    def __init__(self, parameter: nn.Parameter, field: Field, kernel: str) -> None:
        super().__init__(parameter, field, kernel)
        self._tensors = self._stored(parameter.detach().contiguous())
        nothing = torch.full((), torch.nan, dtype=self.dtype, device=self.device)
        parameter.data = nothing.expand(self.shape)  # no memory of its own

    def _stored(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors that hold `weight`: "value", and whatever gives it its meaning."""
        raise NotImplementedError

    @property
    def value(self) -> torch.Tensor:
        return self._tensors["value"]

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self._tensors)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        found, expected = ({n: (t.dtype, tuple(t.shape)) for n, t in s.items()} for s in (state, self._tensors))
        if found != expected:
            raise ValueError(f"the saved state of a weight is {found}, but this run stores it as {expected}")
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])

    def exported(self) -> torch.Tensor:
        return self.value.to(self.dtype)

    def release(self) -> None:
        self.parameter.data = self.exported()
        self._tensors.clear()


class Float32Storage(DetachedStorage):
    """The weight is kept in float32."""

    def _stored(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"value": weight.to(torch.float32)}


class Fixed16Storage(DetachedStorage):
    """The weight is kept in 16-bit integers, each row on a grid of its own that reaches beyond its largest weight."""

    def _stored(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        steps = grid_steps(weight.view(len(weight), -1))
        value = torch.empty(self.shape, dtype=torch.int16, device=self.device)
        for part in _row_parts(weight):
            rows = weight[part].float().view(-1, weight[0].numel())
            value[part] = (rows / steps[part, None]).round().to(torch.int16).view_as(value[part])
        return {"value": value, "steps": steps}

    @property
    def grid(self) -> Grid:
        return Grid(self._tensors["steps"], self.shape[1:].numel())

    def exported(self) -> torch.Tensor:
        weight = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for part in _row_parts(weight):
            rows = self.value[part].float().view(-1, self.grid.width)
            weight[part] = rows.mul_(self.grid.steps[part, None]).view_as(weight[part])
        return weight

    def at_the_limit(self) -> int:
        return int((self.value.abs() == LARGEST_ON_GRID).sum())


def _row_parts(weight: torch.Tensor) -> Iterator[slice]:
    """Ranges of rows of a few megabytes, so that a conversion needs no second tensor of the weight's size."""
    rows = max(1, 2**20 // max(1, weight[0].numel()))
    for first in range(0, len(weight), rows):
        yield slice(first, first + rows)


HEADROOM = 2.0
"""How far beyond its largest weight the grid of a row reaches at least, as a factor."""
SMALLEST_SHARE = 2.0**-8
"""Rows whose largest weight is a smaller share of the tensor's get the grid of a row with this share."""

SMALLEST_REACH = 2.0**-80
"""What a grid reaches at least, so that its step and the step's inverse are ordinary float32 numbers."""


def grid_steps(rows: torch.Tensor) -> torch.Tensor:
    """Step of each row of [rows, width], float32: the smallest power of two that leaves `HEADROOM`.

    A tensor that is all zero gets a grid that reaches to 1.
    """
    largest = rows.abs().amax(dim=1).double()
    reach = largest.clamp(min=float(largest.max()) * SMALLEST_SHARE) * HEADROOM
    reach = torch.where(reach > 0, reach, torch.ones_like(reach)).clamp(min=SMALLEST_REACH)
    return torch.exp2(torch.ceil(torch.log2(reach / LARGEST_ON_GRID))).float()


def store(parameter: nn.Parameter, field: Field, kernel: str, storage: str) -> Storage:
    """The storage of a parameter under `MeZOConfig.storage`.

    Vectors, which are few, are kept in float32 where matrices are on a grid.

    Raises:
        ValueError: a dtype that cannot be trained, or a parameter without values.
    """
    if parameter.dtype not in SUPPORTED_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in SUPPORTED_DTYPES)
        raise ValueError(f"a trainable weight is {parameter.dtype}; MeZO trains {allowed}")
    if parameter.is_meta:
        raise ValueError("a trainable weight is on the meta device (it has no values); load the model first")
    if storage == "native" or parameter.dtype == torch.float32 or parameter.numel() == 0:
        return NativeStorage(parameter, field, kernel)
    if storage == "fp32" or parameter.dim() < 2:
        return Float32Storage(parameter, field, kernel)
    return Fixed16Storage(parameter, field, kernel)
