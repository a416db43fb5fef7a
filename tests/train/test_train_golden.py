"""Losses that a run logs for the samples of golden/fullmodel, and what --image_grid_pinpoints becomes in a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import logged_steps

from llava.constants import IGNORE_INDEX
from llava.errors import InputError
from llava.train.flags.parsing import parse_arguments
from llava.train.train import build, train

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
EXPECTED = json.loads((GOLDEN / "fullmodel" / "expected.json").read_text())
CASES = {case["id"]: case for case in EXPECTED["cases"]}
RECORDS = json.loads((GOLDEN / "fullmodel" / "data" / "data.json").read_text())
PINPOINTS = json.loads((GOLDEN / "anyres" / "train_pinpoints.json").read_text())["cases"]

Flags = Callable[..., list[str]]


@pytest.fixture()
def logged_losses(flags: Flags, fullmodel: dict[str, Path], tmp_path: Path) -> Callable[..., list[float]]:
    """Losses of one pass without learning over samples of golden/fullmodel, in float32."""

    def run(names: Iterable[str], batch: int, **changes: Any) -> list[float]:
        chosen = [record for record in RECORDS if record["id"] in set(names)]
        data = tmp_path / "data.json"
        data.write_text(json.dumps(chosen))
        settings = {
            "data_path": data,
            "bf16": None,
            "model_max_length": 16384,
            "mm_tunable_parts": "mm_mlp_adapter",
            "learning_rate": 0.0,
            "per_device_train_batch_size": batch,
            "max_steps": len(chosen) // batch,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        train(argv=flags(**fullmodel, **settings, **changes))
        return [entry["loss"] for entry in logged_steps(tmp_path / "out")]

    return run


def batch_loss(names: Iterable[str]) -> float:
    """Loss of samples in one batch, from their losses alone: a mean over all their labelled tokens."""
    cases = [CASES[name] for name in names]
    counts = [sum(label != IGNORE_INDEX for label in case["labels"][1:]) for case in cases]
    return sum(case["loss"] * count for case, count in zip(cases, counts, strict=True)) / sum(counts)


@pytest.mark.slow
def test_losses_of_single_samples(logged_losses: Callable[..., list[float]]) -> None:
    losses = logged_losses(CASES, batch=1)
    assert sorted(losses) == pytest.approx(sorted(case["loss"] for case in CASES.values()), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"trainer_mode": "regular"}, {"trainer_mode": "zo", "zo_eps": 1e-6}])
def test_loss_of_a_batch(settings: dict[str, Any], logged_losses: Callable[..., list[float]]) -> None:
    """The short samples, since the padded batch of all six takes half a minute; tests/model has that one's forward."""
    assert batch_loss(CASES) == pytest.approx(EXPECTED["batch_loss_all_six_right_padded"], abs=1e-5)
    short = ["small", "text", "two_images"]
    assert logged_losses(short, batch=3, **settings) == pytest.approx([batch_loss(short)], abs=1e-4)


@pytest.mark.parametrize("case", PINPOINTS, ids=lambda case: f"{case['image_aspect_ratio']} {case['flag']}")
def test_image_grid_pinpoints(case: dict[str, Any], flags: Flags, fullmodel: dict[str, Path]) -> None:
    given = {"image_grid_pinpoints": case["flag"], "image_aspect_ratio": case["image_aspect_ratio"]}
    words = flags(**fullmodel, **given, mm_tunable_parts="mm_mlp_adapter")
    if case["image_aspect_ratio"] == "highres":
        with pytest.raises(InputError, match="highres"):
            parse_arguments(words)
        return
    arguments = parse_arguments(words)
    model, _ = build(*arguments)
    assert model.config.image_grid_pinpoints == case["config_image_grid_pinpoints"]
    assert arguments[1].image_grid_pinpoints == case["config_image_grid_pinpoints"]


@pytest.mark.parametrize("lora", [False, True])
def test_dtypes_of_a_zeroth_order_run(lora: bool, flags: Flags, fullmodel: dict[str, Path]) -> None:
    """Weights are bfloat16 and LoRA's float32; rotary frequencies, too, since bfloat16 is off by turns far along."""
    words = flags(
        **fullmodel,
        trainer_mode="zo",
        gradient_checkpointing=None,
        mm_tunable_parts="mm_language_model",
        lora_enable=lora,
        lora_r=4,
    )
    model, _ = build(*parse_arguments(words))
    assert model.get_model().rotary_emb.inv_freq.dtype == torch.float32
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32 if lora else torch.bfloat16}, {torch.bfloat16})
