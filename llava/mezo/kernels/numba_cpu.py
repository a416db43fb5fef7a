"""Compiled kernel for the CPU: below half a nanosecond an element on two threads, reading and writing included.

numba compiles it when this module is imported, for the types of arguments below alone, and keeps the result on disk: no
step waits for the compiler. No fast-math, so that no multiplication is fused with an addition. Weights are handled as
bit patterns (uint32 or uint16), since NumPy has no bfloat16. Work goes tile by tile, over all weights of a part: 256
Philox blocks, 2048 look-ups, then loops over contiguous elements that the compiler turns into vectors. Copies at two
points share blocks and look-ups; several updates go over a tile while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import carray, njit, types  # type: ignore[attr-defined, unused-ignore]
from numba.core import cgutils
from numba.extending import intrinsic

from llava.mezo.kernels.addresses import (
    ADDRESS,
    BFLOAT16,
    COUNT,
    FLOAT32,
    GRID,
    GROUP,
    NUMBER,
    OFFSET,
    POSITION,
    SOURCE,
    START,
    STEPS,
    TARGET,
    WIDTH,
    Addresses,
    PackedUpdates,
)
from llava.mezo.kernels.interface import (
    LARGEST_ON_GRID,
    PARTS_OF_A_STEP,
    Aim,
    Part,
    Piece,
    Weight,
    check_rows,
    laid_out,
)
from llava.mezo.kernels.threads import share
from llava.mezo.noise import (
    BLOCKS_PER_TILE,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    PHILOX_WEYL,
    STREAM_DIRECTION,
    STREAM_ROUNDING,
    TILE,
    quantiles,
    split64,
)
from llava.mezo.updates import Update

SERIAL_BELOW = 16
"""Tiles below which starting threads costs more than it saves."""

# uint32 constants: numba widens uint32 with a Python integer to 64 bits, which would halve the vector width
M0, M1 = (np.uint64(value) for value in PHILOX_MULTIPLIERS)
W0, W1 = (np.uint32(value) for value in PHILOX_WEYL)
SHIFT32 = np.uint64(32)
U1, U3, U8, U13, U16, U23, U24 = (np.uint32(value) for value in (1, 3, 8, 13, 16, 23, 24))
LOW8, LOW16, SIGN16, HALF16 = np.uint32(0xFF), np.uint32(0xFFFF), np.uint32(0x8000), np.uint32(0x7FFF)
SIZE32, INF32, MANTISSA32 = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7FFFFF)
INF16, REBIAS, HALF13 = np.uint32(0x7C00), np.uint32(112 << 23), np.uint32(0xFFF)
ZERO, ONE = np.float32(0), np.float32(1)
NAN_BFLOAT16, NAN_FLOAT16 = np.uint32(0x7FC0), np.uint32(0x7E00)
LARGE16, NORMAL16 = np.uint32(0x47800000), np.uint32(113 << 23)

_compiled: Any = partial(njit, cache=True, nogil=True, error_model="numpy")

# types of what is called from Python: first and last tile; columns and owners of `Addresses`; addresses of the copies,
# keys [pair, 2] and scales [copy, group, pair] of the points; keys and the rest of `PackedUpdates`; quantiles [256] and
# whether the noise is Gaussian
_RANGE = types.int64, types.int64
_WEIGHTS = types.int64[:, ::1], types.int32[::1]
_POINTS = types.int64[::1], types.uint32[:, ::1], types.float32[:, :, ::1]
_UPDATES = types.uint32[:, ::1], types.float32[:, ::1], types.int64[::1], types.float32[:, ::1], types.int64[:, ::1]
_DISTRIBUTION = types.Array(types.float32, 1, "C", readonly=True), types.boolean


class NumbaTable:
    """See `WeightTable`; for tensors on the CPU, on as many threads as torch uses."""

    def __init__(self, weights: Sequence[Weight], noise: str) -> None:
        self.weights = list(weights)
        self._all = self._addresses([Piece(k, 0, weight.value.numel()) for k, weight in enumerate(weights)])
        self._distribution = quantiles(), noise == "gaussian"

    def part(self, pieces: Sequence[Piece]) -> Part:
        offsets = laid_out(self.weights, pieces).offsets
        return laid_out(self.weights, pieces, Addresses.of(self.weights, pieces, offsets))

    def aim(self, aim: Aim) -> None:
        self._keys = np.array([split64(seed) for seed in aim.seeds], dtype=np.uint32)
        self._scales = np.array(aim.scales, dtype=np.float32)

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        addresses: Addresses = part.prepared
        arguments = addresses.columns, addresses.owners, *self._points(copies), *self._distribution
        _share(_perturb, len(addresses.owners), *arguments)

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        height, width = self.weights[index].value.shape
        check_rows(rows, height)
        if rows.numel() == 0 or width == 0:
            return
        numbers = np.ascontiguousarray(rows.numpy(), dtype=np.int64)
        row = self._all.columns[index]
        arguments = row, numbers, width, *self._points(copies), *self._distribution
        _share(_look_up, len(numbers), *arguments)

    def update(self, updates: Sequence[Update]) -> None:
        if not updates:
            return
        packed = PackedUpdates.of(updates)
        keys = np.array([split64(int(seed)) for seed in packed.seeds], dtype=np.uint32)
        arguments = keys, packed.coefficients, packed.ends, packed.decays, packed.active, *self._distribution
        _share(_update, len(self._all.owners), self._all.columns, self._all.owners, *arguments)

    def _addresses(self, pieces: Sequence[Piece]) -> Addresses:
        return Addresses.of(self.weights, pieces, [0] * len(pieces))

    def _points(self, copies: Mapping[int, torch.Tensor]) -> tuple[npt.NDArray[Any], ...]:
        """Addresses of the copies, keys of the pairs, and scales [copy, group, pair]."""
        addresses = np.array([memory.data_ptr() for memory in copies.values()], dtype=np.int64)
        return addresses, self._keys, self._scales[list(copies)]


def _share(function: Any, tiles: int, *arguments: Any) -> None:
    """function(a, b, *arguments) over all of 0 ... tiles, on several threads where that pays."""
    if tiles < SERIAL_BELOW:
        function(0, tiles, *arguments)
    else:
        share(lambda a, b: function(a, b, *arguments), 0, tiles)


def _to_pointer(typing_context, address):  # type: ignore[no-untyped-def]
    """A 64-bit address as a pointer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_to_pointer)


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
def _direction_tile(tile, tensor, k0, k1, table, gaussian, words, z):  # type: ignore[no-untyped-def]
    """z of a tile's 2048 elements."""
    _philox_tile(tile, tensor, np.uint32(STREAM_DIRECTION), k0, k1, words)
    for word in range(4):
        low, high = z[word * 512 :], z[word * 512 + 256 :]
        if gaussian:
            for block in range(BLOCKS_PER_TILE):
                four = words[word, block]
                low[block] = table[four & LOW8] + table[(four >> U8) & LOW8]
                high[block] = table[(four >> U16) & LOW8] + table[four >> U24]
        else:
            for block in range(BLOCKS_PER_TILE):
                low[block] = ONE if words[word, block] & SIGN16 else -ONE
            for block in range(BLOCKS_PER_TILE):
                high[block] = ONE if words[word, block] >> U16 & SIGN16 else -ONE


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
def _load_half(source, u):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        u[i] = _half_to_single(np.uint32(source[i]))


