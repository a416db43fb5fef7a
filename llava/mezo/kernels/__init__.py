"""Kernels: one class per way of computing, one interface, the same bits from each.

Exact arithmetic
----------------
Every kernel computes precisely this in float32, each operation rounded to nearest even, none fused:

    perturb    out = R( fl(w + fl(s * z)) )
               w the stored weight (16-bit weights widen exactly), s = float32(scale), R = rounding to nearest even
               into the dtype of `out`
    update     u = w;  u = fl(u * decay) unless decay == 1;  then for d = 0 .. n-1 in order  u = fl(u + fl(c_d * z_d))
               float32 weights store u; bfloat16 and float16 weights store S(u, r); integers on a grid store G(u, r)
    S(u, r)    stochastic rounding with the element's 16 bits r of stream 1 (seed of direction 0): to the bit
               pattern of |u|, of which the lowest k bits do not fit, add r aligned with the top of these k bits and
               drop them. bfloat16: k = 16, so r is added as it is. float16: k = 13 for normal numbers (r >> 3 is
               added); below 2**-14 the spacing is 2**-24 and k grows by one with every halving (r << (k - 16))

The probability of rounding up is the distance to the lower neighbour in units of the spacing: exactly for bfloat16 and
for normal float16, below by less than 2**-16 for subnormal float16. A value that 16 bits can hold is kept for any r.
Infinities stay, a NaN stays some NaN (its payload is not promised), and values beyond the largest number become
infinite as in ordinary rounding.

Weights may also be 16-bit integers q on a grid of their row (`Grid`), w = q * step with a step that is a power of two,
so that w is exact. They are stored by

    G(u, r)    v = u * (2**16 / step), limited to -32767 * 2**16 ... 32767 * 2**16;  q = (floor(v) + r) >> 16

which is stochastic rounding without bias but for what is below 2**-16 of a step. A NaN is stored as 0.

An update with every c_d == 0 and decay == 1 writes nothing (so -0.0 stays -0.0).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Field:
    """A tensor's noise field before a seed is chosen: its number in the run and the distribution."""

    tensor: int
    noise: str


LARGEST_ON_GRID = 32767
PARTS_OF_A_STEP = 65536
"""Into which stochastic rounding divides a step of a grid."""


@dataclass(frozen=True)
class Grid:
    """What the integers of a weight [rows, ...] stand for: integer * step of the row."""

    steps: torch.Tensor
    """float32 [rows], powers of two, on the weight's device."""
    width: int
    """Elements of a row."""


@dataclass(frozen=True)
class Update:
    """What one step does to a weight: decay * w + sum of coefficient * z(seed)."""

    seeds: tuple[int, ...]
    coefficients: tuple[float, ...]
    decay: float


class Kernel(Protocol):
    """What a kernel can do. All tensors are contiguous and on one device.

    Weights are of `SUPPORTED_DTYPES`, or int16 with the `Grid` of the full tensor; outputs are of `SUPPORTED_DTYPES`.
    `start` is the number of the weight's first element in the full tensor.
    """

    name: str

    def perturb(
        self,
        weight: torch.Tensor,
        out: torch.Tensor,
        field: Field,
        seed: int,
        scale: float,
        start: int = 0,
        grid: Grid | None = None,
    ) -> None:
        """Write R(w + scale * z) into `out` (as many elements as `weight`; its dtype may differ from weight's)."""

    def perturb_rows(
        self,
        table: torch.Tensor,
        rows: torch.Tensor,
        out: torch.Tensor,
        field: Field,
        seed: int,
        scale: float,
        grid: Grid | None = None,
    ) -> None:
        """As `perturb` for rows `rows` [n] (int64) of `table` [V, D], the full tensor, into `out` [n, D].

        Raises IndexError when a row is outside 0 .. V-1.
        """

    def update(
        self,
        weight: torch.Tensor,
        field: Field,
        seeds: Sequence[int],
        coefficients: Sequence[float],
        decay: float,
        start: int = 0,
        grid: Grid | None = None,
    ) -> None:
        """Change `weight` in place: decay, then one addition per direction, then storing as described above.

        Coefficients and decay are float32 numbers (`as_float32`).
        """


def as_float32(value: float) -> float:
    """The value rounded to float32 (infinite beyond its range), as kernels take scales, coefficients and decay."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def check_rows(rows: torch.Tensor, count: int) -> None:
    """IndexError when one of the rows [n] is outside 0 .. count - 1."""
    if rows.numel() and bool(((rows < 0) | (rows >= count)).any()):
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a table with {count} rows")


def changes_nothing(coefficients: Sequence[float], decay: float) -> bool:
    """Whether an update must leave every bit alone."""
    return decay == 1.0 and all(c == 0.0 for c in coefficients)


def _load_reference() -> Kernel:
    from llava.mezo.kernels.numpy_reference import NumpyKernel

    return NumpyKernel()


def _load_torch() -> Kernel:
    from llava.mezo.kernels.torch_any import TorchKernel

    return TorchKernel()


def _load_numba() -> Kernel:
    try:
        importlib.import_module("numba")
    except Exception as error:  # one that does not fit the installed NumPy fails with whatever it stumbles over
        raise ImportError(f"numba cannot be imported: {error}") from error
    from llava.mezo.kernels.numba_cpu import NumbaKernel

    return NumbaKernel()


def _load_triton() -> Kernel:
    from llava.mezo.kernels.triton_cuda import TritonKernel

    return TritonKernel()


@dataclass(frozen=True)
class _Entry:
    load: Callable[[], Kernel]
    devices: tuple[str, ...] | None
    """Device types it runs on; None: all."""


_TABLE = {
    "reference": _Entry(_load_reference, ("cpu",)),
    "torch": _Entry(_load_torch, None),
    "numba": _Entry(_load_numba, ("cpu",)),
    "triton": _Entry(_load_triton, ("cuda",)),
}


def load(name: str, device_type: str) -> Kernel:
    """The kernel of this name. ValueError: unknown, or it does not run on this type of device, or is not installed."""
    if name not in _TABLE:
        raise ValueError(f"kernel is {name!r}; it must be one of auto, {', '.join(_TABLE)}")
    entry = _TABLE[name]
    if entry.devices is not None and device_type not in entry.devices:
        raise ValueError(
            f"kernel {name!r} runs on {', '.join(entry.devices)} alone and a trainable weight is on {device_type!r}; "
            "choose kernel 'auto' or 'torch'"
        )
    try:
        return entry.load()
    except ImportError as error:
        raise ValueError(f"kernel {name!r} cannot be loaded ({error}); choose kernel 'auto' or 'torch'") from error


@cache
def available(name: str) -> bool:
    """Whether the kernel's package is here, and fit for it."""
    try:
        _TABLE[name].load()
    except ImportError:
        return False
    return True


def fastest(device_type: str) -> str:
    """Name of the fastest kernel that runs on this type of device."""
    special = {"cpu": "numba", "cuda": "triton"}.get(device_type)
    return special if special is not None and available(special) else "torch"
