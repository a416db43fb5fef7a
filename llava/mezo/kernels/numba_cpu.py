"""Compiled kernel for the CPU: about half a nanosecond an element on two threads, reading and writing included.

numba compiles it at first use and keeps the result on disk. No fast-math, so that no multiplication is fused with an
addition. Weights are handled as bit patterns (uint32 or uint16), since NumPy has no bfloat16. Work goes tile by tile:
256 Philox blocks, 2048 table look-ups, then loops over contiguous elements that the compiler turns into vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from llava.mezo.kernels import LARGEST_ON_GRID, PARTS_OF_A_STEP, Field, Grid, changes_nothing, check_rows
from llava.mezo.kernels.threads import share
from llava.mezo.noise import (
    BLOCKS_PER_TILE,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    PHILOX_WEYL,
    STREAM_DIRECTION,
    STREAM_ROUNDING,
    TILE,
    noise_table,
    split64,
)

Array = npt.NDArray[Any]
Stored = tuple[Array, int, Array, int]
"""A weight: its bit patterns, their kind, the steps of its grid and the width of a row (1 and unused without one)."""

FLOAT32, BFLOAT16, FLOAT16, GRID = 0, 1, 2, 3
_KIND = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, torch.int16: GRID}
_SIGNED = {torch.float32: torch.int32}  # all others: int16
_UNSIGNED = {torch.float32: np.uint32}  # all others: uint16

SERIAL_BELOW = 16 * TILE
"""Elements below which starting threads costs more than it saves."""

# uint32 constants: numba widens uint32 with a Python integer to 64 bits, which would halve the vector width
M0, M1 = (np.uint64(value) for value in PHILOX_MULTIPLIERS)
W0, W1 = (np.uint32(value) for value in PHILOX_WEYL)
SHIFT32 = np.uint64(32)
U1, U3, U13, U16, U23 = (np.uint32(value) for value in (1, 3, 13, 16, 23))
LOW16, SIGN16, HALF16 = np.uint32(0xFFFF), np.uint32(0x8000), np.uint32(0x7FFF)
SIZE32, INF32, MANTISSA32 = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7FFFFF)
INF16, REBIAS, HALF13 = np.uint32(0x7C00), np.uint32(112 << 23), np.uint32(0xFFF)
ZERO = np.float32(0)
NAN_BFLOAT16, NAN_FLOAT16 = np.uint32(0x7FC0), np.uint32(0x7E00)
LARGE16, NORMAL16 = np.uint32(0x47800000), np.uint32(113 << 23)

_compiled = njit(cache=True, nogil=True, error_model="numpy")


class NumbaKernel:
    """Kernel for tensors on the CPU, on as many threads as torch uses."""

    name = "numba"

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
        patterns = _stored(weight, grid), _patterns(out), _KIND[out.dtype]
        tiles = start // TILE, -(-(start + weight.numel()) // TILE)
        _share(_perturb, *tiles, weight.numel(), *patterns, *_key(field, seed, scale), start)

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
        if rows.numel() == 0:
            return
        check_rows(rows, table.shape[0])
        patterns = _stored(table, grid), _patterns(out), _KIND[out.dtype]
        numbers = np.ascontiguousarray(rows.numpy())
        arguments = *_key(field, seed, scale), numbers, table.shape[1]
        _share(_perturb_rows, 0, rows.numel(), out.numel(), *patterns, *arguments)

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
        if changes_nothing(coefficients, decay):
            return
        keys = np.array([split64(seed) for seed in seeds], dtype=np.uint32)
        noise = noise_table(field.noise), np.uint32(field.tensor), keys, np.array(coefficients, dtype=np.float32)
        tiles = start // TILE, -(-(start + weight.numel()) // TILE)
        _share(_update, *tiles, weight.numel(), _stored(weight, grid), *noise, np.float32(decay), start)


def _patterns(tensor: torch.Tensor) -> Array:
    """The tensor's memory as a flat array of unsigned integers."""
    flat = tensor.detach().view(-1).view(_SIGNED.get(tensor.dtype, torch.int16))
    return flat.numpy().view(_UNSIGNED.get(tensor.dtype, np.uint16))


_NO_GRID = np.ones(1, dtype=np.float32), 1