@_compiled
def _step_of(row, line):  # type: ignore[no-untyped-def]
    """The step of a line of the grid."""
    return carray(_pointer(row[STEPS]), line + 1, np.float32)[line]


@_compiled
def _load_line(source, step, values):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        values[i] = np.float32(np.int16(source[i])) * step


@_compiled
def _load_grid(source, row, start, values):  # type: ignore[no-untyped-def]
    """values[i] = source[i], an integer, times the step of its line; element `start` of the full tensor is first."""
    width = row[WIDTH]
    first, line = 0, start // width
    while first < source.size:
        last = min(source.size, (line + 1) * width - start)
        _load_line(source[first:last], _step_of(row, line), values[first:last])
        first, line = last, line + 1


@_compiled
def _load(row, shift, start, size, u):  # type: ignore[no-untyped-def]
    """u[i] = float32 pattern of element start + i of the full tensor, which is element shift + i of the piece."""
    if row[SOURCE] == FLOAT32:
        whole = carray(_pointer(row[ADDRESS] + 4 * shift), size, np.uint32)
        for i in range(size):
            u[i] = whole[i]
        return
    source = carray(_pointer(row[ADDRESS] + 2 * shift), size, np.uint16)
    if row[SOURCE] == GRID:
        _load_grid(source, row, start, u.view(np.float32))
    elif row[SOURCE] == BFLOAT16:
        for i in range(size):
            u[i] = np.uint32(source[i]) << U16
    else:
        _load_half(source, u[:size])


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
def _store_half(u, target):  # type: ignore[no-untyped-def]
    for i in range(target.size):
        target[i] = _single_to_half(u[i])


