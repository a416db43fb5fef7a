"""Small models and checkpoints that the tests of llava/model share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, SiglipVisionConfig, SiglipVisionModel

from llava.model import LlavaQwenConfig, LlavaQwenForCausalLM

SMALL_TOWER: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SMALL_QWEN: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 908,
    "max_position_embeddings": 4096,
}
SMALL_VISION: dict[str, Any] = {
    "mm_vision_tower": "small-siglip",
    "mm_vision_tower_config": SMALL_TOWER,
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": "(1x1),...,(3x3)",
    "mm_use_im_patch_token": False,
}


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
