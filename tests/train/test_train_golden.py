"""Losses that a run logs for the samples of golden/fullmodel, and what --image_grid_pinpoints becomes in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.train.parsing import parse_arguments
from llava.train.train import build, train

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
EXPECTED = json.loads((GOLDEN / "fullmodel" / "expected.json").read_text())
PINPOINTS = json.loads((GOLDEN / "anyres" / "train_pinpoints.json").read_text())["cases"]

Flags = Callable[..., list[str]]


@pytest.mark.parametrize("mode", ["regular", "zo"])
@pytest.mark.parametrize("batch", [1, 6])
def test_logged_losses(batch: int, mode: str, flags: Flags, fullmodel: dict[str, Path], tmp_path: Path) -> None:
    train(
        argv=flags(
            **fullmodel,
            trainer_mode=mode,
            zo_eps=1e-6 if mode == "zo" else None,
            bf16=None,
            model_max_length=16384,
            mm_tunable_parts="mm_mlp_adapter",
            learning_rate=0.0,
            per_device_train_batch_size=batch,
            max_steps=6 // batch,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
    )
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    alone = sorted(case["loss"] for case in EXPECTED["cases"])
    expected = {1: alone, 6: [EXPECTED["batch_loss_all_six_right_padded"]]}[batch]
    assert sorted(losses) == pytest.approx(expected, abs=1e-4)
