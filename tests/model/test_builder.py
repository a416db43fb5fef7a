"""load_pretrained_model: every kind of checkpoint, its settings, and the messages for wrong ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from small_llava import SMALL_QWEN, SMALL_VISION
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from llava.errors import InputError
from llava.model import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.load_settings import quantisation, resolve_attention, resolve_device_map, resolve_dtype

SIZES = [(60, 25)]


@pytest.fixture
def base(tmp_path, golden) -> Path:
    """A plain Qwen2 checkpoint."""
    torch.manual_seed(5)
    folder = tmp_path / "qwen2-base"
    Qwen2ForCausalLM(Qwen2Config(**SMALL_QWEN)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(golden / "tokenizer_qwen").save_pretrained(folder)
    return folder


@pytest.fixture
def trained(base, siglip_folder) -> LlavaQwenForCausalLM:
    """The base with vision modules, as a run would have trained it; only projector and newline differ."""
    model = LlavaQwenForCausalLM.from_pretrained(base)
    settings = SMALL_VISION | {"vision_tower": str(siglip_folder)}
    model.model.initialize_vision_modules(SimpleNamespace(**settings))
    for name in ("image_aspect_ratio", "image_grid_pinpoints", "mm_use_im_patch_token"):
        setattr(model.config, name, SMALL_VISION[name])
    return model.eval()


def logits(model) -> torch.Tensor:
    torch.manual_seed(8)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        return model(torch.tensor([[1, 2, -200, 3, 4]]), images=[pixels], image_sizes=SIZES).logits


def load(path, model_base=None, name="llava-small", **kwargs):
    kwargs = {"torch_dtype": "float32", "attn_implementation": "sdpa"} | kwargs
    return load_pretrained_model(str(path), model_base and str(model_base), name, **kwargs)


def test_full_checkpoint(checkpoint, small_model):
    tokenizer, model, processor, context = load(checkpoint)
    torch.testing.assert_close(logits(model), logits(small_model))
    assert processor.size == (32, 32)
    assert context == SMALL_QWEN["max_position_embeddings"]
    assert len(tokenizer) == 903


def test_a_config_with_a_tower_is_enough(checkpoint):
    assert load(checkpoint, name="some-run")[2] is not None


def test_image_marks_are_added_where_the_config_wants_them(checkpoint):
    tokenizer, model, _, _ = load(
        checkpoint, overwrite_config={"mm_use_im_patch_token": True, "mm_use_im_start_end": True}
    )
    assert len(tokenizer) == 906
    assert tokenizer.convert_tokens_to_ids("<im_start>") == 904
    assert model.get_input_embeddings().weight.shape[0] == 908


def test_plain_language_model(base):
    _, model, processor, context = load(base, name="qwen2-base")
    assert type(model) is Qwen2ForCausalLM
    assert processor is None
    assert context == SMALL_QWEN["max_position_embeddings"]


@pytest.mark.parametrize("model_type", ["llava_qwen", "qwen2"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_adapter_only_checkpoint(safe, model_type, trained, base, tmp_path):
    run = tmp_path / "run"
    trained.config.save_pretrained(run)
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(values | {"model_type": model_type}))
    adapter = {name: value.clone() for name, value in trained.state_dict().items() if "mm_projector" in name}
    adapter["model.image_newline"] = trained.model.image_newline.detach() + 1
    trained.model.image_newline.data += 1
    if safe:
        save_file(adapter, run / "mm_projector.safetensors")
    else:
        torch.save(adapter, run / "mm_projector.bin")
    _, model, _, _ = load(run, base)
    assert type(model) is LlavaQwenForCausalLM
    torch.testing.assert_close(logits(model), logits(trained))


def test_adapter_without_newline_says_so(trained, base, tmp_path, caplog):
    trained.config.save_pretrained(tmp_path / "run")
    adapter = {name: value.clone() for name, value in trained.state_dict().items() if "mm_projector" in name}
    torch.save(adapter, tmp_path / "run/mm_projector.bin")
    load(tmp_path / "run", base)
    assert "no image_newline" in caplog.text


def save_lora(trained, run: Path, extra: str) -> torch.Tensor:
    """Save a LoRA run with random adapters; returns the logits that the merged model must give."""
    trained.config.save_pretrained(run)
    parts = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"]
    targets = [f"model.layers.{layer}.{part}" for layer in range(2) for part in parts]
    wrapped = get_peft_model(trained, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(6)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    wrapped.save_pretrained(run)
    rest = {
        name: parameter.detach().clone()
        for name, parameter in wrapped.named_parameters()
        if "lora_" not in name and ("mm_projector" in name or "image_newline" in name or "lm_head" in name)
    }
    if extra == "bin":
        torch.save(rest, run / "non_lora_trainables.bin")
    else:
        save_file(rest, run / "non_lora_trainables.safetensors")
    return logits(wrapped.eval().base_model.model)


@pytest.mark.parametrize("extra", ["bin", "safetensors"])
def test_lora_checkpoint_is_merged(extra, trained, base, tmp_path):
    before = logits(trained)
    expected = save_lora(trained, tmp_path / "llava-lora", extra)
    assert (expected - before).abs().max() > 1e-3
    _, model, processor, _ = load(tmp_path / "llava-lora", base, name="llava-lora")
    assert type(model) is LlavaQwenForCausalLM
    assert processor is not None
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


def test_lora_without_the_other_weights(trained, base, tmp_path):
    save_lora(trained, tmp_path / "llava-lora", "bin")
    (tmp_path / "llava-lora/non_lora_trainables.bin").unlink()
    with pytest.raises(InputError, match="non_lora_trainables"):
        load(tmp_path / "llava-lora", base)


def test_adapters_need_their_base(trained, base, tmp_path):
    save_lora(trained, tmp_path / "llava-lora", "bin")
    with pytest.raises(InputError, match="model_base"):
        load(tmp_path / "llava-lora")


def test_folder_without_adapter(trained, base, tmp_path):
    trained.config.save_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match=r"mm_projector\.safetensors or mm_projector\.bin"):
        load(tmp_path / "run", base)


def test_a_plain_model_is_no_model_with_images(base):
    with pytest.raises(InputError, match="names no mm_vision_tower"):
        load(base, multimodal=True)


def test_moved_checkpoint_loads_from_anywhere(checkpoint, tmp_path, small_model):
    shutil.move(checkpoint, tmp_path / "elsewhere")
    torch.testing.assert_close(logits(load(tmp_path / "elsewhere")[1]), logits(small_model))


def test_customized_config_replaces_the_checkpoints(checkpoint):
    config = LlavaQwenConfig.from_pretrained(checkpoint)
    config.mm_newline_position = "frame"
    assert load(checkpoint, customized_config=config)[1].config.mm_newline_position == "frame"


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_whole_model_has_the_dtype_asked_for(name, dtype, checkpoint):
    model = load(checkpoint, torch_dtype=name)[1]
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.get_vision_tower().dtype == dtype


def test_settings():
    assert resolve_dtype(torch.float16) is torch.float16
    assert resolve_dtype("auto") == "auto"
    with pytest.raises(InputError, match=r"torch_dtype 'int8'.*allowed: float32"):
        resolve_dtype("int8")
    with pytest.raises(InputError, match="exclude each other"):
        quantisation(True, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu(caplog):
    assert resolve_device_map("auto") == {"": "cpu"}
    assert resolve_device_map("cuda") == {"": "cpu"}
    assert "no GPU" in caplog.text
    assert resolve_attention("flash_attention_2") == "sdpa"
    assert "sdpa is used in its place" in caplog.text
    assert resolve_attention("eager") == "eager"
