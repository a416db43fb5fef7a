"""Small models and checkpoints that the tests of llava/model share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_llava import SMALL_QWEN, SMALL_TOWER, SMALL_VISION
from transformers import AutoTokenizer, SiglipVisionConfig, SiglipVisionModel

from llava.model import LlavaQwenConfig, LlavaQwenForCausalLM


@pytest.fixture
def small_model() -> LlavaQwenForCausalLM:
    """A LLaVA-Qwen with random weights, 32 pixel tiles of 4 x 4 patches."""
    torch.manual_seed(0)
    return LlavaQwenForCausalLM(LlavaQwenConfig(**SMALL_QWEN, **SMALL_VISION)).eval()


@pytest.fixture
def siglip_folder(tmp_path) -> Path:
    """A folder with a whole small SigLIP vision model: all layers, its head, weights and config."""
    torch.manual_seed(1)
    folder = tmp_path / "siglip"
    config = SiglipVisionConfig(**{key: value for key, value in SMALL_TOWER.items() if key != "model_type"})
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path, small_model, golden) -> Path:
    """The small model with the Qwen tokenizer, as a checkpoint folder that needs nothing else."""
    folder = tmp_path / "llava-small"
    small_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(golden / "tokenizer_qwen").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fullmodel_tower(golden, tmp_path_factory) -> Path:
    """Folder with the config of the tower of golden/fullmodel."""
    folder = tmp_path_factory.mktemp("tower")
    shutil.copy(golden / "fullmodel/vision_tower_config.json", folder / "config.json")
    return folder
