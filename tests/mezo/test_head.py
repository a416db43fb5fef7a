"""The loss without full logits equals the plain one, whatever the chunk, and reads the head row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.mezo import head
from llava.mezo.head import IGNORED, next_token_loss
from llava.mezo.perturb import Perturbation
from llava.mezo.tables import PerturbedTable
from llava.mezo.trained import TrainedWeights
from llava.mezo.weights import store

VOCABULARY, WIDTH = 1003, 24


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [2, 9, 24], head [1003, 24], labels [2, 9]: a few supervised, the first of a row among them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    labels = torch.full((2, 9), IGNORED)
    labels[0, 0], labels[0, 4], labels[0, 8], labels[1, 1] = 5, VOCABULARY - 1, 0, 700
    return hidden, weight, labels


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> float:
    logits = functional.linear(hidden, weight)[:, :-1].double()
    return float(functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


@pytest.mark.parametrize("rows", [None, 1, 7, 256, VOCABULARY - 1, VOCABULARY, 5000])
def test_equals_the_plain_loss_for_every_chunk(batch: tuple[torch.Tensor, ...], rows: int | None) -> None:
    assert float(next_token_loss(*batch, rows=rows)) == pytest.approx(plain(*batch), abs=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_neither_overflow_nor_vanish(batch: tuple[torch.Tensor, ...], size: float) -> None:
    hidden, weight, labels = batch
    large = (hidden * size, weight, labels)
    assert float(next_token_loss(*large, rows=100)) == pytest.approx(plain(*large), rel=1e-5)


def test_nothing_supervised_is_nan_as_in_torch(batch: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, labels = batch
    assert math.isnan(float(next_token_loss(hidden, weight, torch.full_like(labels, IGNORED))))


@pytest.mark.parametrize(("width", "dtype", "positions"), [(896, torch.bfloat16, 20), (3584, torch.bfloat16, 1792)])
def test_chunks_are_whole_tiles_within_the_budget(width: int, dtype: torch.dtype, positions: int) -> None:
    rows = head.chunk_rows(torch.empty(151936, width, dtype=dtype), positions)
    assert rows * width % 2048 == 0
    assert rows * max(width * 2, positions * 4) <= head.CHUNK_BYTES


def test_a_perturbed_head_is_never_made_whole(batch: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels = batch
    layer = nn.Linear(WIDTH, VOCABULARY, bias=False)
    layer.weight = nn.Parameter(weight.clone())
    weights = TrainedWeights([store(layer.weight, "native")], "gaussian", "torch")
    perturbation = Perturbation(layer, [layer.weight], weights)
    with perturbation.attached(), perturbation.at(3, 0.5):
        expected = plain(hidden, layer.weight + 0, labels)
    monkeypatch.setattr(PerturbedTable, "whole", lambda table: pytest.fail("the whole head was made"))
    with perturbation.attached(), perturbation.at(3, 0.5):
        loss = next_token_loss(hidden, layer.weight, labels, rows=100)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert float(loss) != pytest.approx(plain(hidden, weight, labels), abs=1e-2)
