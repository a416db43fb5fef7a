"""Shapes of known sizes: configs without any checkpoint, for counting and for models with random weights."""

from __future__ import annotations

from typing import Any

from llava.model.language_model.llava_qwen import LlavaQwenConfig

_LANGUAGE: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 643,
    },
    "mid": {
        "hidden_size": 384,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 50_000,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
    },
    "13b": {  # LLaMA's, as in LLaVA-1.5
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "vocab_size": 32_000,
    },
    "72b": {
        "hidden_size": 8192,
        "intermediate_size": 29_568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152_064,
    },
}
_TIED = ("tiny", "mid", "0.5b")
_TOWER: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 7,
    },
    "mid": {
        "hidden_size": 576,
        "intermediate_size": 2152,
        "num_hidden_layers": 14,
        "num_attention_heads": 8,
        "image_size": 384,
        "patch_size": 14,
    },
    "0.5b": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,  # of which LLaVA keeps 26
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
_TOWER |= dict.fromkeys(("7b", "13b", "72b"), _TOWER["0.5b"])
SHAPES = tuple(_LANGUAGE)


def shape_config(shape: str) -> LlavaQwenConfig:
    """The config of a LLaVA-OneVision of this shape; "0.5b", "7b" and "72b" are those that were published."""
    tower = {"model_type": "siglip_vision_model", **_TOWER[shape]}
    settings: dict[str, Any] = dict(
        **_LANGUAGE[shape],
        tie_word_embeddings=shape in _TIED,
        max_position_embeddings=32_768,
        attn_implementation="sdpa",
        mm_vision_tower="random-siglip",
        mm_vision_tower_config=tower,
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="spatial_unpad",
        image_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[k * tower["image_size"], tower["image_size"]] for k in range(1, 9)],
    )
    return LlavaQwenConfig(**settings)
