"""How a trained weight is stored. What there is:

    native   the weight stays in the model's parameter; 16 bits are updated with stochastic rounding
    fixed16  16-bit weights become integers on a grid of their row: the memory of bfloat16, 16 times finer at least
             than bfloat16 at the largest weight of a row
    fp32     16-bit weights are kept in float32: twice the memory, no rounding to speak of

Weights that are float32 in the model are native under each of these. While a weight is stored elsewhere, its parameter
holds NaN without memory of its own, so that a read past the perturbed forward cannot go unnoticed. What is computed
with stored weights is in `trained.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from llava.mezo.held import first_element, is_sharded, local_part
from llava.mezo.kernels.interface import LARGEST_ON_GRID, SUPPORTED_DTYPES, Grid


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

    @property
    def value(self) -> torch.Tensor:
        """Where the weight is, or this process's part of it: contiguous; floats, or int16 with a grid."""

    @property
    def sharded(self) -> bool:
        """Whether the value is this process's part of the weight."""

    @property
    def first(self) -> int:
        """Number in the weight of the value's first element."""

    @property
    def grid(self) -> Grid | None:
        """What integers stand for; None when the value is the weight."""

    @property
    def address(self) -> int:
        """Of the value."""

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

    grid: Grid | None = None

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

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
        return local_part(self.parameter)

    @property
    def sharded(self) -> bool:
        return is_sharded(self.parameter)

    @property
    def first(self) -> int:
        return first_element(self.parameter)

    @property
    def address(self) -> int:
        return (self.value if self.sharded else self.parameter).data_ptr()

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

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__(parameter)
        self._tensors = self._stored(parameter.detach())
        nothing = torch.full((), torch.nan, dtype=self.dtype, device=self.device)
        parameter.data = nothing.expand(self.shape)  # no memory of its own

    def _stored(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors that hold `weight`: "value", and whatever gives it its meaning."""
        raise NotImplementedError

    @property
    def value(self) -> torch.Tensor:
        return self._tensors["value"]

    @property
    def address(self) -> int:
        return self.value.data_ptr()

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
    def grid(self) -> Grid:  # type: ignore[override]
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


def check_storable(parameter: nn.Parameter) -> None:
    """`ValueError`: a dtype that cannot be trained, or a parameter without values."""
    if parameter.dtype not in SUPPORTED_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in SUPPORTED_DTYPES)
        raise ValueError(f"a trainable weight is {parameter.dtype}; MeZO trains {allowed}")
    if parameter.is_meta:
        raise ValueError("a trainable weight is on the meta device (it has no values); load the model first")


def store(parameter: nn.Parameter, storage: str) -> Storage:
    """The storage of a parameter under `MeZOConfig.storage`.

    Vectors, which are few, are kept in float32 where matrices are on a grid. Kernels go over a weight's memory from its
    address on, so one that lies there in another order (a transposed one) is put into the order of its elements first.

    Raises:
        ValueError: as `check_storable`, or a parameter that shares its memory.
    """
    check_storable(parameter)
    if is_sharded(parameter):
        if storage != "native":
            raise ValueError(f"a weight in shards is stored as it is (native), and not as {storage}")
        return NativeStorage(parameter)
    if not parameter.is_contiguous():
        if parameter.untyped_storage().nbytes() != parameter.numel() * parameter.element_size():
            raise ValueError(
                f"a trainable weight of shape {tuple(parameter.shape)} is a view with gaps, or repeats, of another "
                "tensor's memory; give it memory of its own (parameter.data = parameter.data.clone())"
            )
        parameter.data = parameter.data.contiguous()
    if storage == "native" or parameter.dtype == torch.float32 or parameter.numel() == 0:
        return NativeStorage(parameter)
    if storage == "fp32" or parameter.dim() < 2:
        return Float32Storage(parameter)
    return Fixed16Storage(parameter)
