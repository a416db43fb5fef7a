"""The noise of a run, version 2: a pure function of (seed, tensor number, stream, element).

No random number generator is seeded or read: not torch's, not NumPy's, not Python's. The same numbers come out on
every device, for every order of the parameters and every world size.

Definition
----------
Blocks are Philox4x32-7 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; by its table 2 the fewest
rounds that pass BigCrush) with

    key     = (seed & 0xffffffff, seed >> 32)
    counter = (block & 0xffffffff, block >> 32, tensor, stream)

`tensor` is the parameter's number in the run's sorted list of names (`names.py`). `stream` is one of

    0  the direction z
    1  the bits of stochastic rounding (seed of the step's first direction)
    2  seeds of directions, derived from the run's seed (`direction_seed`)
    3  A of a direction of low rank
    4  B of one, whose key has only the upper half of the seed

Elements are numbered in the contiguous order of the full tensor. Element e lies in tile e // 2048; with i = e % 2048
its block is 256 * tile + i % 256, its 32-bit word i // 512, its half (i // 256) % 2 (0 = low 16 bits). One block thus
gives eight 16-bit numbers u which are 256 elements apart, so that kernels store contiguous runs of 256.

    gaussian    z = T[u & 255] + T[u >> 8] in float32, with the 256 quantiles of the normal distribution in T, scaled
                so that the sum has variance 1 (`quantiles`); a table of 1 KB, which every processor keeps at hand
    rademacher  z = +1 where u >= 32768, else -1
    lowrank-R   for a tensor of at least two dimensions, as a matrix with a row for each index of the first:
                z[i, j] = (A[i, 0] B[j, 0] + ... + A[i, R-1] B[j, R-1]) / sqrt(R), gaussian A (element R i + k) and B
                (element R j + k), every operation rounded to float32, from the left; for others gaussian

The sum has mean 0 exactly, variance 1 to 3e-9, kurtosis 2.96, no number beyond 4.09, and a distribution function
within 0.002 of the normal one. Everything below is the readable NumPy reference; the kernels in `kernels/` are tested
against it bit for bit.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

NOISE_VERSION = 2
"""Of this definition; a journal names it."""

TILE = 2048
BLOCKS_PER_TILE = 256
QUANTILES = 256

STREAM_DIRECTION = 0
STREAM_ROUNDING = 1
STREAM_SEED = 2
STREAM_ROWS = 3
STREAM_COLUMNS = 4

LOW_RANK = "lowrank"

PHILOX_ROUNDS = 7
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
LOW32 = 0xFFFFFFFF


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int], rounds: int = PHILOX_ROUNDS
) -> tuple[Words, Words, Words, Words]:
    """Four words of output for every counter. The four arrays broadcast against each other."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    shift, low = np.uint64(32), np.uint64(LOW32)
    for _ in range(rounds):
        product0 = np.uint64(PHILOX_MULTIPLIERS[0]) * c0
        product1 = np.uint64(PHILOX_MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> shift) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0, k1 = (k0 + PHILOX_WEYL[0]) & LOW32, (k1 + PHILOX_WEYL[1]) & LOW32
    return c0.astype(np.uint32), c1.astype(np.uint32), c2.astype(np.uint32), c3.astype(np.uint32)


def split64(value: int) -> tuple[int, int]:
    """Low and high 32-bit word of a 64-bit number."""
    return value & LOW32, value >> 32


def direction_seed(run_seed: int, step: int, direction: int) -> int:
    """64-bit seed of one direction of one step: the first two words of a Philox block keyed by the run's seed.

    `run_seed` and `step` are 64-bit, `direction` 32-bit numbers. Nothing else enters, so a resumed run, another rank
    or a replay finds the same seed.
    """
    # in Python's integers: one block by NumPy's arrays takes twenty times as long, in every step
    (c0, c1), c2, c3 = split64(step), direction, STREAM_SEED
    k0, k1 = split64(run_seed)
    for _ in range(PHILOX_ROUNDS):
        product0, product1 = PHILOX_MULTIPLIERS[0] * c0, PHILOX_MULTIPLIERS[1] * c2
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & LOW32
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & LOW32
        k0, k1 = (k0 + PHILOX_WEYL[0]) & LOW32, (k1 + PHILOX_WEYL[1]) & LOW32
    return c0 | c1 << 32


