"""Folders that cannot be used as a model: one line that says what they are and what to give instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from spoilt import AT_ONCE, EVERYTHING, POINTER, WEIGHTS, edit_config, edit_weights, lora, projector
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from llava.errors import InputError, in_one_line
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint_kind import check_checkpoint, check_model, check_tower
from llava.model.loading import load_plain
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.vocabulary import check_fits, load_tokenizer


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def load(folder: Path, base: Path | None = None, name: str = "llava-small"):
    return load_pretrained_model(str(folder), base and str(base), name, torch_dtype="auto", attn_implementation="sdpa")


def test_a_good_folder_passes(checkpoint):
    check_model(str(checkpoint), "--model_name_or_path")
    check_checkpoint(str(checkpoint), None)


@pytest.mark.parametrize("case", EVERYTHING)
def test_loading_says_it_in_one_line(case, checkpoint, recwarn):
    spoil, message = EVERYTHING[case]
    spoil(checkpoint)
    before = files_of(checkpoint)
    with pytest.raises(InputError, match=f"(?s){message}") as caught:
        load(checkpoint)
    assert len(in_one_line(caught.value).splitlines()) == 1
    assert checkpoint.name in str(caught.value) or "mm_vision_tower_config" in str(caught.value)
    assert files_of(checkpoint) == before


@pytest.mark.parametrize("case", AT_ONCE)
def test_most_shows_before_anything_is_loaded(case, checkpoint, monkeypatch):
    spoil, message = AT_ONCE[case]
    spoil(checkpoint)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    with pytest.raises(InputError, match=message) as caught:
        check_model(str(checkpoint), "--model_name_or_path", "MODEL")
    assert "--model_name_or_path" in str(caught.value)


def test_what_is_no_folder(checkpoint):
    with pytest.raises(InputError, match="a file, not a folder; set MODEL or --flag to the folder"):
        check_model(str(checkpoint / WEIGHTS), "--flag", "MODEL")
    with pytest.raises(InputError, match="no such folder"):
        check_model(str(checkpoint / "nothing" / "there"), "--flag")


@pytest.mark.parametrize(
    ("spoil", "message"), [(lora, "Set --model-base to the model it was"), (projector, "--pretrain")]
)
def test_a_part_is_no_base(spoil, message, checkpoint, tmp_path):
    run = shutil.copytree(checkpoint, tmp_path / "run")
    lora(run)
    spoil(checkpoint)
    with pytest.raises(InputError, match=f"--model-base .*{message}"):
        check_checkpoint(str(run), str(checkpoint))
    with pytest.raises(InputError, match="as --model-base"):
        check_checkpoint(str(run), None)


def test_a_tokenizer_of_another_model(checkpoint):
    tokenizer = load_tokenizer(str(checkpoint))
    check_fits(tokenizer, len(tokenizer), "x")
    with pytest.raises(InputError, match=f"{len(tokenizer)} tokens, but the embeddings {len(tokenizer) - 1} rows"):
        check_fits(tokenizer, len(tokenizer) - 1, "x")
    edit_weights(checkpoint, lambda old: {k: t[:800].clone() if t.shape[0] == 908 else t for k, t in old.items()})
    edit_config(checkpoint, vocab_size=800)
    with pytest.raises(InputError, match="are of two models"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}, r"lacks 1 weights .*model\.norm\.weight"),
        (lambda t: {**t, "model.extra": torch.ones(1)}, r"left out: model\.extra"),
        (lambda t: {k: v[:-1].clone() if "norm" in k else v for k, v in t.items()}, "another shape"),
    ],
)
def test_a_plain_language_model_is_whole_too(change, message, tmp_path):
    folder = tmp_path / "qwen"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=50)).save_pretrained(folder)
    load_plain(AutoModelForCausalLM, str(folder))
    edit_weights(folder, change)
    with pytest.raises(InputError, match=message):
        load_plain(AutoModelForCausalLM, str(folder))


def test_a_tower_that_the_config_forgot_is_not_dropped(checkpoint):
    edit_config(checkpoint, mm_vision_tower=None)
    with pytest.raises(InputError, match="have no place"):
        load(checkpoint, name="plain")


# ---------------------------------------------------------------------------------------------- vision tower

TOWERS = {
    "a language model": ("config.json", '{"model_type": "qwen2"}', "model_type 'qwen2'"),
    "not JSON": ("config.json", "{", "not valid JSON"),
    "no object": ("config.json", "[]", "holds a JSON list"),
    "pointer": ("config.json", POINTER, "git-lfs pointer"),
    "weights pointer": (WEIGHTS, POINTER, "git-lfs pointer"),
    "weights damaged": (WEIGHTS, "x" * 100, "cannot be read as a file of tensors"),
    "wrong values": ("config.json", '{"model_type": "siglip_vision_model", "hidden_size": "a"}', "cannot be used"),
}


@pytest.mark.parametrize("case", TOWERS)
def test_tower_folders(case, siglip_folder):
    file, content, message = TOWERS[case]
    check_tower(str(siglip_folder), "--vision_tower")
    (siglip_folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        check_tower(str(siglip_folder), "--vision_tower")
    assert str(caught.value).startswith("--vision_tower")
    with pytest.raises(InputError):
        build_vision_tower(type("Settings", (), {"mm_vision_tower": str(siglip_folder)})())


def test_a_tower_that_cannot_be_built(siglip_folder):
    edit_config(siglip_folder, num_attention_heads=5)
    with pytest.raises(InputError, match=r"siglip.*cannot be used"):
        build_vision_tower(type("Settings", (), {"mm_vision_tower": str(siglip_folder)})())


# ---------------------------------------------------------------------------------------------- LoRA runs


@pytest.fixture
def lora_run(checkpoint, tmp_path) -> Path:
    """A LoRA run on `checkpoint`."""
    from peft import LoraConfig, get_peft_model

    run = tmp_path / "llava-lora"
    shutil.copytree(checkpoint, run)
    (run / WEIGHTS).unlink()
    model = load(checkpoint)[1]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r".*layers.*q_proj", exclude_modules=r".*vision.*"))
    wrapped.save_pretrained(run)
    newline = {"base_model.model.model.image_newline": model.model.image_newline.detach()}
    save_file(newline, run / "non_lora_trainables.safetensors")
    return run


ADAPTERS = {
    "one is missing": (lambda t: dict(list(t.items())[1:]), "lacks .*lora_A"),
    "one too many": (
        lambda t: {**t, "base_model.model.other.lora_A.weight": torch.ones(2, 2)},
        "no place in this base",
    ),
    "another rank": (lambda t: {k: v[:1].clone() if "lora_A" in k else v for k, v in t.items()}, "cannot be used"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_that_do_not_fit(case, lora_run, checkpoint):
    load(lora_run, checkpoint)
    change, message = ADAPTERS[case]
    file = lora_run / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"(?s){message}"):
        load(lora_run, checkpoint)


def test_damaged_adapters(lora_run, checkpoint):
    values = json.loads((lora_run / "adapter_config.json").read_text())
    (lora_run / "adapter_config.json").write_text(json.dumps(values | {"peft_type": "NOTHING"}))
    with pytest.raises(InputError, match="its adapter, with this base, cannot be used"):
        load(lora_run, checkpoint)
    (lora_run / "adapter_model.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: cannot be read"):
        load(lora_run, checkpoint)
