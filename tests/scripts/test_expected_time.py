"""What the scripts say of a run's time before it starts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "train"))

import expected_time  # noqa: E402
import run_and_evaluate  # noqa: E402

SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "dataloader_drop_last": True}


def test_every_time_is_one_that_was_measured() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    for one in (one for found in expected_time.MEASURED.values() for one in found):
        assert f"| {one.seconds * 1000:g} |" in page or f"| {one.seconds:g} |" in page


def test_the_demo_s_minutes_are_those_of_the_scripts() -> None:
    texts = {
        mode: (ROOT / "scripts" / "train" / f"{name}_onevision_si.sh").read_text()
        for mode, name in (("zo", "mezo"), ("regular", "adamw"))
    }
    for mode, (low, high) in expected_time.DEMO_MINUTES.items():
        assert f"takes {low} to {high} minutes on two CPU cores" in texts[mode]
        assert f"{low} to {high} minutes" in "\n".join(expected_time.lines("demo", mode, 3000, 4, 1000))


@pytest.mark.parametrize(("more", "steps"), [({"max_steps": 7}, 7), ({"max_steps": -1, "num_train_epochs": 3}, 18)])
def test_steps(more: dict[str, float], steps: int) -> None:
    assert expected_time.steps_of(SimpleNamespace(**SETTINGS, **more), 100, processes=2) == steps


def test_times_are_of_the_preset_s_own_model() -> None:
    options = SimpleNamespace(preset="7b", num_gpus=1)
    args = SimpleNamespace(**SETTINGS, max_steps=7, trainer_mode="zo", data_processes_of=int)
    for model, timed in (("lmms-lab/llava-onevision-qwen2-7b-si", True), ("playground/tiny", False)):
        said = run_and_evaluate.outlook(options, SimpleNamespace(model_name_or_path=model), args, 100)
        assert ("H200" in " ".join(said)) is timed


def test_hours_are_in_proportion() -> None:
    said = "\n".join(expected_time.lines("7b", "zo", 5000, 4, 1000))
    assert "5,000 steps of 4 records: 20,000 records seen, of 1,000" in said
    assert f"about {0.1121 * 4 * 5000 / 3600:.2g} hours of steps on one NVIDIA H200" in said
    assert "nothing of this kind was timed" in expected_time.lines("7b", "regular", 5000, 4, 1000)[-1]
