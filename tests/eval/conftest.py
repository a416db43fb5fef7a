"""A tiny LLaVA checkpoint with random weights and a few records with pictures."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from llava.toy import demo, tiny_model
from llava.toy.records import write_split


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a LLaVA checkpoint."""
    from transformers import AutoTokenizer

    from llava.model import LlavaQwenForCausalLM

    parts = tmp_path_factory.mktemp("parts")
    tiny_model.write(parts, seed=1)
    model = LlavaQwenForCausalLM.from_pretrained(parts / "language_model")
    settings = SimpleNamespace(
        vision_tower=str(parts / "vision_tower"),
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="spatial_unpad",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_patch_token=False,
        mm_use_im_start_end=False,
        pretrain_mm_mlp_adapter=None,
    )
    model.get_model().initialize_vision_modules(model_args=settings)
    model.config.image_aspect_ratio = "square"
    model.config.mm_use_im_patch_token = False
    folder = tmp_path_factory.mktemp("llava_tiny")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(parts / "language_model").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """(model, tokenizer, image processor)."""
    from llava.eval.generation import load_model

    return load_model(str(checkpoint), None, "float32")


@pytest.fixture
def records(tmp_path):
    """Six records of the three demo sets below `tmp_path`, with prompts of different lengths."""
    everything = []
    for name in demo.SETS:
        drawn = demo.split_samples(name, seed=3, sizes={"train": 2})["train"]
        for record in write_split(tmp_path / name, "train", name, drawn):
            everything.append(record | {"image": f"{name}/{record['image']}"})
    (tmp_path / "data.json").write_text(json.dumps(everything))
    return everything
