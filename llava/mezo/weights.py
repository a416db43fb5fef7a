"""How a trainable weight is stored, read under a perturbation, and updated.

The perturbed forward (`perturb.py`) and the optimizer know a weight through `Storage` alone. `NativeStorage` keeps
it where it is, in the model's own parameter; another storage (a finer integer grid, float32 beside a bfloat16 model)
is another class with these methods and an entry in `STORAGES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from llava.mezo.kernels import SUPPORTED_DTYPES, Field
from llava.mezo.noise import kernel_for_tensor


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

    def update(self, seeds: Sequence[int], coefficients: Sequence[float], decay: float) -> None:
        """weight <- decay * weight + sum of coefficient * z(seed); see `kernels/__init__.py` for the arithmetic."""


class NativeStorage:
    """The weight lives in the model's parameter, in float32, bfloat16 or float16.

    Sixteen-bit weights are updated with stochastic rounding: lr * g * z is usually far below half of their spacing,
    where rounding to nearest would lose it.
    """

    def __init__(self, parameter: nn.Parameter, field: Field, kernel: str) -> None:
        if parameter.dtype not in SUPPORTED_DTYPES:
            allowed = ", ".join(str(dtype) for dtype in SUPPORTED_DTYPES)
            raise ValueError(f"a trainable weight is {parameter.dtype}; MeZO trains {allowed}")
        if parameter.is_meta:
            raise ValueError("a trainable weight is on the meta device (it has no values); load the model first")
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

    def perturb(self, out: torch.Tensor, seed: int, scale: float, first: int = 0) -> None:
        weight = self.parameter.detach()
        start = 0
        if out.shape != weight.shape or first:
            weight = weight[first : first + out.shape[0]]
            start = first * self.shape[1:].numel()
        kernel = kernel_for_tensor(self.kernel, weight)
        kernel.perturb(weight.contiguous(), out, self.field, seed, scale, start)

    def perturb_rows(self, rows: torch.Tensor, out: torch.Tensor, seed: int, scale: float) -> None:
        table = self.parameter.detach().contiguous()
        kernel_for_tensor(self.kernel, table).perturb_rows(table, rows, out, self.field, seed, scale)

    def update(self, seeds: Sequence[int], coefficients: Sequence[float], decay: float) -> None:
        weight = self.parameter.detach()
        kernel = kernel_for_tensor(self.kernel, weight)
        if weight.is_contiguous():
            kernel.update(weight, self.field, seeds, coefficients, decay)
        else:
            ordered = weight.contiguous()
            kernel.update(ordered, self.field, seeds, coefficients, decay)
            weight.copy_(ordered)


STORAGES = {"native": NativeStorage}
