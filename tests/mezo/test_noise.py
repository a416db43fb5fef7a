"""The noise function: known answers, distributions, element layout, seeds."""

from __future__ import annotations

import hashlib
import random
from statistics import NormalDist

import numpy as np
import pytest
import torch

from llava.mezo.kernels.choice import fastest, kernel_for
from llava.mezo.kernels.interface import Aim, Piece, Weight
from llava.mezo.noise import (
    DISTRIBUTIONS,
    PHILOX_ROUNDS,
    STREAM_DIRECTION,
    STREAM_ROUNDING,
    STREAM_SEED,
    TILE,
    direction_seed,
    direction_values,
    philox4x32,
    quantiles,
    random_bits,
)

# Random123's kat_vectors: counter, key, answers after 7 and after 10 rounds
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        {7: (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48), 10: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)},
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        {7: (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662), 10: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)},
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        {7: (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A), 10: (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)},
    ),
]


@pytest.mark.parametrize("rounds", [7, 10])
@pytest.mark.parametrize(("counter", "key", "answers"), KNOWN_ANSWERS)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answers: dict[int, tuple[int, ...]], rounds: int
) -> None:
    words = philox4x32(tuple(np.array([word], dtype=np.uint32) for word in counter), key, rounds)  # type: ignore[arg-type]
    assert tuple(int(word[0]) for word in words) == answers[rounds]


def test_seven_rounds_are_used() -> None:
    """The first words of element 0 are those of block 0, which is a known answer for seed, tensor and stream 0."""
    assert PHILOX_ROUNDS == 7
    bits = random_bits(0, 0, 0, 0, TILE)
    assert int(bits[0]) | int(bits[256]) << 16 == KNOWN_ANSWERS[0][2][7][0]


def test_the_quantiles_are_the_published_ones() -> None:
    table = quantiles()
    assert hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()[:16] == "4650aa019718ae5e"
    assert len(table) == 256 and (table == -table[::-1]).all() and (np.diff(table) > 0).all()


