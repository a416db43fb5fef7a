"""Kernel for CUDA, written in Triton: one program for each tile of 2048 elements, one launch for all weights of a part.

The programs are `triton_programs.py`; `enable_fp_fusion=False` keeps multiplications and additions apart. Points of
several pairs, which few estimators have, are made by `torch_any.py`.
With TRITON_INTERPRET=1 the same code runs on CPU tensors, which is how it is tested without a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llava.mezo.kernels import addresses as table
from llava.mezo.kernels.addresses import Addresses, PackedUpdates
from llava.mezo.kernels.interface import Aim, Part, Piece, Weight, laid_out
from llava.mezo.kernels.torch_any import TorchTable
from llava.mezo.kernels.triton_programs import one_pair_update_tiles, perturb_rows, perturb_tiles, update_tiles
from llava.mezo.noise import BLOCKS_PER_TILE, TILE, quantiles
from llava.mezo.updates import Update

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "num_warps": 2}
"""How every kernel here is compiled."""
VECTOR = 16
"""Bytes that a thread reads or writes at once, where addresses allow it."""


@dataclass(frozen=True)
class Launch:
    """Pieces whose values and copies are of the same kinds, for one launch."""

    columns: torch.Tensor
    owners: torch.Tensor
    kinds: dict[str, Any]
    """KIND, TARGET and ALIGNED of the kernels."""


class TritonTable:
    """See `WeightTable`; for tensors on CUDA devices."""

    def __init__(self, weights: Sequence[Weight], noise: str) -> None:
        self.weights = list(weights)
        self.device = self.weights[0].value.device
        self.gaussian = noise == "gaussian"
        self._constants = _constants(self.device)
        groups = 1 + max(weight.group for weight in self.weights)
        self._point = torch.zeros(1 + groups, dtype=torch.int64, device=self.device)
        self._seed, self._scales = self._point[:1], self._point[1:].view(torch.float32)  # [group, point]
        self._several = TorchTable(weights, noise)
        self._pairs = 1
        whole = [Piece(k, 0, weight.value.numel()) for k, weight in enumerate(self.weights)]
        self._all = self._launches(whole, [0] * len(whole))
        self._single = [self._launches([piece], [0]) for piece in whole]

    def part(self, pieces: Sequence[Piece]) -> Part:
        return laid_out(self.weights, pieces, self._launches(pieces, laid_out(self.weights, pieces).offsets))

    def aim(self, aim: Aim) -> None:
        self._pairs = len(aim.seeds)
        self._several.aim(aim)
        if self._pairs > 1:
            return
        scales = np.zeros((len(self._point) - 1, 2), dtype=np.float32)
        for point, of_groups in enumerate(aim.scales):
            scales[:, point] = [scale for (scale,) in of_groups[: len(scales)]]
        seed = np.array(aim.seeds, dtype=np.uint64).view(np.int64)
        packed = np.concatenate([seed, scales.view(np.int64).reshape(-1)])
        self._point.copy_(torch.from_numpy(packed), non_blocking=True)

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        if self._pairs > 1:
            self._several.perturb(part, copies)
            return
        points, options = self._points(copies)
        with _on(self.device):
            for launch in part.prepared:
                tiles = launch.owners.numel()
                perturb_tiles[(tiles,)](launch.columns, launch.owners, *points, **launch.kinds, **options)

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        height, width = self.weights[index].value.shape
        if rows.numel() == 0 or width == 0:
            return
        if self._pairs > 1:
            self._several.look_up(index, rows, copies)
            return
        points, options = self._points(copies)
        (launch,) = self._single[index]
        grid = rows.numel(), -(-width // TILE) + 1
        with _on(self.device):
            perturb_rows[grid](launch.columns, rows.contiguous(), height, width, *points, **launch.kinds, **options)

    def update(self, updates: Sequence[Update]) -> None:
        if updates:
            self.prepared_update(updates)()

    def prepared_update(self, updates: Sequence[Update]) -> Callable[[], None]:
        """What `update` launches, its numbers being on the device."""
        packed = PackedUpdates.of(updates)
        integers = np.concatenate([packed.seeds.view(np.int64), packed.ends, packed.active.ravel()])
        numbers = np.concatenate([packed.coefficients.ravel(), packed.decays.ravel()])
        there = _together([integers, numbers], self.device)
        kernel = one_pair_update_tiles if len(packed.seeds) == len(updates) == 1 else update_tiles

        def launch_all() -> None:
            with _on(self.device):
                for launch in self._all:
                    kernel[(launch.owners.numel(),)](
                        launch.columns,
                        launch.owners,
                        *there,
                        self._constants,
                        len(packed.seeds),
                        len(updates),
                        packed.decays.shape[1],
                        KIND=launch.kinds["KIND"],
                        ALIGNED=launch.kinds["ALIGNED"],
                        GAUSSIAN=self.gaussian,
                        **OPTIONS,
                    )

        return launch_all

    def _points(self, copies: Mapping[int, torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """What both kernels that perturb take: arguments from `seed` to `second`, and options.

        Scales of a group are two on from those of the group before; copies are addresses of bytes, a single one twice.
        """
        scales = self._scales[next(iter(copies)) :]
        memory = [copy.view(-1).view(torch.uint8) for copy in copies.values()]
        arguments = self._seed, scales, self._constants, memory[0], memory[-1]
        return arguments, {"GAUSSIAN": self.gaussian, "TWO": len(copies) > 1, **OPTIONS}

    def _launches(self, pieces: Sequence[Piece], offsets: Sequence[int]) -> list[Launch]:
        """One launch for each kind of value and copy."""
        by_kinds: dict[tuple[int, int, bool], list[int]] = {}
        for place, piece in enumerate(pieces):
            weight = self.weights[piece.index]
            kinds = table.KIND[weight.value.dtype], table.KIND[weight.dtype], _aligned(weight, piece)
            by_kinds.setdefault(kinds, []).append(place)
        launches = []
        for (kind, target, aligned), places in by_kinds.items():
            found = Addresses.of(self.weights, [pieces[k] for k in places], [offsets[k] for k in places])
            if len(found.owners):
                columns, owners = _together([found.columns, found.owners], self.device)
                launches.append(Launch(columns, owners, {"KIND": kind, "TARGET": target, "ALIGNED": aligned}))
        return launches


def _aligned(weight: Weight, piece: Piece) -> bool:
    """Whether vectors of the piece's elements begin where the device reads vectors."""
    value = weight.value
    address = value.data_ptr() + piece.start * value.element_size()
    return address % VECTOR == 0 and (weight.first + piece.start) % VECTOR == 0


def _together(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Arrays on the device, by one copy that nobody waits for."""
    *starts, end = accumulate((-(-array.nbytes // VECTOR) * VECTOR for array in arrays), initial=0)
    packed = np.zeros(end, dtype=np.uint8)
    for array, start in zip(arrays, starts, strict=True):
        packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = torch.from_numpy(packed).to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(_TORCH[array.dtype.name]).view(array.shape)
        for array, start in zip(arrays, starts, strict=True)
    ]


_TORCH = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32}


@cache
def _constants(device: torch.device) -> torch.Tensor:
    """The 256 quantiles, then the bits of the integers 0 ... 255, as float32 [512]."""
    numbers = np.arange(BLOCKS_PER_TILE, dtype=np.int32).view(np.float32)
    return torch.from_numpy(np.concatenate([quantiles(), numbers])).to(device)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
