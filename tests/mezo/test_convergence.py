"""MeZO learns, and 16-bit weights follow float32 ones where rounding to nearest stands still."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.mezo import MeZO, MeZOConfig

WIDTH = 16


def run(
    dtype: torch.dtype,
    steps: int,
    lr: float,
    directions: int = 1,
    nearest: torch.dtype | None = None,
    storage: str = "native",
) -> list[float]:
    """Losses of a linear regression with weights in `dtype` and the arithmetic of the forward in float32.

    `nearest`: round the weights to this dtype, to nearest, after every step.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, WIDTH, generator=generator)
    y = x @ torch.randn(WIDTH, WIDTH, generator=generator) + 1.0
    model = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        model.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator).bfloat16())
        model.bias.fill_(1.5)
    model.to(dtype)

    def loss() -> torch.Tensor:
        return functional.mse_loss(functional.linear(x, model.weight.float(), model.bias.float()), y)

    optimizer = MeZO(model.parameters(), model, MeZOConfig(eps=1e-1, num_directions=directions, storage=storage), lr=lr)
    losses = []
    for step in range(steps):
        losses.append(optimizer.accumulate(step, loss))
        optimizer.step()
        if nearest is not None:
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(p.to(nearest))
    optimizer.release()
    with torch.no_grad():
        losses.append(float(loss()))
    return losses


@pytest.mark.slow
def test_regression_is_solved() -> None:
    losses = run(torch.float32, steps=500, lr=2e-2, directions=4)
    assert losses[0] > 30 and losses[-1] < 0.1 * losses[0]


@functools.cache
def gain(dtype: torch.dtype, nearest: torch.dtype | None = None, storage: str = "native") -> float:
    losses = run(dtype, steps=800, lr=1.25e-4, nearest=nearest, storage=storage)
    return losses[0] - losses[-1]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_follow_float32(dtype: torch.dtype, storage: str) -> None:
    assert gain(dtype, storage=storage) == pytest.approx(gain(torch.float32), rel=0.1)


@pytest.mark.slow
def test_rounding_to_nearest_would_lose_most_updates() -> None:
    """Shows that the test above can fail: the same run, rounded to the nearest bfloat16."""
    assert gain(torch.float32, nearest=torch.bfloat16) < 0.5 * gain(torch.float32)
