"""The Triton kernel in Triton's interpreter against the reference: started by test_triton.py with TRITON_INTERPRET=1.

Prints one line for each case that differs and exits with their number.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import torch

from llava.mezo.kernels import Field, Grid, as_float32, load
from llava.mezo.kernels.triton_cuda import TritonKernel

TRITON, REFERENCE = TritonKernel(), load("reference", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIGNED = {torch.float32: torch.int32}
SEEDS = [7, 2**63 + 5, 2**64 - 1]


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit; any NaN equals any NaN."""
    if one.dtype.is_floating_point:
        nan = one.isnan()
        if not torch.equal(nan, other.isnan()):
            return False
        one, other = (t.view(SIGNED.get(t.dtype, torch.int16)).masked_fill(nan, 0) for t in (one, other))
    return torch.equal(one, other)


def weights(dtype: torch.dtype, count: int) -> torch.Tensor:
    """Ordinary weights, and among them every kind of number that the dtype has."""
    values = torch.from_numpy(np.random.default_rng(1).standard_normal(count).astype(np.float32)) * 0.02
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -3e-8, 6e-5, 6e4, 7e4, 3e38, 1e-20])
    values[: len(special)] = special
    values[20:60] = torch.logspace(-12, 5, 40)
    return values.to(dtype)


def on_grid(rows: int, width: int) -> tuple[torch.Tensor, Grid]:
    generator = np.random.default_rng(2)
    integers = generator.integers(-32767, 32768, (rows, width)).astype(np.int16)
    steps = (2.0 ** generator.integers(-24, 0, rows)).astype(np.float32)
    return torch.from_numpy(integers), Grid(torch.from_numpy(steps), width)


def cases():  # type: ignore[no-untyped-def]
    """(name, got, expected) of every case."""
    field = Field(3, "gaussian")
    for kind, target, start in itertools.product((*DTYPES, "grid"), DTYPES, (0, 777, 2**35 + 5)):
        weight, grid = on_grid(8, 300) if kind == "grid" else (weights(kind, 2400), None)
        if grid is not None:
            start = 0
        got, expected = (torch.empty(weight.shape, dtype=target) for _ in range(2))
        for kernel, out in ((TRITON, got), (REFERENCE, expected)):
            kernel.perturb(weight, out, field, SEEDS[1], 1e-3, start, grid)
        yield f"perturb {kind} {target} {start}", got, expected
    for kind, factors, decay in itertools.product(
        (*DTYPES, "grid"), ([1e-3], [1e-3, -1e-7, 2.0], [torch.inf]), (1.0, 0.999)
    ):
        weight, grid = on_grid(8, 300) if kind == "grid" else (weights(kind, 2400), None)
        rounded = [as_float32(factor) for factor in factors]
        got, expected = weight.clone(), weight.clone()
        for kernel, out in ((TRITON, got), (REFERENCE, expected)):
            kernel.update(out[2:], field, SEEDS[: len(factors)], rounded, as_float32(decay), 600, grid)
        yield f"update {kind} {factors} {decay}", got, expected
    rows = torch.tensor([4, 7, 4, 0])
    for kind, target, width in itertools.product((*DTYPES, "grid"), DTYPES, (1, 300, 2048, 2500)):
        table, grid = (
            on_grid(8, width) if kind == "grid" else (weights(kind, 8 * 2500)[: 8 * width].view(8, width), None)
        )
        got, expected = (torch.empty(4, width, dtype=target) for _ in range(2))
        for kernel, out in ((TRITON, got), (REFERENCE, expected)):
            kernel.perturb_rows(table, rows, out, Field(5, "rademacher"), SEEDS[2], 1e-3, grid)
        yield f"rows {kind} {target} {width}", got, expected


if __name__ == "__main__":
    checked, wrong = 0, 0
    for name, got, expected in cases():
        checked += 1
        if not equal(got, expected):
            wrong += 1
            sys.stdout.write(f"{name} differs\n")
    sys.stdout.write(f"{checked} cases\n")
    sys.exit(wrong)
