"""Programs of the CUDA kernel, in Triton: what runs on the GPU for each tile; `triton_cuda.py` launches them.

Stored weights are handled as bit patterns, so that stochastic rounding is the one written down in `interface.py`.
Whatever changes from step to step (seed, scales, coefficients, decay) is read from device memory, so that launches can
be captured in a CUDA graph.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

if int(triton.__version__.split(".")[0]) < 3:
    raise ImportError(f"the CUDA kernel needs triton 3, and this is {triton.__version__}")

from llava.mezo.kernels import addresses as table
from llava.mezo.kernels.interface import LARGEST_ON_GRID, PARTS_OF_A_STEP
from llava.mezo.noise import (
    BLOCKS_PER_TILE,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    PHILOX_WEYL,
    STREAM_DIRECTION,
    STREAM_ROUNDING,
    TILE,
)

FLOAT32, BFLOAT16, FLOAT16 = (tl.constexpr(kind) for kind in (table.FLOAT32, table.BFLOAT16, table.FLOAT16))
ADDRESS, START, COUNT, NUMBER, GROUP, OFFSET, POSITION, STEPS, WIDTH, COLUMNS = (
    tl.constexpr(column)
    for column in (
        *(table.ADDRESS, table.START, table.COUNT, table.NUMBER, table.GROUP),
        *(table.OFFSET, table.POSITION, table.STEPS, table.WIDTH, table.TARGET + 1),
    )
)
_BLOCKS, _TILE, _ROUNDS = tl.constexpr(BLOCKS_PER_TILE), tl.constexpr(TILE), tl.constexpr(PHILOX_ROUNDS)
_DIRECTION, _ROUNDING = tl.constexpr(STREAM_DIRECTION), tl.constexpr(STREAM_ROUNDING)
_M0, _M1 = (tl.constexpr(factor) for factor in PHILOX_MULTIPLIERS)
_W0, _W1 = (tl.constexpr(step) for step in PHILOX_WEYL)
_NATIVE = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
_PARTS, _LIMIT = tl.constexpr(float(PARTS_OF_A_STEP)), tl.constexpr(float(LARGEST_ON_GRID * PARTS_OF_A_STEP))


@triton.jit
def _philox(tile, seed, tensor, stream, constants):  # type: ignore[no-untyped-def]
    """The four words of the tile's 256 blocks.

    As `tl.philox`, with the two products of a round as 64-bit ones: one instruction each, where their halves take two.
    """
    # Numbers 0 ... 255 are read, not made: what is computed from them then lies in registers as weights do, and nothing
    # has to change places between threads (64 barriers in a program otherwise).
    inside = tl.load((constants + 256 + tl.arange(0, _BLOCKS)).to(tl.pointer_type(tl.int32)))
    block = tile.to(tl.uint64) * _BLOCKS + inside.to(tl.uint64)
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = tl.zeros([_BLOCKS], tl.uint32) + tensor.to(tl.uint32), tl.zeros([_BLOCKS], tl.uint32) + stream
    k0, k1 = seed.to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        product0, product1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1
        c0, c1 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0, product1.to(tl.uint32)
        c2, c3 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1, product0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def _half(words, k: tl.constexpr):  # type: ignore[no-untyped-def]
    """The 16-bit numbers of elements 256 k ... 256 k + 255 of a tile, as uint32."""
    word = words[k // 2]
    return (word >> 16) if k % 2 == 1 else (word & 0xFFFF)


@triton.jit
def _z(bits, constants, GAUSSIAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements of the direction from 16-bit numbers."""
    if GAUSSIAN:
        return tl.load(constants + (bits & 255)) + tl.load(constants + (bits >> 8))
    else:
        return tl.where(bits >= 32768, 1.0, -1.0)


