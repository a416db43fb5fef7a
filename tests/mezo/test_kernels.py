"""Every kernel gives the reference's bits: shapes, offsets, dtypes, scales, rows, grids, special values."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.mezo.kernels import choice
from llava.mezo.kernels.agreement import disagreements, random_case, results, same_bits
from llava.mezo.kernels.choice import kernel_for, load
from llava.mezo.kernels.interface import Aim, Grid, Kernel, Piece, Weight, WeightTable
from llava.mezo.kernels.numpy_reference import stochastic_bfloat16, stochastic_float16, stochastic_on_grid
from llava.mezo.noise import TILE, low_rank_values
from llava.mezo.updates import Update, as_float32

pytest.importorskip("numba")

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OTHERS = ("torch", "numba")
SIGNED = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
REFERENCE = load("reference", "cpu")


@pytest.fixture(params=OTHERS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return load(request.param, "cpu")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_kernels_agree(number: int) -> None:
    for name in OTHERS:
        assert list(disagreements(load(name, "cpu"), CPU, [number])) == []


def test_the_comparison_can_fail() -> None:
    """Another seed is noticed."""
    case = next(case for case in map(random_case, range(100)) if case.aim.scales[0][0][0] > 0 and len(case.updates) > 1)
    expected = dict(results(REFERENCE, case, CPU))
    kept = {name: tensor.clone() for name, tensor in expected.items()}
    table = REFERENCE.table(case.weights, case.noise)
    table.aim(replace(case.aim, seeds=tuple(seed ^ 1 for seed in case.aim.seeds)))
    part = table.part(case.pieces)
    memory = {0: torch.zeros(part.size, dtype=torch.uint8)}
    table.perturb(part, memory)
    assert not all(same_bits(view, kept[f"piece {k} at 0 of (0, 1)"]) for k, view in enumerate(part.views(memory[0])))


def perturbed(
    kernel: Kernel, value: torch.Tensor, target: torch.dtype, seed: int, scale: float, pieces: Sequence[Piece] = ()
) -> list[torch.Tensor]:
    """Copies of the pieces, by default of the whole; the weight's number is 1."""
    table = kernel.table([Weight(value, 1, target)], "gaussian")
    part = table.part(pieces or [Piece(0, 0, value.numel())])
    table.aim(Aim.along(seed, (scale,)))
    memory = torch.empty(part.size, dtype=torch.uint8)
    table.perturb(part, {0: memory})
    return part.views(memory)


