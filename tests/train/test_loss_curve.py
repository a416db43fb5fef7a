"""The loss curve of a run on the embedded model, against one that was kept: a change of the engine keeps its numbers.

tests/assets/losses/scan_zo_float32.json was written by an earlier engine of this tree (each sign in a pass of its own,
one kernel call a matrix) with the noise of version 2 put into it, see docs/log.md. Rounding in the forward may differ
from machine to machine, and grows from step to step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_runs import logged_steps

from llava.train.train import train

ROOT = Path(__file__).parents[2]
SCAN = ROOT / "playground" / "data" / "scan"


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["native", "fixed16"])  # float32 weights are kept the same way under either
def test_forty_steps(storage: str, tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    changes = {
        "data_path": SCAN / "train.json",
        "version": "qwen_1_5",
        "trainer_mode": "zo",
        "zo_eps": 1e-3,
        "zo_seed": 3,
        "zo_weight_storage": storage,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "max_steps": 40,
        "logging_steps": 1,
        "mm_tunable_parts": "mm_language_model",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(6x6)",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_use_im_patch_token": False,
        "attn_implementation": "sdpa",
        "train_on_answers_only": True,
        "model_max_length": 512,
        "bf16": False,
    }
    train(argv=tiny_run(**changes))
    logged = logged_steps(tmp_path / "out")
    kept = json.loads((ROOT / "tests" / "assets" / "losses" / "scan_zo_float32.json").read_text())
    assert [entry["loss"] for entry in logged] == pytest.approx(kept["loss"], abs=1e-4)
    assert [entry["projected_grad"] for entry in logged] == pytest.approx(kept["projected_grad"], abs=2e-2)
