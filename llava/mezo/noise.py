"""The noise of a run: a pure function of (seed, tensor number, stream, element), and the choice of who computes it.

No random number generator is seeded or read: not torch's, not NumPy's, not Python's. The same numbers come out on
every device, for every order of the parameters and every world size.

Definition
----------
Blocks are Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with

    key     = (seed & 0xffffffff, seed >> 32)
    counter = (block & 0xffffffff, block >> 32, tensor, stream)

`tensor` is the parameter's number in the run's sorted list of names (`names.py`). `stream` is one of

    0  the direction z
    1  the bits of stochastic rounding (seed of the step's first direction)
    2  seeds of directions, derived from the run's seed (`direction_seed`)

Elements are numbered in the contiguous order of the full tensor. Element e lies in tile e // 2048; with i = e % 2048
its block is 256 * tile + i % 256, its 32-bit word i // 512, its half (i // 256) % 2 (0 = low 16 bits). One block thus
gives eight 16-bit numbers which are 256 elements apart, so that kernels store contiguous runs of 256.

    gaussian    z = Q[u],  Q[u] = inverse normal distribution function of (u + 0.5) / 65536, in float64, then float32
    rademacher  z = +1 where u >= 32768, else -1

Both are one lookup in a table of 65536 float32 numbers. Everything below is the readable NumPy reference; the
kernels in `kernels/` are tested against it bit for bit.
"""

from __future__ import annotations

import logging
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llava.mezo.config import NOISES

if TYPE_CHECKING:
    import torch

    from llava.mezo.kernels import Kernel

logger = logging.getLogger(__name__)

Words = npt.NDArray[np.uint32]

TILE = 2048
BLOCKS_PER_TILE = 256
TABLE_SIZE = 65536

STREAM_DIRECTION = 0
STREAM_ROUNDING = 1
STREAM_SEED = 2

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
LOW32 = 0xFFFFFFFF


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four words of output for every counter. The four arrays broadcast against each other."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    shift, low = np.uint64(32), np.uint64(LOW32)
    for _ in range(PHILOX_ROUNDS):
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
    counter = (*split64(step), direction, STREAM_SEED)
    words = philox4x32(tuple(np.array([word], dtype=np.uint32) for word in counter), split64(run_seed))  # type: ignore[arg-type]
    return int(words[0][0]) | int(words[1][0]) << 32


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
    values: npt.NDArray[np.float32] = noise_table(noise)[random_bits(seed, tensor, STREAM_DIRECTION, start, count)]
    return values


@cache
def noise_table(noise: str) -> npt.NDArray[np.float32]:
    """The table of 65536 float32 numbers that turns 16 random bits into an element of z; read-only.

    It is antisymmetric (table[u] == -table[65535 - u]), so its mean is exactly 0; kernels may rely on that.
    """
    if noise not in NOISES:
        raise ValueError(f"noise is {noise!r}; it must be one of {', '.join(NOISES)}")
    half = TABLE_SIZE // 2
    if noise == "gaussian":
        inverse = NormalDist().inv_cdf
        lower = np.array([inverse((u + 0.5) / TABLE_SIZE) for u in range(half)], dtype=np.float64).astype(np.float32)
    else:
        lower = np.full(half, -1.0, dtype=np.float32)
    table = np.concatenate([lower, -lower[::-1]])
    table.setflags(write=False)
    return table


@cache
def kernel_for(name: str, device_type: str) -> Kernel:
    """The kernel called `name` ("auto" included) for tensors on a device of this type ("cpu", "cuda", ...).

    The one place where a kernel is chosen. All give the same bits, so "auto" may take whatever runs.
    """
    from llava.mezo import kernels

    if name == "auto":
        name = kernels.fastest(device_type)
        logger.info("mezo: %s kernel for tensors on %s", name, device_type)
    return kernels.load(name, device_type)


def kernel_for_tensor(name: str, tensor: torch.Tensor) -> Kernel:
    """`kernel_for` by the device that holds the tensor."""
    return kernel_for(name, tensor.device.type)