def updated(kernel: Kernel, value: torch.Tensor, *factors: float, grid: Grid | None = None) -> torch.Tensor:
    """A copy of the weight after one step with these coefficients, of seeds 9, 10, ...; the weight's number is 1."""
    value = value.clone()
    table = kernel.table([Weight(value, 1, torch.float32, 0, grid)], "rademacher" if grid else "gaussian")
    seeds = tuple(range(9, 9 + len(factors)))
    table.update([Update(seeds, (tuple(map(as_float32, factors)),), (1.0,))])
    return value


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_two_points_are_those_of_two_passes(name: str) -> None:
    value, other = torch.randn(3000).bfloat16(), torch.randn(70).bfloat16()
    table = load(name, "cpu").table([Weight(value, 1, torch.bfloat16), Weight(other, 5, torch.bfloat16)], "gaussian")
    part = table.part([Piece(0, 0, 3000), Piece(1, 0, 70)])
    together = {point: torch.empty(part.size, dtype=torch.uint8) for point in (0, 1)}
    table.aim(Aim.along(4, (1e-2, -1e-2)))
    table.perturb(part, together)
    for point, scale in enumerate((1e-2, -1e-2)):
        alone = torch.empty(part.size, dtype=torch.uint8)
        table.aim(Aim.along(4, (scale,)))
        table.perturb(part, {0: alone})
        for one, both in zip(part.views(alone), part.views(together[point]), strict=True):
            assert torch.equal(one, both)


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_any_part_of_a_weight_can_be_made_alone(name: str) -> None:
    value, kernel = torch.randn(5 * TILE + 17), load(name, "cpu")
    (whole,) = perturbed(kernel, value, torch.float32, 3, 0.1)
    pieces = [Piece(0, 0, 1), Piece(0, 100, 5000), Piece(0, TILE - 1, 2), Piece(0, 4 * TILE, TILE + 17), Piece(0, 7, 0)]
    for piece, part in zip(pieces, perturbed(kernel, value, torch.float32, 3, 0.1, pieces), strict=True):
        assert torch.equal(part, whole[piece.start : piece.start + piece.count])


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_a_shard_is_a_part_of_the_whole(name: str) -> None:
    value, kernel = torch.randn(5000).bfloat16(), load(name, "cpu")
    update = Update((3, 4), ((1e-2, -1e-3),), (as_float32(0.99),))
    whole, shard = value.clone(), value[2100:].clone()
    kernel.table([Weight(whole, 2, torch.bfloat16)], "gaussian").update([update])
    kernel.table([Weight(shard, 2, torch.bfloat16, first=2100)], "gaussian").update([update])
    assert torch.equal(shard, whole[2100:])


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_several_steps_at_once_are_one_after_the_other(name: str) -> None:
    steps = [Update((k, k + 1), ((1e-2, 2e-3), (0.0, 0.0)), (1.0, as_float32(0.9))) for k in range(5)]

    def after(parts: list[list[Update]]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        values = [torch.randn(3000).bfloat16(), torch.randn(40, 50), torch.randn(9).half()]
        table = load(name, "cpu").table([Weight(v, k, v.dtype, k % 2) for k, v in enumerate(values)], "gaussian")
        for part in parts:
            table.update(part)
        return values

    assert all(map(torch.equal, after([steps]), after([[step] for step in steps])))
    assert all(map(torch.equal, after([steps]), after([steps[:2], [], steps[2:]])))


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every number of a 16-bit dtype; for float32 a sample with all exponents and the special values."""
    if dtype != torch.float32:
        return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 60_000, dtype=np.uint64).astype(np.uint32)
    special = np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7FFFFFFF], dtype=np.uint32)
    return torch.from_numpy(np.concatenate([bits, special, special | np.uint32(1 << 31)]).view(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1e-7, 2.0])
def test_every_number_and_special_value(kernel: Kernel, dtype: torch.dtype, scale: float) -> None:
    weight = all_patterns(dtype)
    for target in DTYPES:
        (expected,), (out,) = (perturbed(k, weight, target, 9, scale) for k in (REFERENCE, kernel))
        assert same_bits(out, expected)
    assert same_bits(updated(kernel, weight, scale, -scale), updated(REFERENCE, weight, scale, -scale))


def on_grid(rows: int, width: int) -> tuple[torch.Tensor, Grid]:
    """All kinds of integers, and steps that differ from row to row."""
    generator = np.random.default_rng(0)
    integers = generator.integers(-32767, 32768, (rows, width)).astype(np.int16)
    steps = (2.0 ** generator.integers(-24, 0, rows)).astype(np.float32)
    return torch.from_numpy(integers), Grid(torch.from_numpy(steps), width)


@pytest.mark.parametrize("name", ["reference", *OTHERS])
@pytest.mark.parametrize(
    ("factor", "limits"), [(1e30, [-32767, 32767]), (float("inf"), [-32767, 32767]), (float("nan"), [0])]
)
def test_values_beyond_the_grid_stay_at_its_end(name: str, factor: float, limits: list[int]) -> None:
    weight, grid = on_grid(4, 500)
    assert sorted(updated(load(name, "cpu"), weight, factor, grid=grid).unique().tolist()) == limits


def test_rounding_to_the_grid_is_exact_in_probability() -> None:
    """Over all 65536 values of r the mean is the number itself, but for less than 2**-16 of a step."""
    all_r = np.arange(65536, dtype=np.uint16)
    for value in np.random.default_rng(3).uniform(-3, 3, 12).astype(np.float32):
        got = stochastic_on_grid(np.full(65536, value), all_r, np.ones(1, dtype=np.float32))
        assert set(np.unique(got)) <= {np.floor(value), np.ceil(value)}
        assert abs(got.astype(np.float64).mean() - np.float64(value)) <= 2.0**-16
    integers = np.arange(-32767, 32768).astype(np.float32)
    for r in (0, 1, 40000, 65535):
        assert (stochastic_on_grid(integers, np.full(1, r, np.uint16), np.ones(1, np.float32)) == integers).all()


def table_of(name: str, height: int, width: int) -> WeightTable:
    return load(name, "cpu").table([Weight(torch.zeros(height, width), 0, torch.float32)], "gaussian")


@pytest.mark.parametrize("name", ["reference", *OTHERS])
@pytest.mark.parametrize("row", [-1, 5])
def test_rows_outside_the_table_are_refused(name: str, row: int) -> None:
    with pytest.raises(IndexError, match="row"):
        table_of(name, 5, 3).look_up(0, torch.tensor([0, row]), {0: torch.empty(2, 3)})


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_factors_do_not_crash(kernel: Kernel, dtype: torch.dtype, factor: float) -> None:
    assert not updated(kernel, torch.ones(100, dtype=dtype), factor).isfinite().any()


@pytest.mark.parametrize("name", ["reference", *OTHERS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_of_nothing_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    weight = all_patterns(dtype)
    after = updated(load(name, "cpu"), weight, 0.0, -0.0)
    assert torch.equal(after.view(SIGNED[dtype]), weight.view(SIGNED[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles_on_several_threads(kernel: Kernel, dtype: torch.dtype) -> None:
    """Large enough that chunks and threads share the work, each part of it once."""
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal(300 * TILE + 5).astype(np.float32)).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(3 if kernel.name == "numba" else 1)
    try:
        (expected,), (out,) = (perturbed(k, weight, dtype, 4, 1e-3) for k in (REFERENCE, kernel))
        assert same_bits(out, expected)
        assert same_bits(updated(kernel, weight, 0.01, -0.02), updated(REFERENCE, weight, 0.01, -0.02))
    finally:
        torch.set_num_threads(before)


def neighbours(values: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """The 16-bit numbers below and above in size (float64), by truncation of the size in float64."""
    finfo = {torch.bfloat16: (8, -126), torch.float16: (11, -14)}[dtype]
    exponent = np.maximum(np.floor(np.log2(np.abs(values).astype(np.float64))), finfo[1])
    spacing = 2.0 ** (exponent - finfo[0] + 1)
    lower = np.floor(np.abs(values) / spacing) * spacing
    return lower, lower + spacing


@pytest.mark.parametrize(
    ("dtype", "function"), [(torch.bfloat16, stochastic_bfloat16), (torch.float16, stochastic_float16)]
)
@pytest.mark.parametrize("size", [1.0, 0.02, 1e-5, 3e-7])
def test_stochastic_rounding_is_exact_in_probability(
    dtype: torch.dtype,
    function: Callable[..., np.ndarray],
    size: float,  # type: ignore[type-arg]
) -> None:
    """Over all 65536 values of r the mean is the number itself: no bias at all, or below 2**-16 of the spacing."""
    all_r = np.arange(65536, dtype=np.uint16)
    for value in np.random.default_rng(3).standard_normal(12).astype(np.float32) * np.float32(size):
        got = function(np.full(65536, value, dtype=np.float32), all_r)
        rounded = torch.from_numpy(got.view(np.int16)).view(dtype).double().numpy()
        lower, upper = neighbours(np.array(value), dtype)
        assert set(np.unique(np.abs(rounded))) <= {float(lower), float(upper)}
        subnormal = dtype == torch.float16 and abs(value) < 2.0**-14
        tolerance = (upper - lower) * 2.0**-16 if subnormal else 0.0
        assert abs(rounded.mean() - np.float64(value)) <= tolerance


@pytest.mark.parametrize(
    ("dtype", "function"), [(torch.bfloat16, stochastic_bfloat16), (torch.float16, stochastic_float16)]
)
@pytest.mark.parametrize("r", [0, 1, 40000, 65535])
def test_stochastic_rounding_keeps_what_fits(dtype: torch.dtype, function: Callable[..., np.ndarray], r: int) -> None:  # type: ignore[type-arg]
    values = all_patterns(dtype)
    got = function(values.float().numpy(), np.full(65536, r, dtype=np.uint16))
    assert same_bits(torch.from_numpy(got.view(np.int16)).view(dtype), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_of_low_rank(dtype: torch.dtype) -> None:
    """Whole, in parts, by rows, at two points of two pairs, and in updates: the torch kernel's are NumPy's."""
    torch.manual_seed(0)
    values = [torch.randn(37, 130), torch.randn(50), torch.randn(6, 5, 4)]
    scales = ((0.1, -0.2), (-0.1, 0.3))
    aim = Aim((2**40 + 7, 2**40 + 9), tuple((tuple(map(as_float32, pair)),) for pair in scales))
    pieces = [Piece(0, 0, 37 * 130), Piece(1, 3, 20), Piece(2, 0, 120), Piece(0, 259, 1000)]
    results = []
    for name in ("reference", "torch"):
        weights = [Weight(value.to(dtype, copy=True), number, dtype) for number, value in enumerate(values)]
        table = load(name, "cpu").table(weights, "lowrank-3")
        table.aim(aim)
        part = table.part(pieces)
        memory = {point: torch.zeros(part.size, dtype=torch.uint8) for point in (0, 1)}
        table.perturb(part, memory)
        rows = {point: torch.zeros(4, 130, dtype=dtype) for point in (0, 1)}
        table.look_up(0, torch.tensor([36, 0, 5, 5]), rows)
        table.update([Update((11, 12), ((0.01, -0.02),), (1.0,))])
        views = [view.clone() for copy in memory.values() for view in part.views(copy)]
        assert torch.equal(views[3], views[0][259:1259])
        assert torch.equal(rows[0], views[0].view(37, 130)[[36, 0, 5, 5]])
        results.append([*views, *rows.values(), *(weight.value for weight in weights)])
    for one, other in zip(*results, strict=True):
        assert same_bits(one, other)


def test_a_direction_of_low_rank_is_a_product() -> None:
    """z has that rank, variance 1 an element, and one factor in common with seeds of the same upper half."""
    z, other = (low_rank_values(seed, 3, 0, 300, 200, 2).astype(np.float64) for seed in (2**40 + 7, 2**40 + 9))
    assert np.linalg.matrix_rank(z, tol=1e-3) == 2
    assert np.linalg.matrix_rank(np.concatenate([z, other]), tol=1e-3) == 2
    assert abs(z.var() - 1) < 0.2


def test_kernels_without_directions_of_low_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel 'numba' has no directions of low rank"):
        kernel_for("numba", "cpu", "lowrank-2")
    assert kernel_for("auto", "cpu", "lowrank-2").name == "torch"


def test_what_falls_back_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for module in ("triton_cuda", "triton_programs"):
        monkeypatch.delitem(sys.modules, f"llava.mezo.kernels.{module}", raising=False)
    choice.available.cache_clear()
    assert (choice.fastest("cuda"), choice.fastest("cuda")) == ("torch", "torch")
    assert len(caplog.messages) == 1 and "the kernel triton is not here (" in caplog.text
    choice.available.cache_clear()


def test_no_step_waits_for_the_compiler() -> None:
    """The compiled kernel is compiled, or read from disk, on import, and for one type of each argument."""
    from llava.mezo.kernels import numba_cpu

    spec = importlib.util.spec_from_file_location("a_second_import", numba_cpu.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entries = module._perturb, module._look_up, module._update
    assert [len(entry.signatures) for entry in entries] == [1, 1, 1]