def _stored(weight: torch.Tensor, grid: Grid | None) -> Stored:
    steps, width = _NO_GRID if grid is None else (grid.steps.numpy(), grid.width)
    return _patterns(weight), _KIND[weight.dtype], steps, width


def _key(field: Field, seed: int, scale: float) -> tuple[Array, np.uint32, np.uint32, np.uint32, np.float32]:
    low, high = split64(seed)
    return noise_table(field.noise), np.uint32(field.tensor), np.uint32(low), np.uint32(high), np.float32(scale)


def _share(function: Any, first: int, last: int, elements: int, *arguments: Any) -> None:
    """function(a, b, *arguments) over all of first ... last, on several threads where that pays."""
    if elements < SERIAL_BELOW:
        function(first, last, *arguments)
    else:
        share(lambda a, b: function(a, b, *arguments), first, last)


@_compiled
def _philox_tile(tile, tensor, stream, k0, k1, words):  # type: ignore[no-untyped-def]
    """words[w, b] = word w of block 256 * tile + b."""
    first = np.uint64(tile) * np.uint64(BLOCKS_PER_TILE)
    low, high = np.uint32(first), np.uint32(first >> SHIFT32)
    for block in range(BLOCKS_PER_TILE):
        c0, c1, c2, c3 = np.uint32(low + np.uint32(block)), high, tensor, stream
        a, b = k0, k1
        for _ in range(PHILOX_ROUNDS):
            product0, product1 = M0 * np.uint64(c0), M1 * np.uint64(c2)
            c0, c1 = np.uint32(product1 >> SHIFT32) ^ c1 ^ a, np.uint32(product1)
            c2, c3 = np.uint32(product0 >> SHIFT32) ^ c3 ^ b, np.uint32(product0)
            a, b = np.uint32(a + W0), np.uint32(b + W1)
        words[0, block], words[1, block], words[2, block], words[3, block] = c0, c1, c2, c3


@_compiled
def _direction_tile(tile, tensor, k0, k1, table, words, z):  # type: ignore[no-untyped-def]
    """z of a tile's 2048 elements."""
    _philox_tile(tile, tensor, np.uint32(STREAM_DIRECTION), k0, k1, words)
    for word in range(4):
        for block in range(BLOCKS_PER_TILE):
            pair = words[word, block]
            z[word * 512 + block] = table[pair & LOW16]
            z[word * 512 + 256 + block] = table[pair >> U16]


@_compiled
def _rounding_tile(tile, tensor, k0, k1, words, r):  # type: ignore[no-untyped-def]
    """The 16 rounding bits of a tile's 2048 elements, as uint32."""
    _philox_tile(tile, tensor, np.uint32(STREAM_ROUNDING), k0, k1, words)
    for word in range(4):
        for block in range(BLOCKS_PER_TILE):
            r[word * 512 + block] = words[word, block] & LOW16
        for block in range(BLOCKS_PER_TILE):
            r[word * 512 + 256 + block] = words[word, block] >> U16


@_compiled
def _half_to_single(half):  # type: ignore[no-untyped-def]
    """Bit pattern of a float16 as that of the equal float32."""
    sign, size = (half & SIGN16) << U16, half & HALF16
    if size >= INF16:
        return sign | INF32 | ((size & np.uint32(0x3FF)) << U13)
    if size >= np.uint32(0x400):
        return sign | ((size << U13) + REBIAS)
    if size == np.uint32(0):
        return sign
    exponent = np.uint32(113)
    while size < np.uint32(0x400):
        size = np.uint32(size << U1)
        exponent = np.uint32(exponent - U1)
    return sign | (exponent << U23) | ((size & np.uint32(0x3FF)) << U13)


@_compiled
def _load_row(source, step, values):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        values[i] = np.float32(np.int16(source[i])) * step


@_compiled
def _load_grid(source, steps, width, start, values):  # type: ignore[no-untyped-def]
    """values[i] = source[i], an integer, times the step of its row."""
    first, row = 0, start // width
    while first < source.size:
        last = min(source.size, (row + 1) * width - start)
        _load_row(source[first:last], steps[row], values[first:last])
        first, row = last, row + 1