def random_bits(seed: int, tensor: int, stream: int, start: int, count: int) -> npt.NDArray[np.uint16]:
    """The 16-bit numbers of elements start ... start + count - 1 of a tensor."""
    element = np.arange(start, start + count, dtype=np.uint64)
    tile, inside = element // np.uint64(TILE), element % np.uint64(TILE)
    block = tile * np.uint64(BLOCKS_PER_TILE) + inside % np.uint64(BLOCKS_PER_TILE)
    words = philox4x32(
        (
            (block & np.uint64(LOW32)).astype(np.uint32),
            (block >> np.uint64(32)).astype(np.uint32),
            np.uint32(tensor),
            np.uint32(stream),
        ),
        split64(seed),
    )
    word = np.choose((inside // np.uint64(512)).astype(np.int64), words)
    half = (inside // np.uint64(256)) % np.uint64(2)
    bits: npt.NDArray[np.uint16] = (word.astype(np.uint64) >> (half * np.uint64(16)) & np.uint64(0xFFFF)).astype(
        np.uint16
    )
    return bits


def direction_values(seed: int, tensor: int, start: int, count: int, noise: str) -> npt.NDArray[np.float32]:
    """z for elements start ... start + count - 1 of a tensor, float32."""
    z: npt.NDArray[np.float32] = DISTRIBUTIONS[noise](random_bits(seed, tensor, STREAM_DIRECTION, start, count))
    return z


def low_rank_values(
    seed: int, tensor: int, first_row: int, rows: int, columns: int, rank: int
) -> npt.NDArray[np.float32]:
    """z of low rank for some rows of a matrix, float32 [rows, columns]."""
    a = _gaussian(random_bits(seed, tensor, STREAM_ROWS, first_row * rank, rows * rank)).reshape(rows, rank)
    b = _gaussian(random_bits(upper_half(seed), tensor, STREAM_COLUMNS, 0, columns * rank)).reshape(columns, rank)
    z = np.multiply.outer(a[:, 0], b[:, 0])
    for k in range(1, rank):
        z = z + np.multiply.outer(a[:, k], b[:, k])
    scaled: npt.NDArray[np.float32] = z * np.float32(rank_scale(rank))
    return scaled


def rank_of(noise: str) -> int:
    """R of lowrank-R; 0 for another noise."""
    name, _, rank = noise.partition("-")
    return int(rank) if name == LOW_RANK else 0


def rank_scale(rank: int) -> float:
    """1 / sqrt(rank), rounded to float32."""
    return float(np.float32(1 / math.sqrt(rank)))


def upper_half(seed: int) -> int:
    """The seed with zeros for its lower 32 bits."""
    return seed & ~LOW32


def _gaussian(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    table = quantiles()
    z: npt.NDArray[np.float32] = table[bits & 255] + table[bits >> 8]
    return z


def _rademacher(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    z: npt.NDArray[np.float32] = np.where(bits >= 32768, np.float32(1), np.float32(-1))
    return z


DISTRIBUTIONS = {"gaussian": _gaussian, "rademacher": _rademacher}
"""What makes an element of z of 16 random bits, by name."""


@cache
def quantiles() -> npt.NDArray[np.float32]:
    """T: quantile (i + 0.5) / 256 of the normal distribution for i = 0 ... 255, over the root of twice their variance.

    In float64, then rounded to float32; read-only. T[i] == -T[255 - i], so the mean is exactly 0.
    """
    inverse = NormalDist().inv_cdf
    lower = [inverse((i + 0.5) / QUANTILES) for i in range(QUANTILES // 2)]
    spread = math.sqrt(2 * math.fsum(q * q for q in lower) / (QUANTILES // 2))
    half = np.array([q / spread for q in lower], dtype=np.float64).astype(np.float32)
    table = np.concatenate([half, -half[::-1]])
    table.setflags(write=False)
    return table
