"""Checkpoints on disk: names, shapes and keys as in the conformance data, round trips, and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from spoilt import edit_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from llava.errors import InputError
from llava.model import (
    LlavaConfig,
    LlavaLlamaForCausalLM,
    LlavaQwenConfig,
    LlavaQwenForCausalLM,
    config_for,
    model_class_for,
)
from llava.model.checkpoint_files import read_tensors, weight_files

MODEL = Path(__file__).parents[1] / "assets/golden/model"
LAYOUTS = json.loads((MODEL / "state_dict_layout.json").read_text())["layouts"]
RUNS = {run["name"]: run for run in json.loads((MODEL / "saved_runs.json").read_text())["runs"]}
# The tower of the layouts: width 1152, of two layers one is kept.
LAYOUT_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
TRAINING_DEFAULTS = {"mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad"}


def tensors_of(folder: Path) -> dict[str, tuple[list[int], str]]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                found[name] = (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype())
    return found


# ---------------------------------------------------------------------------------------------- layouts


@pytest.fixture(scope="module")
def wide_tower(tmp_path_factory) -> Path:
    """Folder with the weights of the layouts' tower, drawn once."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    folder = tmp_path_factory.mktemp("wide-siglip")
    values = {key: value for key, value in LAYOUT_TOWER.items() if key != "model_type"}
    SiglipVisionModel(SiglipVisionConfig(**values)).save_pretrained(folder)
    return folder


def plain_config(layout: dict) -> Qwen2Config | LlamaConfig:
    keys = layout["keys"]
    tied = layout["lm_head_is_embedding"]
    common = {
        "vocab_size": keys["lm_head.weight"][0][0],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "tie_word_embeddings": tied,
        "num_key_value_heads": keys["model.layers.0.self_attn.k_proj.weight"][0][0] // 8,
    }
    return Qwen2Config(**common) if "Qwen" in layout["class"] else LlamaConfig(**common)


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dict_layout(name, wide_tower, tmp_path):
    layout = LAYOUTS[name]
    arguments = layout["arguments"]
    if arguments.get("mm_resampler_type"):
        pytest.skip("resamplers are not supported")
    AutoModelForCausalLM.from_config(plain_config(layout), dtype=torch.bfloat16).save_pretrained(tmp_path)
    model_class = {"LlavaQwenForCausalLM": LlavaQwenForCausalLM, "LlavaLlamaForCausalLM": LlavaLlamaForCausalLM}
    model = model_class[layout["class"]].from_pretrained(tmp_path, dtype=torch.bfloat16)
    values = {**TRAINING_DEFAULTS, "mm_newline_position": "grid", **arguments, "vision_tower": str(wide_tower)}
    model.get_model().initialize_vision_modules(SimpleNamespace(**values))
    found = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    }
    assert found == layout["keys"]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == layout["lm_head_is_embedding"]
    assert model.config.mm_hidden_size == 1152
    assert model.config.use_mm_proj is True


# ---------------------------------------------------------------------------------------------- round trips


def test_upstream_checkpoint_comes_back_the_same(golden, fullmodel_tower, tmp_path):
    source = golden / "fullmodel/checkpoint"
    config = config_for(str(source))
    config.mm_vision_tower = str(fullmodel_tower)
    model = LlavaQwenForCausalLM.from_pretrained(source, config=config)
    model.save_pretrained(tmp_path)
    assert tensors_of(tmp_path) == tensors_of(source)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path))
    assert set(new) - set(old) == {"mm_vision_tower_config", "mm_image_processor_config"}
    assert set(old) <= set(new)
    changed = {key for key in old if old[key] != new[key]}
    assert changed == {"mm_vision_tower", "transformers_version"}


def test_saved_checkpoint_needs_no_tower_folder(golden, fullmodel_tower, tmp_path):
    config = config_for(str(golden / "fullmodel/checkpoint"))
    config.mm_vision_tower = str(shutil.copytree(fullmodel_tower, tmp_path / "tower"))
    model = LlavaQwenForCausalLM.from_pretrained(golden / "fullmodel/checkpoint", config=config)
    model.save_pretrained(tmp_path / "first")
    shutil.rmtree(tmp_path / "tower")
    (tmp_path / "first").rename(tmp_path / "second")
    again = LlavaQwenForCausalLM.from_pretrained(tmp_path / "second")
    assert again.get_vision_tower().is_loaded
    assert again.get_vision_tower().config.num_attention_heads == 4


