"""Slope and curvature from forwards, against a loss whose gradient and Hessian are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.curvature import Landscape, Probe, probe_of, probe_points

EPS, SIZE, BATCHES = 1e-2, 6, 4
EIGENVALUES = torch.tensor([9.0, 3.0, 3.0, 1.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def case() -> tuple[Landscape, torch.Tensor, torch.Tensor]:
    """What 1,500 directions say of four batches, whose losses are g_i . w + w' H w / 2; their g_i, and H."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    hessian = basis @ torch.diag(EIGENVALUES.double()) @ basis.T
    gradients = 1 + torch.randn(BATCHES, SIZE, generator=generator, dtype=torch.float64)
    z = torch.randn(1500, SIZE, generator=generator, dtype=torch.float64)
    slopes, curved = (z @ gradients.T).tolist(), torch.einsum("ij,jk,ik->i", z, hessian, z).tolist()
    directions = [[Probe(0.0, slope, h) for slope in row] for row, h in zip(slopes, curved, strict=True)]
    return Landscape(directions), gradients, hessian


def pairs(gradients: torch.Tensor) -> float:
    """Mean of g_i . g_j over different i and j."""
    products = gradients @ gradients.T
    return float((products.sum() - products.trace()) / (BATCHES * (BATCHES - 1)))


def test_gradient_and_hessian_are_found(case: tuple[Landscape, torch.Tensor, torch.Tensor]) -> None:
    """Each within three of its own standard errors, which are small."""
    landscape, gradients, hessian = case
    rate = pairs(gradients) / float(
        (gradients.square().sum(1).mean() * hessian.trace())
        + 2 * torch.einsum("ij,jk,ik->i", gradients, hessian, gradients).mean()
    )
    for found, right, relative in (
        (landscape.signal, pairs(gradients), 0.1),
        (landscape.square, float(gradients.square().sum(1).mean()), 0.1),
        (landscape.trace, 17.0, 0.05),
        (landscape.trace_of_square, 101.0, 0.15),
        (landscape.effective_rank, 17.0**2 / 101.0, 0.15),
        (landscape.best_rate, rate, 0.2),
    ):
        assert abs(found.value - right) < 3 * found.error
        assert found.error < relative * right and found.is_positive
    low, high = landscape.largest_eigenvalue
    assert low < 9.0 < 1.1 * high
    assert landscape.share.value == pytest.approx(landscape.signal.value / landscape.square.value)
    assert landscape.loss == 0.0


def test_a_step_at_the_best_rate_lowers_the_loss_most(case: tuple[Landscape, torch.Tensor, torch.Tensor]) -> None:
    """By hand: steps along fresh directions by the slope of one batch, judged on another."""
    landscape, gradients, hessian = case
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(40_000, SIZE, generator=generator, dtype=torch.float64)

    def change(rate: float) -> float:
        total = 0.0
        for gradient in gradients:
            steps = -rate * (z @ gradient)[:, None] * z
            others = (gradients.sum(0) - gradient) / (BATCHES - 1)
            total += float((steps @ others + torch.einsum("ij,jk,ik->i", steps, hessian, steps) / 2).mean())
        return total

    best = landscape.best_rate.value
    assert change(best) < min(change(best / 3), change(1.9 * best), 0.0)


def test_the_engine_measures_what_probes_need() -> None:
    """Slope and curvature along its own directions; outside them the weights are as before."""
    model = nn.Linear(SIZE, 1, bias=False)
    weights = model.weight.detach().clone()
    optimizer = MeZO(model.parameters(), model, MeZOConfig(eps=EPS))
    for seed in range(3):
        points = probe_points(seed, EPS)
        z = torch.tensor([optimizer.losses_at(points[:1], lambda k=k: model.weight[0, k])[0] for k in range(SIZE)])  # type: ignore[misc]
        z = (z - weights[0]) / EPS
        probe = probe_of(optimizer.losses_at(points, lambda: (EIGENVALUES * model.weight[0].double() ** 2).sum()), EPS)
        assert probe.slope == pytest.approx(float(2 * EIGENVALUES * weights[0] @ z), abs=1e-3)
        assert probe.curvature == pytest.approx(float(2 * EIGENVALUES @ z**2), abs=0.02)
    assert torch.equal(model.weight, weights)


def test_probes_say_what_they_were_given() -> None:
    """A loss of 2 + 3 x + 5 x^2 / 2 along the direction."""
    assert [point.scales for point in probe_points(7, 0.5)] == [(0.5,), (-0.5,), (0.0,)]
    losses = [2 + 3 * x + 5 * x**2 / 2 for x in (0.5, -0.5, 0.0)]
    assert probe_of(losses, 0.5) == Probe(2.0, 3.0, 5.0)


def test_without_curvature_nothing_is_made_up() -> None:
    flat = [[Probe(1.0, slope, 0.0), Probe(1.0, -slope, 0.0)] for slope in (1.0, 2.0, 3.0)]
    landscape = Landscape(flat)
    assert landscape.signal.value < 0 and not landscape.trace.is_positive
    assert math.isnan(landscape.best_rate.value) and math.isnan(landscape.effective_rank.value)


@pytest.mark.parametrize(("of_losses", "of_weights"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
def test_rounding_is_told_from_curvatures_that_differ(of_losses: float, of_weights: float) -> None:
    """Losses 2 x + x^2 / 2 with noise: in all three of a probe, as losses have it, or away from the weights alone."""
    generator = torch.Generator().manual_seed(0)
    eps, noise = 1e-3, 1e-3 * torch.randn(2, 2000, 2, 3, generator=generator, dtype=torch.float64)
    scales = torch.tensor([eps, -eps, 0.0], dtype=torch.float64)
    losses = 2 * scales + scales**2 / 2 + of_losses * noise[0] + of_weights * noise[1] * (scales != 0)
    directions = [[probe_of(batch, eps) for batch in along] for along in losses.tolist()]
    right = 0.5 / (0.5 + 4) if of_losses != of_weights else 0.49 / (0.49 + 4)
    assert 0.9 * right < Landscape(directions).rounding(eps) < 3.2 * right


def test_without_rounding_there_is_next_to_none(case: tuple[Landscape, torch.Tensor, torch.Tensor]) -> None:
    """At large distances the differences of curvatures are their own."""
    landscape, _, _ = case
    assert landscape.rounding(EPS) < 1e-3
    assert landscape.rounding(100.0) == 1.0
