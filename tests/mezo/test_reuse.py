"""Replaying the outputs of frozen parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.mezo import MeZO, MeZOConfig, reuse_outputs


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4).requires_grad_(False)
        self.runs = 0

    def forward(self, x: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        self.runs += 1
        return {"features": self.layer(x) * options.get("scale", 1)}


def test_a_step_runs_the_frozen_part_once_and_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    tower, head = Counting(), nn.Linear(4, 2)
    model = nn.ModuleList([tower, head])
    images = [torch.randn(3, 4), torch.randn(3, 4)]
    target = torch.randn(6, 2)

    def loss() -> torch.Tensor:
        features = torch.cat([tower(image.clone())["features"] for image in images])
        return functional.mse_loss(head(features), target)

    results = []
    for reused in (True, False):
        optimizer = MeZO(head.parameters(), model, MeZOConfig(num_directions=3), lr=0.0)
        tower.runs = 0
        with reuse_outputs([tower] if reused else []):
            optimizer.accumulate(0, loss)
        optimizer.step()
        assert tower.runs == (2 if reused else 12)
        results.append(optimizer.last)
    assert results[0] == results[1]
    assert "forward" not in tower.__dict__


def test_other_inputs_are_computed() -> None:
    tower, x = Counting(), torch.randn(2, 4)
    with reuse_outputs([tower]):
        one = tower(x)["features"]
        assert tower(x.clone())["features"] is one and tower.runs == 1
        assert torch.equal(tower(x, scale=2)["features"], one * 2) and tower.runs == 2
        tower(x.double().float() + 1)
        tower(x[:1])
        assert tower.runs == 4
    tower(x)
    assert tower.runs == 5


def test_tensors_that_were_written_in_place_are_not_replayed() -> None:
    tower, x = Counting(), torch.randn(2, 4)
    with reuse_outputs([tower]):
        output = tower(x)["features"]
        kept = output.clone()
        output.zero_()
        assert torch.equal(tower(x)["features"], kept) and tower.runs == 2
        x.add_(1)
        assert not torch.equal(tower(x)["features"], kept) and tower.runs == 3


def test_trainable_modules_are_refused() -> None:
    tower = Counting()
    tower.layer.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"Counting.*'layer\.bias'"), reuse_outputs([tower]):
        pass


def test_everything_is_restored_after_an_exception_and_for_an_overridden_forward() -> None:
    tower = Counting()
    override = lambda x: x  # noqa: E731
    tower.forward = override  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyError), reuse_outputs([tower]):
        assert tower(1) == 1
        raise KeyError
    assert tower.__dict__["forward"] is override
