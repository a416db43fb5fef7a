"""The loss without logits equals the model's own, for LLaVA models, plain language models and PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.mezo import MeZO, MeZOConfig
from llava.model import LlavaConfig, LlavaLlamaForCausalLM, LlavaQwenConfig, LlavaQwenForCausalLM
from llava.train.zo.forwards import Forwards
from llava.train.zo.settings import Settings
from llava.train.zo.sparse_loss import padded_on_the_right, sparse_loss

LANGUAGE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
VISION: dict[str, Any] = {
    "mm_vision_tower": "small-siglip",
    "mm_vision_tower_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": [[32, 32], [64, 32], [32, 64], [64, 64]],
}


def batch(padding: str, images: bool) -> dict[str, Any]:
    """Three rows of 7, 10 and 4 tokens, padded; the labels of the second half of each are supervised."""
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (3, 10))
    mask = torch.ones(3, 10, dtype=torch.bool)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, length in enumerate((7, 10, 4)):
        span = slice(0, length) if padding == "right" else slice(10 - length, 10)
        mask[row] = False
        mask[row, span] = True
        end = span.stop
        labels[row, end - length // 2 : end] = ids[row, end - length // 2 : end]
        if images:
            ids[row, span.start + 1] = IMAGE_TOKEN_INDEX
    inputs: dict[str, Any] = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    if images:
        inputs["images"] = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, 32, 32), torch.randn(1, 3, 32, 32)]
        inputs["image_sizes"] = [(32, 32), (64, 32), (32, 32)]
        inputs["modalities"] = ["image"] * 3
    return inputs


def build(kind: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    classes: dict[str, tuple[type, type]] = {
        "llava_qwen": (LlavaQwenForCausalLM, LlavaQwenConfig),
        "llava_llama": (LlavaLlamaForCausalLM, LlavaConfig),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        "llama": (LlamaForCausalLM, LlamaConfig),
    }
    model_class, config_class = classes[kind]
    vision = VISION if kind.startswith("llava") else {}
    return model_class(config_class(**LANGUAGE, **vision, initializer_range=0.3, **more)).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("kind", ["llava_qwen", "llava_llama", "qwen2", "llama"])
@torch.no_grad()
def test_equals_the_models_own_loss(kind: str, padding: str, tied: bool) -> None:
    model = build(kind, tie_word_embeddings=tied, tokenizer_padding_side=padding)
    inputs = batch(padding, images=kind.startswith("llava"))
    loss = sparse_loss(model, inputs)
    assert loss is not None
    assert float(loss) == pytest.approx(float(model(**inputs).loss), abs=1e-5)


@torch.no_grad()
def test_lora_counts() -> None:
    model = build("llava_qwen")
    inputs = batch("right", images=True)
    before = sparse_loss(model, inputs)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    loss = sparse_loss(wrapped.eval(), inputs)
    assert loss is not None and before is not None
    assert float(loss) == pytest.approx(float(wrapped(**inputs).loss), abs=1e-5)
    assert float(loss) != pytest.approx(float(before), abs=1e-3)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_tokens_in_front_count(kind: type) -> None:
    """What PEFT's wrapper itself puts in front of the text is perturbed with the rest."""
    model = build("qwen2")
    wrapped = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inputs = batch("right", images=False)
    assert sparse_loss(wrapped, inputs) is None
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    mezo = MeZO(trained, wrapped, MeZOConfig(eps=1e-1, kernel="torch"), lr=1e-3)
    settings = Settings(MeZOConfig())

    def whole_loss(network: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return network(**batch).loss

    Forwards(mezo, wrapped, settings, dict, whole_loss).accumulate(0, inputs, 3)
    mezo.step()
    assert mezo.last is not None and abs(mezo.last.projected_grad) > 1e-4


@torch.no_grad()
def test_other_models_have_to_compute_their_own() -> None:
    inputs = batch("right", images=False)
    assert sparse_loss(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=300)), inputs) is None
    assert sparse_loss(nn.Linear(2, 2), inputs) is None
    del inputs["labels"]
    assert sparse_loss(build("qwen2"), inputs) is None


@pytest.mark.parametrize(
    ("mask", "right"),
    [([[1, 1, 0], [1, 0, 0]], True), ([[1, 1, 1]], True), ([[0, 1, 1], [1, 1, 1]], False), ([[1, 0, 1]], False)],
)
def test_padding_on_the_right_is_recognised(mask: list[list[int]], right: bool) -> None:
    assert padded_on_the_right(torch.tensor(mask)) is right
    assert padded_on_the_right(torch.tensor(mask).bool()) is right
