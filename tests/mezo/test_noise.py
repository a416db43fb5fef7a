"""The noise function: known answers, the table, element layout, seeds."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from llava.mezo.kernels import fastest
from llava.mezo.noise import (
    STREAM_DIRECTION,
    STREAM_ROUNDING,
    TILE,
    direction_seed,
    direction_values,
    kernel_for,
    noise_table,
    philox4x32,
    random_bits,
)

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    words = philox4x32(tuple(np.array([word], dtype=np.uint32) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word[0]) for word in words) == answer


def test_gaussian_table_is_the_published_one() -> None:
    table = noise_table("gaussian")
    assert hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()[:16] == "1cfbba1e07e34386"
    wide = table.astype(np.float64)
    assert wide.sum() == 0.0
    assert wide.var() == pytest.approx(0.99998, abs=5e-6)
    assert (wide**4).mean() == pytest.approx(2.9991, abs=5e-5)


def test_rademacher_table_is_the_top_bit() -> None:
    table = noise_table("rademacher")
    assert (table[:32768] == -1).all() and (table[32768:] == 1).all()


def test_unknown_noise_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'uniform'.*gaussian, rademacher"):
        noise_table("uniform")


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
    assert direction_seed(0, 0, 0) == 0xADF5A0DBDD2FC514  # journals rely on these values
    assert direction_seed(42, 7, 1) == 0x15E2EB40024D9978


def test_global_generators_are_not_touched() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index,union-attr]
    weight, out = torch.ones(5000), torch.empty(5000)
    from llava.mezo.kernels import Field

    for name in ("reference", "torch", "auto"):
        kernel = kernel_for(name, "cpu")
        kernel.perturb(weight, out, Field(0, "gaussian"), direction_seed(0, 0, 0), 1e-3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert before[2] == random.getstate()


def test_kernel_names_and_devices_are_checked() -> None:
    with pytest.raises(ValueError, match=r"'fast'.*auto, reference, torch, numba, triton"):
        kernel_for("fast", "cpu")
    with pytest.raises(ValueError, match=r"'reference' runs on cpu alone.*'cuda'"):
        kernel_for("reference", "cuda")
    assert kernel_for("auto", "cuda").name == fastest("cuda")
