"""Optimizer and generator state without pickle."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from llava.errors import InputError
from llava.train.zo.state import load_state, random_states, save_state, set_random_states


def test_adamw_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    layer = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, betas=(0.8, 0.99))
    layer(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()
    save_state(before, tmp_path, "optimizer")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]

    other = torch.optim.AdamW(torch.nn.Linear(5, 3).parameters(), lr=9.0)
    other.load_state_dict(load_state(tmp_path, "optimizer"))
    after = other.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, entries in before["state"].items():
        for name, value in entries.items():
            assert torch.equal(after["state"][index][name], value)


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    outer = random_states()
    try:
        draw()
        save_state(random_states(), tmp_path, "rng_state")
        expected = draw()
        draw()
        set_random_states(load_state(tmp_path, "rng_state"))
        assert draw() == expected
    finally:
        set_random_states(outer)


def test_missing_and_damaged_states(tmp_path: Path) -> None:
    assert load_state(tmp_path, "optimizer") is None
    save_state({"a": torch.zeros(2)}, tmp_path, "optimizer")
    (tmp_path / "optimizer.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"optimizer\.json is damaged"):
        load_state(tmp_path, "optimizer")


def test_what_needs_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        save_state({"a": tmp_path}, tmp_path, "x")
