"""Kernel for CUDA, written in Triton: one program for each tile of 2048 elements.

Weights and outputs are handled as bit patterns, so that every rounding is the one written down in `kernels/__init__.py`
and not a choice of the compiler; `enable_fp_fusion=False` keeps multiplications and additions apart. With
TRITON_INTERPRET=1 the same code runs on CPU tensors, which is how it is tested without a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

if int(triton.__version__.split(".")[0]) < 3:
    raise ImportError(f"the CUDA kernel needs triton 3, and this is {triton.__version__}")

from llava.mezo.kernels import LARGEST_ON_GRID, PARTS_OF_A_STEP, Field, Grid, changes_nothing, check_rows
from llava.mezo.noise import BLOCKS_PER_TILE, PHILOX_ROUNDS, STREAM_DIRECTION, STREAM_ROUNDING, TILE, noise_table

FLOAT32, BFLOAT16, FLOAT16, GRID = (tl.constexpr(kind) for kind in range(4))
_KIND = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int16: 3}
_BLOCKS, _TILE, _ROUNDS = tl.constexpr(BLOCKS_PER_TILE), tl.constexpr(TILE), tl.constexpr(PHILOX_ROUNDS)
_DIRECTION, _ROUNDING = tl.constexpr(STREAM_DIRECTION), tl.constexpr(STREAM_ROUNDING)
_PARTS, _LIMIT = tl.constexpr(float(PARTS_OF_A_STEP)), tl.constexpr(float(LARGEST_ON_GRID * PARTS_OF_A_STEP))

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "num_warps": 4}
"""How every kernel here is compiled."""


class TritonKernel:
    """Kernel for tensors on CUDA devices."""

    name = "triton"

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
        count = weight.numel()
        if count == 0:
            return
        first, last = start // TILE, -(-(start + count) // TILE)
        with _on(weight.device):
            perturb_tiles[(last - first,)](
                *_operands(weight, grid),
                *_operands(out, None)[:1],
                _table(field.noise, weight.device),
                _signed64(seed),
                field.tensor,
                scale,
                start,
                count,
                KIND=_KIND[weight.dtype],
                TARGET=_KIND[out.dtype],
                **OPTIONS,
            )

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
        count, width = table.shape
        check_rows(rows, count)
        with _on(table.device):
            perturb_tiles_of_rows[(rows.numel(), -(-width // TILE) + 1)](
                *_operands(table, grid),
                *_operands(out, None)[:1],
                rows.contiguous(),
                _table(field.noise, table.device),
                _signed64(seed),
                field.tensor,
                scale,
                width,
                KIND=_KIND[table.dtype],
                TARGET=_KIND[out.dtype],
                **OPTIONS,
            )

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
        count = weight.numel()
        if count == 0 or changes_nothing(coefficients, decay):
            return
        first, last = start // TILE, -(-(start + count) // TILE)
        device = weight.device
        with _on(device):
            update_tiles[(last - first,)](
                *_operands(weight, grid),
                _table(field.noise, device),
                torch.tensor([_signed64(seed) for seed in seeds], dtype=torch.int64, device=device),
                torch.tensor(coefficients, dtype=torch.float32, device=device),
                len(seeds),
                field.tensor,
                decay,
                start,
                count,
                KIND=_KIND[weight.dtype],
                DECAY=decay != 1.0,
                **OPTIONS,
            )


def _operands(weight: torch.Tensor, grid: Grid | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Bit patterns, the steps of the grid and the width of a row (unused without a grid)."""
    patterns = weight.detach().view(-1).view(torch.int32 if weight.dtype == torch.float32 else torch.int16)
    return (patterns, patterns, 1) if grid is None else (patterns, grid.steps, grid.width)


