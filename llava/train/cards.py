"""How long work takes on a GPU, counted from its data sheet: what matrix products and bytes of memory cost.

Matrix products reach `MATRIX_SHARE` of the sheet's rate, kernels that move bytes, and the bus, `BANDWIDTH_SHARE`.
docs/performance.md has how far that was off on an H200: a twelfth at 7b, and half at 0.5b, whose products are too small
for such a card. Nothing was measured over a bus.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.train.footprint import Batch, Sizes
from llava.train.parts.tunable import PROJECTOR, VISION_TOWER

MATRIX_SHARE, BANDWIDTH_SHARE = 0.5, 0.8


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet."""

    name: str
    matrix: float
    """bfloat16 matrix products with float32 sums, operations a second, dense."""
    memory: float
    """Bytes a second."""
    lanes: float
    """Integer instructions a second: 64 a multiprocessor and clock."""
    bus: float
    """Bytes a second from the host: 16 lanes of PCIe 4.0 or 5.0."""

    def seconds(self, operations: float, moved: float) -> float:
        """Of products of so many operations that read so many bytes of weights, whichever takes longer."""
        return max(self.products(operations), self.moving(moved))

    def products(self, operations: float) -> float:
        """Of products of so many operations, whose weights are read meanwhile."""
        return operations / (self.matrix * MATRIX_SHARE)

    def moving(self, moved: float) -> float:
        """Of reading and writing so many bytes."""
        return moved / (self.memory * BANDWIDTH_SHARE)

    def fetching(self, moved: float) -> float:
        """Of copying so many bytes from the host."""
        return moved / (self.bus * BANDWIDTH_SHARE)


CARDS = {
    "rtx3090": Card("RTX 3090", 71e12, 936e9, 82 * 64 * 1.695e9, 31.5e9),
    "a100": Card("A100-80", 312e12, 2039e9, 108 * 64 * 1.41e9, 31.5e9),
    "h100": Card("H100 SXM", 989e12, 3350e9, 132 * 64 * 1.83e9, 63e9),
    "h200": Card("H200", 989e12, 4800e9, 132 * 64 * 1.83e9, 63e9),
}


def language_operations(of: Sizes, batch: Batch) -> float:
    """Of a forward of the language model: two for each weight and position, and attention's products (causal: half).

    The head is at the supervised positions alone.
    """
    body = sum(into * out for into, out in of.linears)
    head = 2.0 * of.table * batch.rows * batch.supervised
    return 2.0 * body * batch.positions + 2.0 * of.layers * of.queries * batch.positions * batch.tokens + head


def vision_operations(of: Sizes, batch: Batch) -> float:
    """Of tower and projector on all tiles."""
    patches = batch.patches * of.patches
    weights = of.parts[VISION_TOWER] + of.parts[PROJECTOR]
    return 2.0 * weights * patches + 4.0 * of.tower_layers * of.tower_width * of.patches * patches