def test_gaussian_is_the_sum_of_two_quantiles() -> None:
    """All 65,536 numbers: mean exactly 0, variance 1, a distribution function near the normal one."""
    bits = np.arange(65536, dtype=np.uint16)
    z = DISTRIBUTIONS["gaussian"](bits)
    assert z.dtype == np.float32 and (z == quantiles()[bits % 256] + quantiles()[bits // 256]).all()
    wide = z.astype(np.float64)
    assert wide.sum() == 0.0
    assert wide.var() == pytest.approx(1, abs=3e-9)
    assert (wide**4).mean() / wide.var() ** 2 == pytest.approx(2.959, abs=1e-3)
    values, counts = np.unique(wide, return_counts=True)
    share = np.cumsum(counts) / 65536
    normal = np.array([NormalDist().cdf(value) for value in values])
    assert max(abs(share - normal).max(), abs(share - counts / 65536 - normal).max()) < 0.002


def test_rademacher_is_the_top_bit() -> None:
    z = DISTRIBUTIONS["rademacher"](np.arange(65536, dtype=np.uint16))
    assert z.dtype == np.float32 and (z[:32768] == -1).all() and (z[32768:] == 1).all()


def test_layout_of_elements_over_blocks() -> None:
    """Element e: block 256 * tile + e % 256, word (e % 2048) // 512, half by (e % 512) // 256."""
    seed, tensor = 7 | 9 << 32, 5
    bits = random_bits(seed, tensor, STREAM_ROUNDING, 0, 3 * TILE)
    for element in (0, 1, 255, 256, 511, 512, 2047, 2048, 2048 + 300, 3 * TILE - 1):
        tile, inside = divmod(element, TILE)
        counter = [np.array([c], dtype=np.uint32) for c in (256 * tile + inside % 256, 0, tensor, STREAM_ROUNDING)]
        word = int(philox4x32(tuple(counter), (7, 9))[inside // 512][0])  # type: ignore[arg-type]
        expected = word >> 16 if (inside // 256) % 2 else word & 0xFFFF
        assert int(bits[element]) == expected


def test_block_numbers_beyond_32_bits() -> None:
    element = (2**32 + 3) * 8
    tile, inside = divmod(element, TILE)
    block = 256 * tile + inside % 256
    counter = [np.array([c], dtype=np.uint32) for c in (block & 0xFFFFFFFF, block >> 32, 0, 0)]
    word = int(philox4x32(tuple(counter), (1, 0))[inside // 512][0])  # type: ignore[arg-type]
    assert block >> 32 == 1
    assert int(random_bits(1, 0, 0, element, 1)[0]) == (word >> 16 if (inside // 256) % 2 else word & 0xFFFF)


def test_any_part_of_a_tensor_can_be_computed_alone() -> None:
    whole = random_bits(3, 1, STREAM_DIRECTION, 0, 10_000)
    for start, count in ((0, 1), (100, 5000), (2047, 2), (4096, 4096), (9999, 1)):
        assert (random_bits(3, 1, STREAM_DIRECTION, start, count) == whole[start : start + count]).all()


def test_streams_tensors_and_seeds_are_unrelated() -> None:
    base = random_bits(0, 0, STREAM_DIRECTION, 0, 20_000).astype(np.float64)
    others = [
        random_bits(0, 0, STREAM_ROUNDING, 0, 20_000),
        random_bits(0, 1, STREAM_DIRECTION, 0, 20_000),
        random_bits(1, 0, STREAM_DIRECTION, 0, 20_000),
        random_bits(1 << 32, 0, STREAM_DIRECTION, 0, 20_000),
    ]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_moments(noise: str) -> None:
    z = direction_values(2**63 + 5, 4, 0, 400_000, noise).astype(np.float64)
    assert abs(z.mean()) < 0.008 and z.var() == pytest.approx(1, abs=0.012)


def test_direction_seed_is_a_function_of_its_three_arguments() -> None:
    seeds = {direction_seed(r, s, d) for r in (0, 1, 2**64 - 1) for s in (0, 1, 2**40) for d in (0, 1)}
    assert len(seeds) == 18 and all(0 <= seed < 2**64 for seed in seeds)
    assert direction_seed(0, 0, 0) == 0x9BE839063F79CB1C  # journals rely on these values
    assert direction_seed(42, 7, 1) == 0x9A338F9460193E44


def test_direction_seed_is_the_beginning_of_a_philox_block() -> None:
    for run_seed, step, direction in ((0, 0, 0), (2**64 - 1, 2**33 + 1, 3), (5 << 40, 7, 2**32 - 1)):
        counter = (step & 0xFFFFFFFF, step >> 32, direction, STREAM_SEED)
        words = philox4x32(
            tuple(np.array([word], dtype=np.uint32) for word in counter),  # type: ignore[arg-type]
            (run_seed & 0xFFFFFFFF, run_seed >> 32),
        )
        assert direction_seed(run_seed, step, direction) == int(words[0][0]) | int(words[1][0]) << 32


def test_global_generators_are_not_touched() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index,union-attr]
    for name in ("reference", "torch", "auto"):
        table = kernel_for(name, "cpu").table([Weight(torch.ones(5000), 0, torch.float32)], "gaussian")
        table.aim(Aim.along(direction_seed(0, 0, 0), (1e-3,)))
        part = table.part([Piece(0, 0, 5000)])
        table.perturb(part, {0: torch.empty(part.size, dtype=torch.uint8)})
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert before[2] == random.getstate()


def test_kernel_names_and_devices_are_checked() -> None:
    with pytest.raises(ValueError, match=r"'fast'.*auto, reference, torch, numba, triton"):
        kernel_for("fast", "cpu")
    with pytest.raises(ValueError, match=r"'reference' runs on cpu alone.*'cuda'"):
        kernel_for("reference", "cuda")
    assert kernel_for("auto", "cuda").name == fastest("cuda")
