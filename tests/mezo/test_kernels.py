"""Every kernel gives the reference's bits: shapes, offsets, dtypes, scales, rows, special values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.mezo.kernels import Field, Grid, Kernel, as_float32, load
from llava.mezo.kernels.numpy_reference import stochastic_bfloat16, stochastic_float16, stochastic_on_grid
from llava.mezo.noise import TILE

pytest.importorskip("numba")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OTHERS = ("torch", "numba")
SIGNED = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

seeds = st.integers(0, 2**64 - 1)
counts = st.one_of(st.integers(1, 600), st.sampled_from([TILE - 1, TILE, TILE + 1, 3 * TILE + 17]))
starts = st.one_of(st.just(0), st.integers(0, 3 * TILE), st.sampled_from([2**35 + 5, 8 * 2**32 - 100]))
sizes = st.sampled_from([1e-9, 1e-6, 1e-3, 0.02, 1.0, 300.0, 7e4, 1e30])
scales = st.sampled_from([0.0, 1e-3, -1e-3, 1e-6, 0.1, 3.0, -1e5])


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal bit for bit; any NaN equals any NaN."""
    nan = one.isnan()
    assert torch.equal(nan, other.isnan())
    patterns = [t.view(SIGNED[t.dtype]).masked_fill(nan, 0) for t in (one, other)]
    assert torch.equal(*patterns)


