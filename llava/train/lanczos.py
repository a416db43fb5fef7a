"""The largest and the lowest eigenvalues of a symmetric matrix that is known by its products with vectors.

Lanczos (1950), where each new vector is made orthogonal to all before it, twice ("twice is enough", Parlett 1998,
section 6.9): in rounded numbers the plain recursion finds what it has found again and again. Needs the memory of a
vector a step. `torch.lobpcg` wants the matrix itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ritz:
    """An approximate eigenvalue; up to rounding, an exact one is no further off than `residual`, |A x - value x|."""

    value: float
    residual: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.residual:.1g}"


@dataclass(frozen=True)
class Extremes:
    """What was found.

    Attributes:
        largest: from the largest on downwards; of several that are equal, one.
        lowest: the smallest, with its sign.
        products: that it took.
    """

    largest: list[Ritz]
    lowest: Ritz
    products: int

    def __str__(self) -> str:
        return f"largest {', '.join(map(str, self.largest))}; lowest {self.lowest}"


def extreme_eigenvalues(
    product: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    count: int = 1,
    tolerance: float = 1e-2,
    most_products: int = 100,
) -> Extremes:
    """The `count` largest eigenvalues and the lowest.

    Args:
        product: the matrix times a vector, both [size].
        start: a random vector [size]; what is orthogonal to it is not found.
        tolerance: of their residuals, as a share of the largest size that was found.
        most_products: the end, whatever the residuals are by then.
    """
    vector, basis = start / start.norm(), []
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(most_products, len(start))):
        basis.append(vector)
        image = product(vector)
        diagonal.append(float(vector @ image))
        for known in 2 * basis:
            image = image - (known @ image) * known
        beside.append(float(image.norm()))
        found = _ritz(diagonal, beside)
        wanted, size = [*found[-count:], found[0]], max(abs(found[0].value), abs(found[-1].value))
        exhausted = beside[-1] <= torch.finfo(start.dtype).eps * size
        if exhausted or (len(found) > count and all(one.residual <= tolerance * size for one in wanted)):
            break
        vector = image / beside[-1]
    return Extremes(found[::-1][:count], found[0], len(basis))


def _ritz(diagonal: list[float], beside: list[float]) -> list[Ritz]:
    """Eigenvalues, upwards, of the matrix in the basis so far; the last of `beside` leads out of it."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if len(beside) > 1:
        off = torch.diag(torch.tensor(beside[:-1], dtype=torch.float64), 1)
        matrix = matrix + off + off.T
    values, vectors = torch.linalg.eigh(matrix)
    return [Ritz(float(v), beside[-1] * abs(float(last))) for v, last in zip(values, vectors[-1], strict=True)]