@_compiled
def _store_nearest(u, address, kind):  # type: ignore[no-untyped-def]
    """float32 patterns to nearest even in the dtype of the memory at `address`."""
    size = u.size
    if kind == FLOAT32:
        whole = carray(_pointer(address), size, np.uint32)
        for i in range(size):
            whole[i] = u[i]
        return
    target = carray(_pointer(address), size, np.uint16)
    if kind == BFLOAT16:
        for i in range(size):
            rounded = (u[i] + HALF16 + ((u[i] >> U16) & U1)) >> U16
            target[i] = rounded if (u[i] & SIZE32) <= INF32 else NAN_BFLOAT16
    else:
        _store_half(u, target)


@_compiled
def _single_to_half_stochastic(bits, r):  # type: ignore[no-untyped-def]
    """S(u, r) in float16, see `interface.py`."""
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
def _store_line(values, r, target, step):  # type: ignore[no-untyped-def]
    """target[i] = G(values[i], r[i]), see `interface.py`."""
    inverse = np.float32(PARTS_OF_A_STEP) / step  # exact, for a power of two
    limit = np.float32(LARGEST_ON_GRID * PARTS_OF_A_STEP)
    for i in range(target.size):
        v = values[i] * inverse
        v = min(max(v if v == v else ZERO, -limit), limit)
        floor = np.int32(np.floor(v))
        target[i] = np.uint16(np.int32(floor + np.int32(r[i])) >> np.int32(16))


@_compiled
def _store_grid(values, r, row, start, target):  # type: ignore[no-untyped-def]
    width = row[WIDTH]
    first, line = 0, start // width
    while first < target.size:
        last = min(target.size, (line + 1) * width - start)
        _store_line(values[first:last], r[first:last], target[first:last], _step_of(row, line))
        first, line = last, line + 1


@_compiled
def _store_stochastic(u, r, row, shift, start):  # type: ignore[no-untyped-def]
    """S(u[i], r[i]), or G, into the piece, whose element `shift` is element `start` of the full tensor."""
    target = carray(_pointer(row[ADDRESS] + 2 * shift), u.size, np.uint16)
    if row[SOURCE] == GRID:
        _store_grid(u.view(np.float32), r, row, start, target)
    elif row[SOURCE] == BFLOAT16:
        for i in range(u.size):
            rounded = (u[i] + r[i]) >> U16
            target[i] = rounded if (u[i] & SIZE32) <= INF32 else NAN_BFLOAT16
    else:
        for i in range(u.size):
            target[i] = _single_to_half_stochastic(u[i], r[i])


@_compiled
def _scratch():  # type: ignore[no-untyped-def]
    """Philox words, z, float32 values and float32 values at two points of one tile."""
    words = np.empty((4, BLOCKS_PER_TILE), np.uint32)
    return words, np.empty(TILE, np.float32), np.empty(TILE, np.uint32), np.empty((2, TILE), np.float32)


@_compiled
def _within(row, tile):  # type: ignore[no-untyped-def]
    """Elements of the piece in a tile: the first by its number in the full tensor, and how many."""
    first = max(row[START], tile * TILE)
    return first, min(row[START] + row[COUNT], (tile + 1) * TILE) - first


