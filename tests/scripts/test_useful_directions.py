"""How many workers help: limits of the formulas, and what a made-up run says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from llava.errors import InputError
from llava.train.hessian import Hessian

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "study"))

import effective_rank
import useful_directions
from useful_directions import WAYS, half, progress

SHARE, RANK = 0.05, 200.0


def test_one_worker_is_the_same_in_every_way():
    first, *others = (progress(way, 1, SHARE, RANK) for way in WAYS)
    assert all(other == pytest.approx(first) for other in others)


@pytest.mark.parametrize("way", WAYS)
def test_half_of_the_end_is_where_it_is_said_to_be(way):
    end = progress(way, 1e15, SHARE, RANK)
    assert progress(way, half(way, SHARE, RANK), SHARE, RANK) == pytest.approx(end / 2)


def test_the_ends_are_those_of_the_estimates():
    """A direction of the whole gradient, the gradient of a batch, and the gradient."""
    ends = [progress(way, 1e15, SHARE, RANK) for way in WAYS]
    assert ends == pytest.approx([1 / (RANK + 2), SHARE, 1.0])


def test_the_formula_is_what_random_directions_do():
    """n-SPSA on a quadratic loss whose batches have gradients g + noise: the best step's gain, drawn."""
    generator = torch.Generator().manual_seed(0)
    curvature, trials, workers = 1.0, 20_000, 4  # H = I in 10 dimensions: r = 10
    gradient = torch.zeros(10)
    gradient[0] = 1.0
    noise = 3.0 * torch.randn(trials, 1, 10, generator=generator) / 10**0.5
    batches = gradient + noise
    share = float(gradient @ gradient / (batches**2).sum(-1).mean())
    z = torch.randn(trials, workers, 10, generator=generator)
    estimate = ((batches * z).sum(-1, keepdim=True) * z).mean(1)
    gain = float((estimate @ gradient).mean() ** 2 / (curvature * (estimate**2).sum(-1).mean()))
    assert gain == pytest.approx(progress(WAYS[1], workers, share, 10.0), rel=0.1)


def test_a_run_without_signal_is_refused():
    with pytest.raises(InputError, match=r"no signal is seen in the first fifth: 1\.0 ± 2\.0 %"):
        useful_directions.first_share([{"share": 0.01, "error": 0.02}])
    assert useful_directions.first_share([{"share": 0.1, "error": 0.02}]) == (0.1, 0.02)


def test_the_picture_has_a_panel_a_way(tmp_path, figures_of):
    made = figures_of(useful_directions)
    useful_directions.draw({"a": (0.1, 0.01), "b": (0.05, 0.01)}, RANK, tmp_path / "a.png")
    ((_, panels),) = made
    assert [axes.get_title() for axes in panels] == list(WAYS)
    assert panels[1].get_lines()[0].get_ydata()[0] == pytest.approx(1.0)


def test_the_rank_of_a_quadratic_is_known():
    """L = sum of d_i w_i^2 / 2 - b w, where a batch is its vector b."""
    diagonal = torch.tensor([4.0, 1.0, 1.0, 2.0])
    weight = torch.zeros(4, requires_grad=True)
    batches = [torch.tensor([1.0, 0, 0, x]) for x in (1.0, -1.0)]
    losses = [lambda b=b: (diagonal * weight.square() / 2 - b * weight).sum() for b in batches]
    found = effective_rank.measured(Hessian([weight], losses), probes=2)
    assert found["trace"] == pytest.approx(8.0) and found["trace_error"] == pytest.approx(0.0, abs=1e-6)
    assert found["curvature"] == pytest.approx(3.0) and found["rank"] == pytest.approx(8 / 3)
    assert found["frobenius"] == pytest.approx(22**0.5)
    assert found["share"] == pytest.approx(0.0)  # |1, 0|^2 - |0, 1|^2 = 0 of 2
