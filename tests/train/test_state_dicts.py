"""Functions that training scripts import from LLaVA-NeXT's train.py: which weights they pick, where they save."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava.train.flags.parsing import parse_arguments
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import (
    build,
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    safe_save_model_for_hf_trainer,
)

GOLDEN = Path(__file__).parents[1] / "assets" / "golden" / "model"
RUNS = {case["name"]: case for case in json.loads((GOLDEN / "saved_runs.json").read_text())["runs"]}

Build = Callable[..., tuple[Any, Any, Any]]


@pytest.fixture()
def built(run_flags: Callable[..., list[str]], small_tower_folder: Path, tmp_path: Path) -> Build:
    """Model, tokenizer and training arguments for some flags."""

    def make(**changes: Any) -> tuple[Any, Any, Any]:
        settings = {"vision_tower": small_tower_folder, "mm_tunable_parts": "mm_mlp_adapter", "output_dir": tmp_path}
        arguments = parse_arguments(run_flags(**settings | changes))
        return (*build(*arguments), arguments[2])

    return make


def test_states_of_a_lora_model(built: Build) -> None:
    run = RUNS["lora-adapter-only"]
    model, _, _ = built(lora_enable=True, lora_r=4)
    adapter = get_peft_state_maybe_zero_3(model.named_parameters(), "none")
    names = {name.replace(".default.", ".") for name in adapter}  # newer PEFT names the adapter in it
    assert names == set(run["tensors"]["adapter_model.bin"]["tensors"])
    rest = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
    assert set(rest) == set(run["tensors"]["non_lora_trainables.bin"]["tensors"])
    assert not any(tensor.requires_grad for tensor in rest.values())
    everything = get_peft_state_non_lora_maybe_zero_3(model.named_parameters(), require_grad_only=False)
    assert len(everything) + len(adapter) == len(list(model.named_parameters()))


def test_biases_of_a_lora_model(built: Build) -> None:
    model, _, _ = built(lora_enable=True, lora_r=4)
    biases = {
        bias: {name for name in get_peft_state_maybe_zero_3(model.named_parameters(), bias) if name.endswith(".bias")}
        for bias in ("none", "lora_only", "all")
    }
    assert biases["none"] == set()
    assert len(biases["lora_only"]) == 2 * 3  # q, k and v of both layers
    assert biases["lora_only"] < biases["all"]
    assert biases["all"] == {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    with pytest.raises(ValueError, match="allowed are none, all and lora_only"):
        get_peft_state_maybe_zero_3(model.named_parameters(), "some")


def test_projector_of_a_folder_named_checkpoint(built: Build, tmp_path: Path) -> None:
    model, tokenizer, args = built()
    trainer = LLaVATrainer(model=model, args=args, processing_class=tokenizer, train_dataset=[])
    safe_save_model_for_hf_trainer(trainer, str(tmp_path / "checkpoint-7"))
    found = load_file(tmp_path / "mm_projector" / "checkpoint-7.safetensors")
    expected = get_mm_adapter_state_maybe_zero_3(model.named_parameters(), ["mm_projector", "image_newline"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (tmp_path / "checkpoint-7" / "config.json").exists()
    assert not (tmp_path / "checkpoint-7" / "mm_projector.safetensors").exists()

    adapter = tmp_path / "mm_projector" / "checkpoint-7.safetensors"
    torch.manual_seed(1)
    again, _, _ = built(pretrain_mm_mlp_adapter=adapter)
    assert torch.equal(again.get_model().mm_projector[0].weight, model.get_model().mm_projector[0].weight)
