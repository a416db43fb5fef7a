"""Eigenvalues by products with vectors, against those of the whole matrix."""

from __future__ import annotations

import pytest
import torch

from llava.train.lanczos import extreme_eigenvalues


def start(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_spectrum_are_found_within_their_bounds(dtype: torch.dtype) -> None:
    matrix = torch.randn(80, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix = matrix + matrix.T
    exact = torch.linalg.eigvalsh(matrix.double())
    found = extreme_eigenvalues(lambda vector: matrix @ vector, start(80, dtype), 3, 1e-3)
    assert len(found.largest) == 3 and found.products < 60
    for one, value in zip([*found.largest, found.lowest], [*exact[[-1, -2, -3]], exact[0]], strict=True):
        assert one.residual <= 1e-3 * float(exact.abs().max())
        assert abs(one.value - float(value)) <= one.residual + 1e-5


def test_what_was_found_is_not_found_again() -> None:
    """In float32 the recursion alone has several copies of the first eigenvalue by then."""
    diagonal = torch.cat([torch.tensor([1e6]), torch.linspace(-1, 100, 60)])
    found = extreme_eigenvalues(lambda vector: diagonal * vector, start(61, torch.float32), 3, 1e-7, 40)
    assert [one.value for one in found.largest] == pytest.approx([1e6, 100, 98.288], rel=1e-3)


def test_few_products_give_wide_bounds() -> None:
    diagonal = torch.linspace(-3, 3, 200)
    found = extreme_eigenvalues(lambda vector: diagonal * vector, start(200, torch.float64), 2, 1e-6, 4)
    assert found.products == 4
    assert all(min(abs(float(d) - one.value) for d in diagonal) <= one.residual for one in found.largest)
    assert found.largest[0].residual > 0.01


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_of_equal_eigenvalues_there_is_one(factor: float) -> None:
    found = extreme_eigenvalues(lambda vector: factor * vector, start(10, torch.float32), 3)
    assert found.products == len(found.largest) == 1
    assert found.largest[0].value == pytest.approx(factor) == found.lowest.value
