"""The count of an offloaded step: two layers, copies of a matrix and activations on the card, every weight once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmark"))
import offload
import opt
from fake_device import CARD, Memory, fake_card


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that are large where it matters, and few tokens."""
    monkeypatch.setattr(opt, "SHAPES", opt.SHAPES | {"opt-tiny": (3, 512, 4)})
    monkeypatch.setattr(opt, "POSITIONS", 16)
    monkeypatch.setattr(opt, "VOCABULARY", 2000)


def test_memory_of_the_card_is_that_of_tensors_that_are_alive() -> None:
    with fake_card() as memory:
        first = torch.empty(100, dtype=torch.float32, device=CARD)
        view = first[10:20].view(2, 5)
        assert (memory.now, memory.peak) == (400, 400)
        torch.empty(50, dtype=torch.float32, device="cpu")
        second = first + 1
        assert memory.now == 800
        del first, second
        assert memory.now == 400  # the view keeps it
        del view
        assert (memory.now, memory.peak) == (0, 800)
    assert isinstance(memory, Memory)


def test_two_layers_and_copies_of_a_matrix_are_on_the_card() -> None:
    one = offload.count("opt-tiny")
    layer, matrix, tokens = 2 * 12 * 512**2, 2 * 4 * 512**2, 2 * 16 * 512
    assert 2 * layer < one.layers < 1.02 * 2 * layer
    assert one.layers + 2 * matrix < one.peak < one.layers + 2 * matrix + 24 * tokens + 2**19


def test_a_weight_crosses_once() -> None:
    """Also the table that is the head, too: it comes as one piece, and is there when the next step begins."""
    one, looked_up = offload.count("opt-tiny"), 2 * 2 * 2 * 16 * 512  # rows of two tables for both forwards
    assert one.weights == one.trained == one.down
    assert one.up == one.weights + looked_up


def test_a_table_that_is_the_head_too_crosses_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opt, "VOCABULARY", 60_000)
    one = offload.count("opt-tiny")
    table = 2 * 60_000 * 512
    assert one.down == one.weights
    assert 0.8 * table < one.up - one.weights < 1.2 * table  # of its eight pieces one comes in vain, too


@pytest.mark.slow
def test_a_model_with_a_tower() -> None:
    one = offload.count("tiny")
    assert one.down == one.trained < one.weights < one.up < 1.5 * one.weights


def test_the_table() -> None:
    lines = offload.table({"opt-13b": offload.Count(4 * 10**9, 4 * 10**9, 2 * 10**9, 10**9, 4 * 10**9, 10**9)})
    assert "| opt-13b | 4.00 | 2.00 | 1.00 | 4.00 | 1.00 | 6.18 | 2.1 times |" in lines
