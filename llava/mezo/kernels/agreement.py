"""Random cases on which every kernel must give the bits of the reference, for tests and for a device that is new.

for difference in disagreements(kernel, torch.device("cuda"), range(100)):
    print(difference)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from llava.mezo.kernels.interface import SUPPORTED_DTYPES, Aim, Grid, Kernel, Piece, Weight
from llava.mezo.kernels.numpy_reference import NumpyTable
from llava.mezo.noise import TILE
from llava.mezo.updates import Update, as_float32

SIZES = (1e-9, 1e-6, 1e-3, 0.02, 1.0, 300.0, 7e4, 1e30)
SCALES = (0.0, 1e-3, -1e-3, 1e-6, 0.1, 3.0, -1e5)
LARGE_STARTS = (0, 0, 5, 16, TILE, 2**35 + 5, 8 * 2**32 - 100)
SIGNED = {torch.float32: torch.int32}
"""Integers of a dtype's size; of all others, int16."""


@dataclass(frozen=True)
class Case:
    """Weights, and what is done with them."""

    weights: list[Weight]
    noise: str
    aim: Aim
    pieces: list[Piece]
    rows: list[torch.Tensor]
    updates: list[Update]


def random_case(number: int, small: bool = False) -> Case:
    """Case `number`: dtypes, sizes, special values, grids, parts of tensors, rows, several steps of several pairs.

    Args:
        small: few tiles, for where each of them takes long.
    """
    random = np.random.default_rng(number)
    rows = (1,) if small else (1, 3, 40)
    weights = [_weight(random, rows) for _ in range(int(random.integers(1, 3 if small else 6)))]
    pieces = []
    for index, weight in enumerate(weights):
        count = weight.value.numel()
        start = int(random.integers(0, count)) if random.random() < 0.5 else 0
        pieces.append(Piece(index, start, int(random.integers(1, count - start + 1)) if start else count))
    return Case(
        weights=weights,
        noise=str(random.choice(["gaussian", "rademacher"])),
        aim=_aim(random),
        pieces=pieces,
        rows=[torch.from_numpy(random.integers(0, len(w.value), int(random.integers(0, 8)))) for w in weights],
        updates=[_update(random) for _ in range(int(random.integers(1, 4)))],
    )


def _aim(random: np.random.Generator) -> Aim:
    """Two points, of two groups, mostly along one direction."""
    pairs = int(random.choice([1, 1, 1, 3]))
    scales = random.choice(SCALES, (2, 2, pairs))
    return Aim(
        tuple(_seed(random) for _ in range(pairs)), tuple(tuple(tuple(map(as_float32, g)) for g in p) for p in scales)
    )


def _seed(random: np.random.Generator) -> int:
    return int(random.integers(0, 2**63)) * 2 + int(random.integers(0, 2))


def _weight(random: np.random.Generator, rows: Sequence[int]) -> Weight:
    shape = int(random.choice(rows)), int(random.choice([1, 7, 256, 600, TILE - 1, TILE, TILE + 16, 3000]))
    dtype, target = (SUPPORTED_DTYPES[k] for k in random.integers(0, 3, 2))
    group, tensor = int(random.integers(0, 2)), int(random.integers(0, 2**31))
    if random.random() < 0.3:
        integers = random.integers(-32767, 32768, shape).astype(np.int16)
        steps = torch.from_numpy((2.0 ** random.integers(-24, 0, shape[0])).astype(np.float32))
        return Weight(torch.from_numpy(integers), tensor, target, group, Grid(steps, shape[1]))
    values = random.standard_normal(shape).astype(np.float32) * np.float32(random.choice(SIZES))
    value = torch.from_numpy(values).to(dtype)
    if random.random() < 0.2:  # any patterns: subnormal numbers, infinities, NaN
        value = torch.from_numpy(random.integers(-(2**31), 2**31, shape, dtype=np.int32)).view(torch.float32)
        value = value if dtype == torch.float32 else value.view(torch.int16)[:, ::2].contiguous().view(dtype)
    return Weight(value, tensor, target, group, None, int(random.choice(LARGE_STARTS)))


def _update(random: np.random.Generator) -> Update:
    pairs = int(random.choice([1, 1, 2, 5]))
    size = float(random.choice([1e-9, 1e-5, 1e-2, 1.0]))
    coefficients = [tuple(as_float32(c) for c in random.standard_normal(pairs) * size) for _ in range(2)]
    if random.random() < 0.3:
        coefficients[0] = (0.0,) * pairs
    decays = (1.0, as_float32(random.choice([1.0, 0.999, 1 - 1e-6, 0.5])))
    return Update(tuple(_seed(random) for _ in range(pairs)), tuple(coefficients), decays)


def results(kernel: Kernel, case: Case, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """What a kernel makes of a case, as (name, tensor on the CPU)."""
    weights = [_moved(weight, device) for weight in case.weights]
    table = kernel.table(weights, case.noise)
    table.aim(case.aim)
    part = table.part(case.pieces)
    for points in ((0, 1), (0,), (1,)):
        memory = {point: torch.zeros(part.size, dtype=torch.uint8, device=device) for point in points}
        table.perturb(part, memory)
        for point, copy in memory.items():
            yield from ((f"piece {k} at {point} of {points}", view.cpu()) for k, view in enumerate(part.views(copy)))
    for index, (weight, rows) in enumerate(zip(weights, case.rows, strict=True)):
        shape = len(rows), weight.value.shape[1]
        copies = {point: torch.zeros(shape, dtype=weight.dtype, device=device) for point in (0, 1)}
        table.look_up(index, rows.to(device), copies)
        yield from ((f"rows of {index} at {point}", copy.cpu()) for point, copy in copies.items())
    table.update(case.updates)
    yield from ((f"weight {index} after its updates", weight.value.cpu()) for index, weight in enumerate(weights))


def _moved(weight: Weight, device: torch.device) -> Weight:
    grid = weight.grid and Grid(weight.grid.steps.to(device), weight.grid.width)
    return replace(weight, value=weight.value.to(device, copy=True), grid=grid)


def disagreements(kernel: Kernel, device: torch.device, numbers: Iterable[int], small: bool = False) -> Iterator[str]:
    """A line for each result of these cases that is not the reference's."""
    for number in numbers:
        case = random_case(number, small)
        expected = results(Kernel("reference", NumpyTable), case, torch.device("cpu"))
        for (name, want), (_, got) in zip(expected, results(kernel, case, device), strict=True):
            if not same_bits(got, want):
                yield f"case {number}, {case.noise}, {want.dtype}: {name}"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit for bit; any NaN equals any NaN."""
    if one.dtype.is_floating_point:
        nan = one.isnan()
        if not torch.equal(nan, other.isnan()):
            return False
        one, other = (t.view(SIGNED.get(t.dtype, torch.int16)).masked_fill(nan, 0) for t in (one, other))
    return torch.equal(one, other)
