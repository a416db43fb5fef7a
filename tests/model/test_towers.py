"""Towers: which class, the features against the conformance data and the library, and where configs come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel, SiglipVisionModel

from llava.errors import InputError
from llava.model.multimodal_encoder.builder import build_vision_tower, tower_class
from llava.model.multimodal_encoder.image_processor import SigLipImageProcessor, TowerImageProcessor
from llava.model.multimodal_encoder.tower_config import infer_vision_config, parse_vision_config

TOWERS = json.loads((Path(__file__).parents[1] / "assets/golden/model/towers.json").read_text())
SUPPORTED = {"CLIPVisionTower", "SigLipVisionTower"}
# SigLIP in capitals is no error here, and s2 always is; a local folder is whatever its config says.
NAMED = [case for case in TOWERS["name_to_tower"] if not case["s2"] and not case["name"].startswith("<")]


def settings(tower, **values) -> SimpleNamespace:
    return SimpleNamespace(mm_vision_tower=str(tower), **values)


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case["name"])
def test_class_of_a_name(case):
    if case["name"] == "google/SigLIP-x":
        assert tower_class(case["name"]).__name__ == "SigLipVisionTower"
    elif str(case["tower"]) in SUPPORTED:
        assert tower_class(case["name"]).__name__ == case["tower"]
    else:
        with pytest.raises(InputError, match="supported: SigLIP and CLIP"):
            tower_class(case["name"])


@pytest.mark.parametrize("name", sorted({case["name"] for case in TOWERS["name_to_tower"]}))
def test_multi_scale_towers_are_refused(name):
    with pytest.raises(InputError, match="s2"):
        tower_class(name, SimpleNamespace(s2=True))


@pytest.mark.parametrize("case", TOWERS["cases"], ids=lambda case: case["key"])
def test_clip_features(case, golden):
    arrays = np.load(golden / "model/clip_tower.npz")
    tower = build_vision_tower(settings(golden / "model/clip_tiny", **case))
    assert type(tower).__name__ == case["class"]
    assert tower.is_loaded
    with torch.no_grad():
        features = tower(torch.from_numpy(arrays["in"]))
    assert list(features.shape) == case["out_shape"]
    np.testing.assert_allclose(features, arrays[case["key"]], atol=1e-4, rtol=1e-4)
    for name in ("hidden_size", "num_patches", "num_patches_per_side", "image_size"):
        assert getattr(tower, name) == case[name]
    assert tower.dummy_feature.shape == (1, case["hidden_size"])
    assert tower.image_processor.size == {"shortest_edge": 56}
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_a_list_of_images_gives_a_list(golden):
    tower = build_vision_tower(settings(golden / "model/clip_tiny", mm_vision_select_layer=-2))
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        assert torch.allclose(torch.cat(tower(list(images))), tower(images), atol=1e-5)


@pytest.mark.parametrize("whole_model", [False, True], ids=["vision part", "full model"])
def test_siglip_is_the_last_but_one_layer_without_norm(whole_model, siglip_folder, tmp_path):
    if whole_model:
        vision = json.loads((siglip_folder / "config.json").read_text())
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
        library = SiglipModel(SiglipConfig(vision_config=vision, text_config=text | {"intermediate_size": 8}))
        siglip_folder = tmp_path / "whole"
        library.save_pretrained(siglip_folder)
        library = library.vision_model
    else:
        library = SiglipVisionModel.from_pretrained(siglip_folder)
    tower = build_vision_tower(settings(siglip_folder))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        hidden = library(images, output_hidden_states=True).hidden_states
        assert torch.allclose(tower(images), hidden[-2], atol=1e-5)
    assert tower.num_patches == 16
    names = tower.state_dict()
    assert all(name.startswith("vision_tower.vision_model.") for name in names)
    assert "vision_tower.vision_model.post_layernorm.weight" in names
    assert not any(".layers.2." in name or ".head." in name or "position_ids" in name for name in names)


def test_features_follow_the_towers_dtype(siglip_folder):
    tower = build_vision_tower(settings(siglip_folder)).to(torch.bfloat16)
    assert tower(torch.zeros(1, 3, 32, 32)).dtype == torch.bfloat16


@pytest.mark.parametrize("trained", (False, True))
def test_what_nothing_is_differentiated_through_keeps_nothing(siglip_folder, trained):
    """Layers that are to run again keep their inputs, whether anything is trained or not."""
    tower = build_vision_tower(settings(siglip_folder)).requires_grad_(trained)
    seen = []
    tower.vision_tower.vision_model.encoder.layers[0].register_forward_hook(
        lambda *_: seen.append(torch.is_grad_enabled())
    )
    features = tower(torch.zeros(1, 3, 32, 32))
    assert seen == [trained] and features.requires_grad == trained
    assert tower(torch.zeros(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_pixels_of_another_size_are_refused(siglip_folder):
    tower = build_vision_tower(settings(siglip_folder))
    with pytest.raises(InputError, match="takes 32 x 32 pixels"):
        tower(torch.zeros(1, 3, 40, 40))


def test_delayed_tower_loads_on_request(siglip_folder):
    tower = build_vision_tower(settings(siglip_folder), delay_load=True)
    assert not tower.is_loaded
    tower.load_model()
    reference = build_vision_tower(settings(siglip_folder))
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), reference.parameters(), strict=True))


@pytest.mark.parametrize("values", [{"mm_vision_select_feature": "cls"}, {"mm_vision_select_layer": 14}])
def test_wrong_selection_is_refused(values, golden):
    with pytest.raises(InputError, match=r"mm_vision_select.*allowed"):
        build_vision_tower(settings(golden / "model/clip_tiny", **values))(torch.zeros(1, 3, 56, 56))


def test_no_tower_named():
    with pytest.raises(InputError, match="--vision_tower"):
        build_vision_tower(SimpleNamespace())


def test_folder_without_weights_or_config(siglip_folder, tmp_path):
    (siglip_folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights found"):
        build_vision_tower(settings(siglip_folder))
    with pytest.raises(InputError, match=r"no config.json found.*overwrite_config"):
        build_vision_tower(settings("google/siglip-not-there"))


def test_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(InputError, match="is not supported"):
        build_vision_tower(settings(tmp_path))


def test_incomplete_weights_name_what_is_missing(siglip_folder):
    file = siglip_folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.0.layer_norm1.bias"))
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"lacks encoder\.layers\.0\.layer_norm1\.bias"):
        build_vision_tower(settings(siglip_folder))


def test_broken_config_names_the_line(siglip_folder):
    (siglip_folder / "config.json").write_text('{"model_type":\n oops}')
    with pytest.raises(InputError, match=r"config\.json: not valid JSON, line 2"):
        build_vision_tower(settings(siglip_folder))


def test_preprocessor_config_is_read(siglip_folder):
    values = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (siglip_folder / "preprocessor_config.json").write_text(json.dumps(values))
    assert build_vision_tower(settings(siglip_folder)).image_processor.image_mean == (0.1, 0.2, 0.3)
    (siglip_folder / "preprocessor_config.json").write_text(json.dumps(values | {"size": {"height": 64, "width": 64}}))
    with pytest.raises(InputError, match="gives 64 pixels, but the tower takes 32"):
        build_vision_tower(settings(siglip_folder))


@pytest.mark.parametrize("values", [{"do_normalize": False}, {"size": "big"}, {"size": {"longest_edge": 3}}])
def test_unsupported_preprocessing_is_refused(values):
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        TowerImageProcessor.from_config(values, SigLipImageProcessor())


def test_processor_fields_survive_a_round_trip(golden):
    values = json.loads((golden / "model/clip_tiny/preprocessor_config.json").read_text())
    processor = TowerImageProcessor.from_config(values, SigLipImageProcessor())
    again = TowerImageProcessor.from_config(processor.to_config(), SigLipImageProcessor())
    assert again.to_config() == processor.to_config()


@pytest.mark.parametrize(
    ("width", "layers", "patch", "side", "heads", "image_size"),
    [(1152, 26, 14, 27, 16, 384), (768, 11, 16, 14, 12, 224), (1024, 23, 16, 16, 16, 256), (1152, 1, 14, 16, 16, 224)],
)
def test_architecture_from_weight_shapes(width, layers, patch, side, heads, image_size):
    shapes = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (side * side, width),
    } | {f"encoder.layers.{layer}.mlp.fc1.weight": (77, width) for layer in range(layers)}
    config = parse_vision_config(infer_vision_config(shapes, "siglip"), "siglip")
    assert config.num_attention_heads == heads
    assert config.num_hidden_layers == layers + 1
    assert (config.image_size, config.patch_size, config.intermediate_size) == (image_size, patch, 77)


def test_unknown_width_says_where_to_put_a_config():
    shapes = {
        "embeddings.patch_embedding.weight": (50, 3, 14, 14),
        "embeddings.position_embedding.weight": (729, 50),
        "encoder.layers.0.mlp.fc1.weight": (7, 50),
    }
    with pytest.raises(InputError, match=r"width 50 is not known.*--vision_tower DIR"):
        infer_vision_config(shapes, "some/siglip")


def test_folder_inside_the_checkpoint(siglip_folder, tmp_path):
    checkpoint = tmp_path / "run"
    shutil.copytree(siglip_folder, checkpoint / "vision_tower")
    config = settings("vision_tower", _name_or_path=str(checkpoint))
    assert build_vision_tower(config).spec.source == str(checkpoint / "vision_tower")