def weights(count: int, dtype: torch.dtype, size: float, seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed % 2**32).standard_normal(count).astype(np.float32) * np.float32(size)
    return torch.from_numpy(values).to(dtype)


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every number of a 16-bit dtype; for float32 a sample with all exponents and the special values."""
    if dtype != torch.float32:
        return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 60_000, dtype=np.uint64).astype(np.uint32)
    special = np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7FFFFFFF], dtype=np.uint32)
    return torch.from_numpy(np.concatenate([bits, special, special | np.uint32(1 << 31)]).view(np.float32))


@pytest.fixture(params=OTHERS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return load(request.param, "cpu")


REFERENCE = load("reference", "cpu")


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    counts,
    starts,
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    sizes,
    scales,
    st.sampled_from(["gaussian", "rademacher"]),
)
def test_perturb_agrees(
    seed: int, count: int, start: int, dtype: torch.dtype, target: torch.dtype, size: float, scale: float, noise: str
) -> None:
    weight, field = weights(count, dtype, size, seed), Field(seed % 1000, noise)
    expected = torch.empty(count, dtype=target)
    REFERENCE.perturb(weight, expected, field, seed, scale, start)
    for name in OTHERS:
        out = torch.empty(count, dtype=target)
        load(name, "cpu").perturb(weight, out, field, seed, scale, start)
        assert_same_bits(out, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(seeds, min_size=1, max_size=3),
    counts,
    starts,
    st.sampled_from(DTYPES),
    sizes,
    st.lists(scales, min_size=3, max_size=3),
    st.sampled_from([1.0, 0.999, as_float32(1 - 1e-6), 0.5]),
)
def test_update_agrees(
    seeds: list[int], count: int, start: int, dtype: torch.dtype, size: float, factors: list[float], decay: float
) -> None:
    factors = [as_float32(f) for f in factors[: len(seeds)]]
    weight, field = weights(count, dtype, size, seeds[0]), Field(11, "gaussian")
    expected = weight.clone()
    REFERENCE.update(expected, field, seeds, factors, as_float32(decay), start)
    for name in OTHERS:
        out = weight.clone()
        load(name, "cpu").update(out, field, seeds, factors, as_float32(decay), start)
        assert_same_bits(out, expected)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 40), st.sampled_from([1, 7, 256, 896, 2048, 2500]), st.sampled_from(DTYPES), st.data())
def test_rows_are_the_rows_of_the_whole(
    seed: int, height: int, width: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    rows = torch.tensor(data.draw(st.lists(st.integers(0, height - 1), max_size=20)), dtype=torch.int64)
    table, field = weights(height * width, dtype, 0.02, seed).view(height, width), Field(2, "gaussian")
    whole = torch.empty_like(table)
    REFERENCE.perturb(table, whole, field, seed, 1e-3)
    for name in ("reference", *OTHERS):
        out = torch.empty(len(rows), width, dtype=dtype)
        load(name, "cpu").perturb_rows(table, rows, out, field, seed, 1e-3)
        assert_same_bits(out, whole[rows])


def on_grid(rows: int, width: int, seed: int) -> tuple[torch.Tensor, Grid]:
    """All kinds of integers, and steps that differ from row to row."""
    generator = np.random.default_rng(seed % 2**32)
    integers = generator.integers(-32767, 32768, (rows, width)).astype(np.int16)
    integers.flat[:3] = (32767, -32767, 0)[: integers.size]
    steps = (2.0 ** generator.integers(-24, 0, rows)).astype(np.float32)
    return torch.from_numpy(integers), Grid(torch.from_numpy(steps), width)


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    st.integers(1, 30),
    st.sampled_from([1, 3, 24, 896, 2048, 2500]),
    st.integers(0, 29),
    st.sampled_from(DTYPES),
    st.lists(scales, min_size=2, max_size=2),
    st.sampled_from([1.0, 0.999]),
)
def test_grid_agrees(
    seed: int, rows: int, width: int, first: int, target: torch.dtype, factors: list[float], decay: float
) -> None:
    """Rows first ... of a weight on a grid: perturbed, looked up and updated."""
    whole, grid = on_grid(rows, width, seed)
    first = min(first, rows - 1)
    weight, field = whole[first:], Field(7, "gaussian")
    chosen = torch.tensor([first, rows - 1, first])
    expected, expected_rows = torch.empty(weight.shape, dtype=target), torch.empty(3, width, dtype=target)
    updated, factors = whole.clone(), [as_float32(f) for f in factors]
    REFERENCE.perturb(weight, expected, field, seed, 1e-3, first * width, grid)
    REFERENCE.perturb_rows(whole, chosen, expected_rows, field, seed, 1e-3, grid)
    REFERENCE.update(updated[first:], field, [seed, 5], factors, as_float32(decay), first * width, grid)
    assert_same_bits(expected_rows, expected[chosen - first])
    for name in OTHERS:
        other = load(name, "cpu")
        out, out_rows, changed = torch.empty_like(expected), torch.empty_like(expected_rows), whole.clone()
        other.perturb(weight, out, field, seed, 1e-3, first * width, grid)
        other.perturb_rows(whole, chosen, out_rows, field, seed, 1e-3, grid)
        other.update(changed[first:], field, [seed, 5], factors, as_float32(decay), first * width, grid)
        assert_same_bits(out, expected)
        assert_same_bits(out_rows, expected_rows)
        assert torch.equal(changed, updated)


@pytest.mark.parametrize("name", ["reference", *OTHERS])
@pytest.mark.parametrize(
    ("factor", "limits"), [(1e30, [-32767, 32767]), (float("inf"), [-32767, 32767]), (float("nan"), [0])]
)
def test_values_beyond_the_grid_stay_at_its_end(name: str, factor: float, limits: list[int]) -> None:
    weight, grid = on_grid(4, 500, 0)
    load(name, "cpu").update(weight, Field(0, "rademacher"), [1], [factor], 1.0, grid=grid)
    assert sorted(weight.unique().tolist()) == limits


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


@pytest.mark.parametrize("name", ["reference", *OTHERS])
@pytest.mark.parametrize("row", [-1, 5])
def test_rows_outside_the_table_are_refused(name: str, row: int) -> None:
    with pytest.raises(IndexError, match="row"):
        load(name, "cpu").perturb_rows(
            torch.zeros(5, 3), torch.tensor([0, row]), torch.empty(2, 3), Field(0, "gaussian"), 0, 1.0
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1e-7, 2.0])
def test_every_number_and_special_value(kernel: Kernel, dtype: torch.dtype, scale: float) -> None:
    weight, field = all_patterns(dtype), Field(1, "gaussian")
    for target in DTYPES:
        expected, out = (torch.empty(weight.shape, dtype=target) for _ in range(2))
        REFERENCE.perturb(weight, expected, field, 9, scale)
        kernel.perturb(weight, out, field, 9, scale)
        assert_same_bits(out, expected)
    expected, out = weight.clone(), weight.clone()
    REFERENCE.update(expected, field, [9, 10], [as_float32(scale), as_float32(-scale)], 1.0)
    kernel.update(out, field, [9, 10], [as_float32(scale), as_float32(-scale)], 1.0)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_factors_do_not_crash(kernel: Kernel, dtype: torch.dtype, factor: float) -> None:
    weight = torch.ones(100, dtype=dtype)
    kernel.update(weight, Field(0, "gaussian"), [0], [factor], 1.0)
    assert not weight.isfinite().any()


@pytest.mark.parametrize("name", ["reference", *OTHERS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_of_nothing_writes_nothing(name: str, dtype: torch.dtype) -> None:
    weight = all_patterns(dtype)
    before = weight.clone()
    load(name, "cpu").update(weight, Field(0, "gaussian"), [1, 2], [0.0, -0.0], 1.0)
    assert torch.equal(weight.view(SIGNED[dtype]), before.view(SIGNED[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles_on_several_threads(kernel: Kernel, dtype: torch.dtype) -> None:
    """Large enough that chunks and threads share the work, each part of it once."""
    count, field = 300 * TILE + 5, Field(3, "gaussian")
    before = torch.get_num_threads()
    torch.set_num_threads(3 if kernel.name == "numba" else 1)
    try:
        weight = weights(count, dtype, 0.02, 1)
        expected, out = torch.empty_like(weight), torch.empty_like(weight)
        REFERENCE.perturb(weight, expected, field, 4, 1e-3)
        kernel.perturb(weight, out, field, 4, 1e-3)
        assert_same_bits(out, expected)
        expected, out = weight.clone(), weight.clone()
        REFERENCE.update(expected, field, [4, 5], [0.01, -0.02], 1.0)
        kernel.update(out, field, [4, 5], [0.01, -0.02], 1.0)
        assert_same_bits(out, expected)
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
    assert_same_bits(torch.from_numpy(got.view(np.int16)).view(dtype), values)