def test_tower_of_published_width_needs_no_config(wide_tower, tmp_path):
    """Hub id without hub: the architecture comes from the weights, and the saved config keeps its keys."""
    config = LlavaQwenConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=20,
        mm_vision_tower="google/siglip-so400m-patch14-384",
        mm_vision_tower_config=LAYOUT_TOWER,
        **TRAINING_DEFAULTS,
    )
    LlavaQwenForCausalLM(config).save_pretrained(tmp_path / "first")
    file = tmp_path / "first/config.json"
    values = json.loads(file.read_text())
    del values["mm_vision_tower_config"]
    del values["mm_image_processor_config"]
    file.write_text(json.dumps(values))
    model = LlavaQwenForCausalLM.from_pretrained(tmp_path / "first")
    assert model.get_vision_tower().config.num_attention_heads == 16
    assert model.get_vision_tower().image_size == 384
    model.save_pretrained(tmp_path / "second")
    assert set(json.loads((tmp_path / "second/config.json").read_text())) == set(values)
    assert tensors_of(tmp_path / "second") == tensors_of(tmp_path / "first")


def test_rope_and_dtype_are_spelt_as_version_4_reads_them(tmp_path):
    scaling = {"type": "linear", "rope_type": "linear", "factor": 2.0}
    config = LlavaConfig(rope_theta=5000.0, rope_scaling=dict(scaling), dtype="float16", vocab_size=10, hidden_size=64)
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["rope_theta"] == 5000.0
    assert values["rope_scaling"] == scaling
    assert values["torch_dtype"] == "float16"
    assert not {"rope_parameters", "dtype"} & set(values)
    again = LlavaConfig.from_pretrained(tmp_path)
    assert again.rope_parameters["factor"] == 2.0
    assert again.rope_parameters["rope_theta"] == 5000.0
    assert again.dtype == torch.float16