@triton.jit
def _pointers(address, position, KIND: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """To the patterns at `position` of a value, or copy, of this kind."""
    if KIND == FLOAT32:
        pointers = address.to(tl.pointer_type(tl.int32)) + position
    else:
        pointers = address.to(tl.pointer_type(tl.int16)) + position
    if ALIGNED:
        pointers = tl.multiple_of(pointers, [16])
    return pointers


@triton.jit
def _loaded(  # type: ignore[no-untyped-def]
    address, element, start, stop, MASKED: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr
):
    """Patterns of `element`s of the full tensor, of which start ... stop - 1 exist; `address` is that of the first."""
    pointers = _pointers(address, element, KIND, ALIGNED)
    if MASKED:
        return tl.load(pointers, mask=(element >= start) & (element < stop), other=0)
    else:
        return tl.load(pointers)


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    address, position, element, bits, start, stop, MASKED: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr
):
    """Patterns of `element`s to `position` from `address` on."""
    pointers = _pointers(address, position, KIND, ALIGNED)
    if MASKED:
        tl.store(pointers, bits, mask=(element >= start) & (element < stop))
    else:
        tl.store(pointers, bits)


@triton.jit
def _steps(row, element, start, stop):  # type: ignore[no-untyped-def]
    """The grid's step of each element of the full tensor."""
    steps = tl.load(row + STEPS).to(tl.pointer_type(tl.float32))
    mask = (element >= start) & (element < stop)
    return tl.load(steps + element // tl.load(row + WIDTH), mask=mask, other=1.0)


@triton.jit
def _widened(bits, row, element, start, stop, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 values of the patterns of `element`s of the full tensor."""
    if KIND == FLOAT32:
        return bits.to(tl.float32, bitcast=True)
    elif KIND == BFLOAT16:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif KIND == FLOAT16:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return bits.to(tl.float32) * _steps(row, element, start, stop)


@triton.jit
def _nearest(values, TARGET: tl.constexpr):  # type: ignore[no-untyped-def]
    """Patterns of R(values)."""
    bits = values.to(tl.uint32, bitcast=True)
    if TARGET == FLOAT32:
        return bits.to(tl.int32, bitcast=True)
    elif TARGET == FLOAT16:
        return values.to(tl.float16).to(tl.int16, bitcast=True)
    elif _NATIVE:
        return values.to(tl.bfloat16).to(tl.int16, bitcast=True)
    else:  # the interpreter cuts off
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.int16)


@triton.jit
def _to_half_stochastic(bits, added):  # type: ignore[no-untyped-def]
    """float32 patterns as float16 patterns (uint32), rounded with the given 16 random bits."""
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    exponent = size >> 23
    mantissa = ((size & 0x7FFFFF) | tl.where(exponent > 0, 1 << 23, 0).to(tl.uint32)).to(tl.uint64)
    small = 126 - tl.minimum(exponent, 112).to(tl.int32)
    dropped = tl.minimum(tl.maximum(small, 14), 48).to(tl.uint64)
    normal = (size - (112 << 23) + (added >> 3)) >> 13
    subnormal = (mantissa + ((added.to(tl.uint64) << 32) >> (48 - dropped))) >> dropped
    stored = tl.where(exponent >= 113, tl.minimum(normal, 0x7C00), subnormal.to(tl.uint32))
    stored = tl.where(size >= 0x47800000, 0x7C00, stored)
    return sign | tl.where(size > 0x7F800000, 0x7E00, stored)


@triton.jit
def _stochastic(values, r, row, element, start, stop, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Patterns of S(values, r), of G on a grid, or of the values themselves."""
    bits = values.to(tl.uint32, bitcast=True)
    if KIND == FLOAT32:
        return bits.to(tl.int32, bitcast=True)
    elif KIND == BFLOAT16:
        return tl.where(values == values, (bits + r) >> 16, 0x7FC0).to(tl.int16)
    elif KIND == FLOAT16:
        return _to_half_stochastic(bits, r).to(tl.int16)
    else:
        v = values * tl.div_rn(_PARTS, _steps(row, element, start, stop))
        v = tl.where(v == v, tl.minimum(tl.maximum(v, -_LIMIT), _LIMIT), 0.0)
        return ((tl.floor(v).to(tl.int32) + r.to(tl.int32)) >> 16).to(tl.int16)


@triton.jit
def _perturb_tile(  # type: ignore[no-untyped-def]
    row, tile, start, stop, address, words, scales, constants, first, second, place,
    MASKED: tl.constexpr, KIND: tl.constexpr, TARGET: tl.constexpr, ALIGNED: tl.constexpr,
    GAUSSIAN: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    """Elements start ... stop - 1 of the full tensor, as far as they lie in the tile, into one or two copies.

    `address` is that of element 0, `place` that of element `start` within a copy, in elements.
    """
    scales += 2 * tl.load(row + GROUP)
    for k in tl.static_range(8):
        element = tile * _TILE + 256 * k + tl.arange(0, _BLOCKS)
        bits = _loaded(address, element, start, stop, MASKED, KIND, ALIGNED)
        w = _widened(bits, row, element, start, stop, KIND)
        z = _z(_half(words, k), constants, GAUSSIAN)
        position = element - start + place
        plus = _nearest(w + tl.load(scales) * z, TARGET)
        _store(first, position, element, plus, start, stop, MASKED, TARGET, ALIGNED)
        if TWO:
            minus = _nearest(w + tl.load(scales + 1) * z, TARGET)
            _store(second, position, element, minus, start, stop, MASKED, TARGET, ALIGNED)


@triton.jit
def perturb_tiles(  # type: ignore[no-untyped-def]
    columns, owners, seed, scales, constants, first, second,
    KIND: tl.constexpr, TARGET: tl.constexpr, ALIGNED: tl.constexpr, GAUSSIAN: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    """R(w + scale * z) for all pieces of a part, at one point or two; one program for each tile."""
    row = columns + tl.load(owners + tl.program_id(0)).to(tl.int64) * COLUMNS
    start = tl.load(row + START)
    stop = start + tl.load(row + COUNT)
    tile = start // _TILE + tl.program_id(0) - tl.load(row + POSITION)
    words = _philox(tile, tl.load(seed), tl.load(row + NUMBER), _DIRECTION, constants)
    address = tl.load(row + ADDRESS) - start * (4 if KIND == FLOAT32 else 2)
    place = tl.load(row + OFFSET) // (4 if TARGET == FLOAT32 else 2)
    one, other = first.to(tl.int64), second.to(tl.int64)
    if (tile * _TILE >= start) & ((tile + 1) * _TILE <= stop):
        _perturb_tile(
            row, tile, start, stop, address, words, scales, constants, one, other, place,
            False, KIND, TARGET, ALIGNED, GAUSSIAN, TWO,
        )  # fmt: skip
    else:
        _perturb_tile(
            row, tile, start, stop, address, words, scales, constants, one, other, place,
            True, KIND, TARGET, ALIGNED, GAUSSIAN, TWO,
        )  # fmt: skip


@triton.jit
def perturb_rows(  # type: ignore[no-untyped-def]
    columns, rows, height, width, seed, scales, constants, first, second,
    KIND: tl.constexpr, TARGET: tl.constexpr, ALIGNED: tl.constexpr, GAUSSIAN: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    """The same for rows of a matrix, which is the one piece; one program for each row and tile that it may touch.

    A row that is not there becomes NaN.
    """
    number = tl.program_id(0).to(tl.int64)
    asked = tl.load(rows + number)
    there = (asked >= 0) & (asked < height)
    start = tl.load(columns + START) + tl.where(there, asked, 0) * width
    tile = start // _TILE + tl.program_id(1)
    words = _philox(tile, tl.load(seed), tl.load(columns + NUMBER), _DIRECTION, constants)
    address = tl.load(columns + ADDRESS) - tl.load(columns + START) * (4 if KIND == FLOAT32 else 2)
    scales += 2 * tl.load(columns + GROUP)
    for k in tl.static_range(8):
        element = tile * _TILE + 256 * k + tl.arange(0, _BLOCKS)
        bits = _loaded(address, element, start, start + width, True, KIND, False)
        w = _widened(bits, columns, element, start, start + width, KIND)
        w = tl.where(there, w, float("nan"))
        z = _z(_half(words, k), constants, GAUSSIAN)
        position = element - start + number * width
        plus = _nearest(w + tl.load(scales) * z, TARGET)
        _store(first.to(tl.int64), position, element, plus, start, start + width, True, TARGET, False)
        if TWO:
            minus = _nearest(w + tl.load(scales + 1) * z, TARGET)
            _store(second.to(tl.int64), position, element, minus, start, start + width, True, TARGET, False)


@triton.jit
def _update_tile(  # type: ignore[no-untyped-def]
    row, tile, seeds, numbers, constants, pairs, steps, groups,
    MASKED: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """All steps of a tile. Its eight parts share the Philox blocks of a pair, so all are at hand until the end."""
    start, number, group = tl.load(row + START), tl.load(row + NUMBER), tl.load(row + GROUP)
    ends = seeds + pairs
    active, decays = ends + steps + 1, numbers + pairs * groups
    address = tl.load(row + ADDRESS) - start * (4 if KIND == FLOAT32 else 2)
    element = tile * _TILE + tl.arange(0, _BLOCKS)
    stop = start + tl.load(row + COUNT)
    b0 = _loaded(address, element, start, stop, MASKED, KIND, ALIGNED)
    b1 = _loaded(address, element + 256, start, stop, MASKED, KIND, ALIGNED)
    b2 = _loaded(address, element + 512, start, stop, MASKED, KIND, ALIGNED)
    b3 = _loaded(address, element + 768, start, stop, MASKED, KIND, ALIGNED)
    b4 = _loaded(address, element + 1024, start, stop, MASKED, KIND, ALIGNED)
    b5 = _loaded(address, element + 1280, start, stop, MASKED, KIND, ALIGNED)
    b6 = _loaded(address, element + 1536, start, stop, MASKED, KIND, ALIGNED)
    b7 = _loaded(address, element + 1792, start, stop, MASKED, KIND, ALIGNED)
    for step in range(steps):
        if tl.load(active + step * groups + group) != 0:
            decay = tl.load(decays + step * groups + group)
            begin, end = tl.load(ends + step), tl.load(ends + step + 1)
            u0 = _widened(b0, row, element, start, stop, KIND) * decay
            u1 = _widened(b1, row, element + 256, start, stop, KIND) * decay
            u2 = _widened(b2, row, element + 512, start, stop, KIND) * decay
            u3 = _widened(b3, row, element + 768, start, stop, KIND) * decay
            u4 = _widened(b4, row, element + 1024, start, stop, KIND) * decay
            u5 = _widened(b5, row, element + 1280, start, stop, KIND) * decay
            u6 = _widened(b6, row, element + 1536, start, stop, KIND) * decay
            u7 = _widened(b7, row, element + 1792, start, stop, KIND) * decay
            for pair in range(begin, end):
                words = _philox(tile, tl.load(seeds + pair), number, _DIRECTION, constants)
                c = tl.load(numbers + pair * groups + group)
                u0 = u0 + c * _z(_half(words, 0), constants, GAUSSIAN)
                u1 = u1 + c * _z(_half(words, 1), constants, GAUSSIAN)
                u2 = u2 + c * _z(_half(words, 2), constants, GAUSSIAN)
                u3 = u3 + c * _z(_half(words, 3), constants, GAUSSIAN)
                u4 = u4 + c * _z(_half(words, 4), constants, GAUSSIAN)
                u5 = u5 + c * _z(_half(words, 5), constants, GAUSSIAN)
                u6 = u6 + c * _z(_half(words, 6), constants, GAUSSIAN)
                u7 = u7 + c * _z(_half(words, 7), constants, GAUSSIAN)
            r = _philox(tile, tl.load(seeds + begin), number, _ROUNDING, constants)
            b0 = _stochastic(u0, _half(r, 0), row, element, start, stop, KIND)
            b1 = _stochastic(u1, _half(r, 1), row, element + 256, start, stop, KIND)
            b2 = _stochastic(u2, _half(r, 2), row, element + 512, start, stop, KIND)
            b3 = _stochastic(u3, _half(r, 3), row, element + 768, start, stop, KIND)
            b4 = _stochastic(u4, _half(r, 4), row, element + 1024, start, stop, KIND)
            b5 = _stochastic(u5, _half(r, 5), row, element + 1280, start, stop, KIND)
            b6 = _stochastic(u6, _half(r, 6), row, element + 1536, start, stop, KIND)
            b7 = _stochastic(u7, _half(r, 7), row, element + 1792, start, stop, KIND)
    _store(address, element, element, b0, start, stop, MASKED, KIND, ALIGNED)
    _store(address, element + 256, element + 256, b1, start, stop, MASKED, KIND, ALIGNED)
    _store(address, element + 512, element + 512, b2, start, stop, MASKED, KIND, ALIGNED)
    _store(address, element + 768, element + 768, b3, start, stop, MASKED, KIND, ALIGNED)
    _store(address, element + 1024, element + 1024, b4, start, stop, MASKED, KIND, ALIGNED)
    _store(address, element + 1280, element + 1280, b5, start, stop, MASKED, KIND, ALIGNED)
    _store(address, element + 1536, element + 1536, b6, start, stop, MASKED, KIND, ALIGNED)
    _store(address, element + 1792, element + 1792, b7, start, stop, MASKED, KIND, ALIGNED)


@triton.jit(do_not_specialize=["pairs", "steps", "groups"])
def update_tiles(  # type: ignore[no-untyped-def]
    columns, owners, seeds, numbers, constants, pairs, steps, groups,
    KIND: tl.constexpr, ALIGNED: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """Updates of all weights, one step after the other; one program for each tile.

    Behind the seeds of all pairs come the ends of the steps and what is active, behind the coefficients the decays, as
    `PackedUpdates` has them.
    """
    row = columns + tl.load(owners + tl.program_id(0)).to(tl.int64) * COLUMNS
    start = tl.load(row + START)
    tile = start // _TILE + tl.program_id(0) - tl.load(row + POSITION)
    if (tile * _TILE >= start) & ((tile + 1) * _TILE <= start + tl.load(row + COUNT)):
        _update_tile(
            row, tile, seeds, numbers, constants, pairs, steps, groups,
            False, KIND, ALIGNED, GAUSSIAN,
        )  # fmt: skip
    else:
        _update_tile(
            row, tile, seeds, numbers, constants, pairs, steps, groups,
            True, KIND, ALIGNED, GAUSSIAN,
        )  # fmt: skip


@triton.jit
def _one_pair_update_tile(  # type: ignore[no-untyped-def]
    row, tile, start, stop, address, words, r, c, decay, constants,
    MASKED: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    for k in tl.static_range(8):
        element = tile * _TILE + 256 * k + tl.arange(0, _BLOCKS)
        bits = _loaded(address, element, start, stop, MASKED, KIND, ALIGNED)
        u = _widened(bits, row, element, start, stop, KIND) * decay
        u = u + c * _z(_half(words, k), constants, GAUSSIAN)
        bits = _stochastic(u, _half(r, k), row, element, start, stop, KIND)
        _store(address, element, element, bits, start, stop, MASKED, KIND, ALIGNED)


@triton.jit(do_not_specialize=["pairs", "steps", "groups"])
def one_pair_update_tiles(  # type: ignore[no-untyped-def]
    columns, owners, seeds, numbers, constants, pairs, steps, groups,
    KIND: tl.constexpr, ALIGNED: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """`update_tiles` for one step of one pair, as training takes most of them.

    One part of a tile comes after the other, so that a thread needs two thirds of the registers, and half as many
    programs again run on a multiprocessor; whatever is read before the weights does not wait for one another.
    """
    row = columns + tl.load(owners + tl.program_id(0)).to(tl.int64) * COLUMNS
    start, number, group = tl.load(row + START), tl.load(row + NUMBER), tl.load(row + GROUP)
    stop = start + tl.load(row + COUNT)
    tile = start // _TILE + tl.program_id(0) - tl.load(row + POSITION)
    address = tl.load(row + ADDRESS) - start * (4 if KIND == FLOAT32 else 2)
    if tl.load(seeds + 3 + group) != 0:  # behind the seed and the two ends
        seed, c, decay = tl.load(seeds), tl.load(numbers + group), tl.load(numbers + groups + group)
        words = _philox(tile, seed, number, _DIRECTION, constants)
        r = _philox(tile, seed, number, _ROUNDING, constants)
        if (tile * _TILE >= start) & ((tile + 1) * _TILE <= stop):
            _one_pair_update_tile(
                row, tile, start, stop, address, words, r, c, decay, constants,
                False, KIND, ALIGNED, GAUSSIAN,
            )  # fmt: skip
        else:
            _one_pair_update_tile(
                row, tile, start, stop, address, words, r, c, decay, constants,
                True, KIND, ALIGNED, GAUSSIAN,
            )  # fmt: skip