@_compiled
def _load(stored, first, start, size, u):  # type: ignore[no-untyped-def]
    """u[i] = float32 pattern of element start + i of the full tensor, which is number `first` of the patterns."""
    patterns, kind, steps, width = stored
    source = patterns[first : first + size]
    if kind == GRID:
        _load_grid(source, steps, width, start, u.view(np.float32))
    elif kind == FLOAT32:
        for i in range(source.size):
            u[i] = np.uint32(source[i])
    elif kind == BFLOAT16:
        for i in range(source.size):
            u[i] = np.uint32(source[i]) << U16
    else:
        for i in range(source.size):
            u[i] = _half_to_single(np.uint32(source[i]))


@_compiled
def _shift_right_nearest(mantissa, dropped):  # type: ignore[no-untyped-def]
    """mantissa / 2**dropped rounded to nearest even, for 14 <= dropped <= 31."""
    one = U1
    odd = (mantissa >> dropped) & one
    return (mantissa + ((one << (dropped - one)) - one) + odd) >> dropped


@_compiled
def _single_to_half(bits):  # type: ignore[no-untyped-def]
    """float32 pattern rounded to the nearest float16, ties to even."""
    sign, size = (bits >> U16) & SIGN16, bits & SIZE32
    if size > INF32:
        return sign | NAN_FLOAT16
    if size >= LARGE16:
        return sign | INF16
    if size >= NORMAL16:
        size = np.uint32(size - REBIAS)
        return sign | ((size + HALF13 + ((size >> U13) & U1)) >> U13)
    exponent = size >> U23
    if exponent < np.uint32(102):
        return sign
    mantissa = (size & MANTISSA32) | (U1 << U23)
    return sign | _shift_right_nearest(mantissa, np.uint32(np.uint32(126) - exponent))


@_compiled
def _store_nearest(u, target, kind):  # type: ignore[no-untyped-def]
    """target[i] = float32 pattern u[i] in the target's dtype, to nearest even."""
    if kind == FLOAT32:
        for i in range(target.size):
            target[i] = u[i]
    elif kind == BFLOAT16:
        for i in range(target.size):
            rounded = (u[i] + HALF16 + ((u[i] >> U16) & U1)) >> U16
            target[i] = rounded if (u[i] & SIZE32) <= INF32 else NAN_BFLOAT16
    else:
        for i in range(target.size):
            target[i] = _single_to_half(u[i])


@_compiled
def _single_to_half_stochastic(bits, r):  # type: ignore[no-untyped-def]
    """S(u, r) in float16, see `kernels/__init__.py`."""
    sign, size = (bits >> U16) & SIGN16, bits & SIZE32
    if size > INF32:
        return sign | NAN_FLOAT16
    if size >= LARGE16:
        return sign | INF16
    if size >= NORMAL16:
        return sign | ((size - REBIAS + (r >> U3)) >> U13)
    exponent = size >> U23
    if exponent < np.uint32(86):
        return sign
    mantissa = np.uint64((size & MANTISSA32) | (U1 << U23))
    dropped = np.uint64(np.uint32(126) - exponent)
    aligned = (np.uint64(r) << SHIFT32) >> (np.uint64(48) - dropped)
    return sign | np.uint32((mantissa + aligned) >> dropped)


@_compiled
def _store_row(values, r, target, step):  # type: ignore[no-untyped-def]
    """target[i] = G(values[i], r[i]), see `kernels/__init__.py`."""
    inverse = np.float32(PARTS_OF_A_STEP) / step  # exact, for a power of two
    limit = np.float32(LARGEST_ON_GRID * PARTS_OF_A_STEP)
    for i in range(target.size):
        v = values[i] * inverse
        v = min(max(v if v == v else ZERO, -limit), limit)
        floor = np.int32(np.floor(v))
        target[i] = np.uint16(np.int32(floor + np.int32(r[i])) >> np.int32(16))


@_compiled
def _store_grid(values, r, target, steps, width, start):  # type: ignore[no-untyped-def]
    first, row = 0, start // width
    while first < target.size:
        last = min(target.size, (row + 1) * width - start)
        _store_row(values[first:last], r[first:last], target[first:last], steps[row])
        first, row = last, row + 1