def _signed64(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


@cache
def _table(noise: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(noise_table(noise).copy()).to(device)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@triton.jit
def _philox(tile, seed, tensor, stream):  # type: ignore[no-untyped-def]
    """The four words of the tile's 256 blocks."""
    block = tile.to(tl.uint64) * _BLOCKS + tl.arange(0, _BLOCKS).to(tl.uint64)
    zero = tl.zeros([_BLOCKS], tl.uint32)
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, zero + tensor, zero + stream, _ROUNDS)


@triton.jit
def _half(words, k: tl.constexpr):  # type: ignore[no-untyped-def]
    """The 16-bit numbers of elements 256 k ... 256 k + 255 of a tile, as uint32."""
    word = words[k // 2]
    return (word >> 16) if k % 2 == 1 else (word & 0xFFFF)


@triton.jit
def _load(patterns, steps, width, position, element, mask, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 values of `element`s of the full tensor, which are at `position` of the patterns."""
    bits = tl.load(patterns + position, mask=mask, other=0)
    if KIND == FLOAT32:
        return bits.to(tl.float32, bitcast=True)
    elif KIND == BFLOAT16:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif KIND == FLOAT16:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return bits.to(tl.float32) * tl.load(steps + element // width, mask=mask, other=1.0)


@triton.jit
def _to_half(bits, added, STOCHASTIC: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 patterns as float16 patterns (uint32): to nearest even, or with the given 16 random bits."""
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    exponent = size >> 23
    mantissa = ((size & 0x7FFFFF) | tl.where(exponent > 0, 1 << 23, 0).to(tl.uint32)).to(tl.uint64)
    small = 126 - tl.minimum(exponent, 112).to(tl.int32)
    dropped = tl.minimum(tl.maximum(small, 14), 48).to(tl.uint64)
    rebased = size - (112 << 23)
    if STOCHASTIC:
        normal = (rebased + (added >> 3)) >> 13
        subnormal = (mantissa + ((added.to(tl.uint64) << 32) >> (48 - dropped))) >> dropped
    else:
        normal = (rebased + 0xFFF + ((rebased >> 13) & 1)) >> 13
        one = tl.full([1], 1, tl.uint64)
        subnormal = (mantissa + ((one << (dropped - 1)) - 1) + ((mantissa >> dropped) & 1)) >> dropped
    stored = tl.where(exponent >= 113, tl.minimum(normal, 0x7C00), subnormal.to(tl.uint32))
    stored = tl.where(size >= 0x47800000, 0x7C00, stored)
    return sign | tl.where(size > 0x7F800000, 0x7E00, stored)


@triton.jit
def _store_nearest(patterns, position, u, mask, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """R(u) into the patterns of the output."""
    bits = u.to(tl.uint32, bitcast=True)
    if KIND == FLOAT32:
        tl.store(patterns + position, bits.to(tl.int32, bitcast=True), mask=mask)
    else:
        if KIND == BFLOAT16:
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            stored = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)
        else:
            stored = _to_half(bits, bits, False)
        tl.store(patterns + position, stored.to(tl.int16), mask=mask)


@triton.jit
def _store_stochastic(patterns, steps, width, position, element, u, r, mask, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """S(u, r), or G(u, r) on a grid."""
    bits = u.to(tl.uint32, bitcast=True)
    if KIND == BFLOAT16:
        stored = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, (bits + r) >> 16).to(tl.int16)
    elif KIND == FLOAT16:
        stored = _to_half(bits, r, True).to(tl.int16)
    else:
        v = u * tl.div_rn(_PARTS, tl.load(steps + element // width, mask=mask, other=1.0))
        v = tl.where(v == v, tl.minimum(tl.maximum(v, -_LIMIT), _LIMIT), 0.0)
        stored = ((tl.floor(v).to(tl.int32) + r.to(tl.int32)) >> 16).to(tl.int16)
    tl.store(patterns + position, stored, mask=mask)


@triton.jit(do_not_specialize=["width", "seed", "tensor", "start", "count"])
def perturb_tiles(  # type: ignore[no-untyped-def]
    patterns,
    steps,
    width: tl.int64,
    out,
    table,
    seed: tl.int64,
    tensor: tl.uint32,
    scale: tl.float32,
    start: tl.int64,
    count: tl.int64,
    KIND: tl.constexpr,
    TARGET: tl.constexpr,
):
    """R(w + scale * z) for elements start ... start + count - 1; one program for each tile they touch."""
    tile = start // _TILE + tl.program_id(0).to(tl.int64)
    words = _philox(tile, seed, tensor, _DIRECTION)
    for k in tl.static_range(8):
        element = tile * _TILE + 256 * k + tl.arange(0, _BLOCKS)
        position = element - start
        mask = (position >= 0) & (position < count)
        z = tl.load(table + _half(words, k), mask=mask, other=0.0)
        w = _load(patterns, steps, width, position, element, mask, KIND)
        _store_nearest(out, position, w + scale * z, mask, TARGET)


@triton.jit(do_not_specialize=["width", "seed", "tensor", "row_width"])
def perturb_tiles_of_rows(  # type: ignore[no-untyped-def]
    patterns,
    steps,
    width: tl.int64,
    out,
    rows,
    table,
    seed: tl.int64,
    tensor: tl.uint32,
    scale: tl.float32,
    row_width: tl.int64,
    KIND: tl.constexpr,
    TARGET: tl.constexpr,
):
    """The same for whole rows of a matrix; one program for each row and tile that it may touch."""
    number = tl.program_id(0).to(tl.int64)
    start = tl.load(rows + number) * row_width
    tile = start // _TILE + tl.program_id(1)
    words = _philox(tile, seed, tensor, _DIRECTION)
    for k in tl.static_range(8):
        element = tile * _TILE + 256 * k + tl.arange(0, _BLOCKS)
        position = element - start
        mask = (position >= 0) & (position < row_width)
        z = tl.load(table + _half(words, k), mask=mask, other=0.0)
        w = _load(patterns, steps, width, element, element, mask, KIND)
        _store_nearest(out, number * row_width + position, w + scale * z, mask, TARGET)


@triton.jit(do_not_specialize=["width", "directions", "tensor", "start", "count"])
def update_tiles(  # type: ignore[no-untyped-def]
    patterns,
    steps,
    width: tl.int64,
    table,
    seeds,
    coefficients,
    directions: tl.int32,
    tensor: tl.uint32,
    decay: tl.float32,
    start: tl.int64,
    count: tl.int64,
    KIND: tl.constexpr,
    DECAY: tl.constexpr,
):
    """Decay, one addition for each direction, and storing; one program for each tile.

    The eight parts of a tile share the Philox blocks of a direction, so all of them are kept until the end.
    """
    tile = start // _TILE + tl.program_id(0).to(tl.int64)
    part = tl.arange(0, 8)[:, None]
    element = tile * _TILE + 256 * part + tl.arange(0, _BLOCKS)[None, :]
    position = element - start
    mask = (position >= 0) & (position < count)
    u = _load(patterns, steps, width, position, element, mask, KIND)
    if DECAY:
        u = u * decay
    for d in range(directions):
        words = _philox(tile, tl.load(seeds + d), tensor, _DIRECTION)
        u = u + tl.load(coefficients + d) * tl.load(table + _halves(words, part))
    if KIND == FLOAT32:
        _store_nearest(patterns, position, u, mask, KIND)
    else:
        r = _halves(_philox(tile, tl.load(seeds), tensor, _ROUNDING), part)
        _store_stochastic(patterns, steps, width, position, element, u, r, mask, KIND)


@triton.jit
def _halves(words, part):  # type: ignore[no-untyped-def]
    """All 16-bit numbers of a tile, uint32 [8, 256]."""
    even = tl.where(part < 4, tl.where(part < 2, words[0][None, :], words[1][None, :]), words[3][None, :])
    word = tl.where(part // 2 == 2, words[2][None, :], even)
    return tl.where(part % 2 == 1, word >> 16, word & 0xFFFF)