@_compiled
def _store_copies(  # type: ignore[no-untyped-def]
    row, tile, inside, u, scratch, copies, place, keys, scales, table, gaussian
):
    """Elements from number `inside` of a tile on, at each point, `place` bytes from the beginning of its copies."""
    words, z, sums = scratch
    values = u.view(np.float32)
    for pair in range(keys.shape[0]):
        _direction_tile(tile, np.uint32(row[NUMBER]), keys[pair, 0], keys[pair, 1], table, gaussian, words, z)
        here = z[inside : inside + values.size]
        for k in range(copies.size):
            scale, at = scales[k, row[GROUP], pair], sums[k]
            so_far = at if pair else values
            for i in range(values.size):
                at[i] = so_far[i] + scale * here[i]
    for k in range(copies.size):
        _store_nearest(sums[k, : values.size].view(np.uint32), copies[k] + place, row[TARGET])


@_compiled(types.void(*_RANGE, *_WEIGHTS, *_POINTS, *_DISTRIBUTION))
def _perturb(first, last, columns, owners, copies, keys, scales, table, gaussian):  # type: ignore[no-untyped-def]
    """Tiles first ... last of a part."""
    words, z, u, sums = _scratch()
    for position in range(first, last):
        row = columns[owners[position]]
        tile = row[START] // TILE + position - row[POSITION]
        start, size = _within(row, tile)
        shift, inside = start - row[START], start % TILE
        _load(row, shift, start, size, u)
        place = row[OFFSET] + shift * (4 if row[TARGET] == FLOAT32 else 2)
        _store_copies(row, tile, inside, u[:size], (words, z, sums), copies, place, keys, scales, table, gaussian)


@_compiled(types.void(*_RANGE, types.int64[::1], types.int64[::1], types.int64, *_POINTS, *_DISTRIBUTION))
def _look_up(first, last, row, numbers, row_width, copies, keys, scales, table, gaussian):  # type: ignore[no-untyped-def]
    """Rows first ... last of those that were asked for."""
    words, z, u, sums = _scratch()
    for number in range(first, last):
        begin = row[START] + numbers[number] * row_width
        for tile in range(begin // TILE, (begin + row_width + TILE - 1) // TILE):
            start = max(begin, tile * TILE)
            size = min(begin + row_width, (tile + 1) * TILE) - start
            inside = start % TILE
            _load(row, start - row[START], start, size, u)
            place = (number * row_width + start - begin) * (4 if row[TARGET] == FLOAT32 else 2)
            _store_copies(row, tile, inside, u[:size], (words, z, sums), copies, place, keys, scales, table, gaussian)


@_compiled
def _update_tile(row, tile, keys, coefficients, pairs, decay, table, gaussian, words, z, u):  # type: ignore[no-untyped-def]
    """One step of one tile."""
    start, size = _within(row, tile)
    shift, inside, number = start - row[START], start % TILE, np.uint32(row[NUMBER])
    _load(row, shift, start, size, u)
    values = u[:size].view(np.float32)
    if decay != ONE:
        for i in range(size):
            values[i] = values[i] * decay
    for pair in range(pairs[0], pairs[1]):
        _direction_tile(tile, number, keys[pair, 0], keys[pair, 1], table, gaussian, words, z)
        coefficient, here = coefficients[pair, row[GROUP]], z[inside : inside + size]
        for i in range(size):
            values[i] = values[i] + coefficient * here[i]
    if row[SOURCE] == FLOAT32:
        whole = carray(_pointer(row[ADDRESS] + 4 * shift), size, np.uint32)
        for i in range(size):
            whole[i] = u[i]
    else:
        r = z.view(np.uint32)
        _rounding_tile(tile, number, keys[pairs[0], 0], keys[pairs[0], 1], words, r)
        _store_stochastic(u[:size], r[inside : inside + size], row, shift, start)


@_compiled(types.void(*_RANGE, *_WEIGHTS, *_UPDATES, *_DISTRIBUTION))
def _update(  # type: ignore[no-untyped-def]
    first, last, columns, owners, keys, coefficients, ends, decays, active, table, gaussian
):
    """Tiles first ... last of all weights, one step after the other."""
    words, z, u, _ = _scratch()
    for position in range(first, last):
        row = columns[owners[position]]
        tile = row[START] // TILE + position - row[POSITION]
        for step in range(decays.shape[0]):
            if active[step, row[GROUP]]:
                pairs = ends[step], ends[step + 1]
                decay = decays[step, row[GROUP]]
                _update_tile(row, tile, keys, coefficients, pairs, decay, table, gaussian, words, z, u)