@_compiled
def _store_stochastic(u, r, target, kind, steps, width, start):  # type: ignore[no-untyped-def]
    """target[i] = S(u[i], r[i]), or G, for a 16-bit target that holds elements start ... of the full tensor."""
    if kind == GRID:
        _store_grid(u.view(np.float32), r, target, steps, width, start)
    elif kind == BFLOAT16:
        for i in range(target.size):
            rounded = (u[i] + r[i]) >> U16
            target[i] = rounded if (u[i] & SIZE32) <= INF32 else NAN_BFLOAT16
    else:
        for i in range(target.size):
            target[i] = _single_to_half_stochastic(u[i], r[i])


@_compiled
def _multiply_add(values, scale, z):  # type: ignore[no-untyped-def]
    """values += scale * z, both operations rounded."""
    for i in range(z.size):
        values[i] = values[i] + scale * z[i]


@_compiled
def _scratch():  # type: ignore[no-untyped-def]
    """Philox words, z and float32 patterns of one tile."""
    return np.empty((4, BLOCKS_PER_TILE), np.uint32), np.empty(TILE, np.float32), np.empty(TILE, np.uint32)


@_compiled
def _perturb_span(stored, first, target, target_kind, table, tensor, k0, k1, scale, start, words, z, u):  # type: ignore[no-untyped-def]
    """`target` takes elements start ... of one tile, of which `first` is the number in the stored patterns."""
    _direction_tile(start // TILE, tensor, k0, k1, table, words, z)
    _load(stored, first, start, target.size, u)
    lo = start % TILE
    _multiply_add(u.view(np.float32), scale, z[lo : lo + target.size])
    _store_nearest(u, target, target_kind)


@_compiled
def _perturb(first_tile, last_tile, stored, target, target_kind, table, tensor, k0, k1, scale, start):  # type: ignore[no-untyped-def]
    words, z, u = _scratch()
    stop = start + target.size
    for tile in range(first_tile, last_tile):
        first, last = max(start, tile * TILE), min(stop, (tile + 1) * TILE)
        out = target[first - start : last - start]
        _perturb_span(stored, first - start, out, target_kind, table, tensor, k0, k1, scale, first, words, z, u)


@_compiled
def _perturb_rows(  # type: ignore[no-untyped-def]
    first_number, last_number, stored, target, target_kind, table, tensor, k0, k1, scale, rows, width
):
    words, z, u = _scratch()
    for number in range(first_number, last_number):
        start, stop = rows[number] * width, (rows[number] + 1) * width
        shift = number * width - start
        for tile in range(start // TILE, (stop + TILE - 1) // TILE):
            first, last = max(start, tile * TILE), min(stop, (tile + 1) * TILE)
            out = target[first + shift : last + shift]
            _perturb_span(stored, first, out, target_kind, table, tensor, k0, k1, scale, first, words, z, u)


@_compiled
def _update_span(stored, first, size, table, tensor, keys, coefficients, decay, start, words, z, u):  # type: ignore[no-untyped-def]
    """Elements start ... start + size - 1, in one tile, of which `first` is the number in the stored patterns."""
    patterns, kind, steps, width = stored
    tile, lo = start // TILE, start % TILE
    hi = lo + size
    _load(stored, first, start, size, u)
    numbers = u.view(np.float32)
    if decay != np.float32(1):
        for i in range(size):
            numbers[i] = numbers[i] * decay
    for d in range(coefficients.size):
        _direction_tile(tile, tensor, keys[d, 0], keys[d, 1], table, words, z)
        _multiply_add(numbers, coefficients[d], z[lo:hi])
    target = patterns[first : first + size]
    if kind == FLOAT32:
        _store_nearest(u, target, kind)
    else:
        r = z.view(np.uint32)
        _rounding_tile(tile, tensor, keys[0, 0], keys[0, 1], words, r)
        _store_stochastic(u, r[lo:hi], target, kind, steps, width, start)


@_compiled
def _update(first_tile, last_tile, stored, table, tensor, keys, coefficients, decay, start):  # type: ignore[no-untyped-def]
    words, z, u = _scratch()
    stop = start + stored[0].size
    for tile in range(first_tile, last_tile):
        first, last = max(start, tile * TILE), min(stop, (tile + 1) * TILE)
        _update_span(stored, first - start, last - first, table, tensor, keys, coefficients, decay, first, words, z, u)