@pytest.mark.parametrize("name", [name for name in RUNS if "config.json" in RUNS[name]])
def test_config_keys_of_saved_runs_survive(name, tmp_path):
    values = RUNS[name]["config.json"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = config_for(str(tmp_path))
    assert type(config) is (LlavaConfig if "llama" in name else LlavaQwenConfig)
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert {key for key in values if not key.startswith("_")} <= set(again)
    assert again["model_type"] == type(config).model_type
    assert again["rope_theta"] == values["rope_theta"]


def test_generation_settings_in_a_llama_config_do_no_harm(tmp_path):
    extra = {"temperature": 0.5, "max_new_tokens": 9, "do_sample": False, "top_p": None}
    (tmp_path / "config.json").write_text(json.dumps({**RUNS["llama-full"]["config.json"], **extra}))
    config_for(str(tmp_path)).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").is_file()


def test_sliding_window_only_when_asked(golden):
    assert config_for(str(golden / "fullmodel/checkpoint")).sliding_window is None


def test_auto_classes_know_the_models(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is LlavaQwenConfig
    assert type(AutoModelForCausalLM.from_pretrained(checkpoint)) is LlavaQwenForCausalLM


# ---------------------------------------------------------------------------------------------- loading


def drop_weights(folder: Path, part: str) -> None:
    edit_weights(folder, lambda old: {name: tensor for name, tensor in old.items() if part not in name})


def same_weights(one, other) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("kind", ["shards", "torch file", "torch shards"])
def test_other_weight_files(kind, checkpoint, small_model, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    state = small_model.state_dict()
    if kind == "shards":
        small_model.save_pretrained(folder, max_shard_size="40KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    elif kind == "torch file":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = sorted(state)
        halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, part in halves.items():
            torch.save({name: state[name].clone() for name in part}, folder / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert len(weight_files(str(folder))) >= 1
    assert same_weights(LlavaQwenForCausalLM.from_pretrained(folder), small_model)


def test_missing_newline_is_announced_and_always_the_same(checkpoint, caplog):
    drop_weights(checkpoint, "model.image_newline")
    torch.manual_seed(1)
    one = LlavaQwenForCausalLM.from_pretrained(checkpoint).model.image_newline
    torch.manual_seed(2)
    other = LlavaQwenForCausalLM.from_pretrained(checkpoint).model.image_newline
    assert "model.image_newline not in the checkpoint" in caplog.text
    assert torch.equal(one, other)
    assert 0.5 < one.std() * len(one) ** 0.5 < 1.5


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.mm_projector.2.bias", "model.embed_tokens.weight"]
)
def test_other_missing_weights_are_errors(name, checkpoint):
    drop_weights(checkpoint, name)
    with pytest.raises(InputError, match=f"lacks .*{name}"):
        LlavaQwenForCausalLM.from_pretrained(checkpoint)


def test_part_of_a_tower_is_an_error(checkpoint):
    drop_weights(checkpoint, "model.vision_tower.vision_tower.vision_model.post_layernorm.bias")
    with pytest.raises(InputError, match=r"only a part of the vision tower.*post_layernorm\.bias"):
        LlavaQwenForCausalLM.from_pretrained(checkpoint)


def test_older_checkpoints_take_the_tower_from_its_source(checkpoint, siglip_folder, small_model):
    drop_weights(checkpoint, "vision_tower")
    config = config_for(str(checkpoint))
    config.mm_vision_tower = str(siglip_folder)
    model = LlavaQwenForCausalLM.from_pretrained(checkpoint, config=config)
    assert model.get_vision_tower().is_loaded
    source = load_file(siglip_folder / "model.safetensors")
    name = next(name for name in source if name.endswith("layers.0.mlp.fc1.weight"))
    body = model.get_vision_tower().vision_tower.vision_model
    assert torch.equal(body.encoder.layers[0].mlp.fc1.weight, source[name])


def test_delay_load_leaves_the_tower_for_later(checkpoint):
    drop_weights(checkpoint, "vision_tower")
    config = config_for(str(checkpoint))
    config.delay_load = True
    assert not LlavaQwenForCausalLM.from_pretrained(checkpoint, config=config).get_vision_tower().is_loaded
    config.delay_load = False
    with pytest.raises(InputError, match="no weights found"):
        LlavaQwenForCausalLM.from_pretrained(checkpoint, config=config)


def test_tower_config_that_does_not_fit_the_weights(checkpoint):
    config = config_for(str(checkpoint))
    config.mm_vision_tower_config = {**config.mm_vision_tower_config, "hidden_size": 32}
    with pytest.raises(InputError, match="width 32 against 16"):
        LlavaQwenForCausalLM.from_pretrained(checkpoint, config=config)


def test_relative_tower_folder_inside_the_checkpoint(checkpoint, siglip_folder):
    values = json.loads((checkpoint / "config.json").read_text())
    values["mm_vision_tower"] = "vision_tower"
    del values["mm_vision_tower_config"], values["mm_image_processor_config"]
    (checkpoint / "config.json").write_text(json.dumps(values))
    (checkpoint / "vision_tower").mkdir()
    shutil.copy(siglip_folder / "config.json", checkpoint / "vision_tower")
    model = LlavaQwenForCausalLM.from_pretrained(checkpoint)
    assert model.config.mm_vision_tower == "vision_tower"
    assert model.get_vision_tower().image_size == 32


def test_damaged_files_are_named(checkpoint, tmp_path):
    broken = tmp_path / "x.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"x\.safetensors: cannot be read"):
        read_tensors(broken)
    torch.save({"a": {"b": 1}}, tmp_path / "y.bin")
    with pytest.raises(InputError, match="entry 'a' is a dict"):
        read_tensors(tmp_path / "y.bin")
    (checkpoint / "model.safetensors").rename(checkpoint / "part.safetensors")
    index = {"weight_map": {"a": "gone.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lists gone\.safetensors"):
        weight_files(str(checkpoint))


# ---------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("config", "path", "expected"),
    [
        ({"model_type": "llava_qwen"}, "", LlavaQwenForCausalLM),
        ({"model_type": "qwen2"}, "runs/llama/x", LlavaQwenForCausalLM),
        ({"model_type": "llama"}, "qwen", LlavaLlamaForCausalLM),
        ({"model_type": "other", "architectures": ["LlavaLlamaForCausalLM"]}, "", LlavaLlamaForCausalLM),
        ({}, "llama/qwen2-tuned", LlavaQwenForCausalLM),
        ({}, "qwen/vicuna-7b", LlavaLlamaForCausalLM),
    ],
)
def test_class_of_a_config(config, path, expected):
    assert model_class_for(config, path) is expected


@pytest.mark.parametrize("config", [{"model_type": "mixtral"}, {"model_type": "llava_mpt"}, {}])
def test_unsupported_language_models_list_the_supported_ones(config):
    with pytest.raises(InputError, match="supported: Qwen2"):
        model_class_for(config, "some/dolly")


def test_tokenizers_never_shrink_embeddings(small_model, golden):
    tokenizer = AutoTokenizer.from_pretrained(golden / "tokenizer_qwen")
    rows = small_model.get_input_embeddings().weight.detach().clone()
    known = len(tokenizer)
    settings = SimpleNamespace(mm_use_im_patch_token=False, mm_use_im_start_end=True)
    small_model.initialize_vision_tokenizer(settings, tokenizer)
    table = small_model.get_input_embeddings().weight
    assert table.shape == rows.shape
    torch.testing.assert_close(table[known], rows[:known].mean(0))
    torch.testing.assert_close(table[known + 1], rows[:known].mean(0))
    tokenizer.add_tokens([f"<extra{number}>" for number in range(10)])
    small_model.initialize_vision_tokenizer(SimpleNamespace(mm_use_im_patch_token=True), tokenizer)
    assert small_model.get_input_embeddings().weight.shape[0] == len(tokenizer) == known + 13
