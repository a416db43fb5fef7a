"""Models of four sizes with random weights, and a batch for them: what the benchmarks measure on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.train.parts.tunable import parse_parts, parts_of

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
}
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
_TOWER["7b"] = _TOWER["0.5b"]
SHAPES = tuple(_LANGUAGE)


def build(shape: str, dtype: torch.dtype, device: torch.device, tuned: str) -> LlavaQwenForCausalLM:
    """A LLaVA-Qwen of this shape in evaluation mode; the parts in the comma list `tuned` require gradients."""
    tower = {"model_type": "siglip_vision_model", **_TOWER[shape]}
    config = LlavaQwenConfig(
        **_LANGUAGE[shape],
        tie_word_embeddings=shape != "7b",
        max_position_embeddings=32_768,
        attn_implementation="sdpa",
        mm_vision_tower="random-siglip",
        mm_vision_tower_config=tower,
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="spatial_unpad",
        image_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[k * tower["image_size"], tower["image_size"]] for k in range(1, 9)],
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaQwenForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    wanted = parse_parts(tuned)
    for part, _, parameter in parts_of(model):
        parameter.requires_grad_(part in wanted)
    model.get_vision_tower().is_loaded = True  # random weights are meant here
    return model.eval()


def batch(model: Any, tokens: int, tiles: int, supervised: int, rows: int = 1) -> dict[str, Any]:
    """On the host: rows of `tokens` positions after splicing, an image of `tiles` tiles and text with a supervised end.

    ValueError: the image alone takes more.
    """
    size, side = model.get_vision_tower().image_size, model.get_vision_tower().num_patches_per_side
    image_tokens = side * side * tiles + (side if tiles > 1 else 1)
    text = tokens - image_tokens
    if text <= supervised:
        raise ValueError(f"--tokens {tokens}: the image takes {image_tokens} and the answer {supervised}")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (rows, text + 1), generator=generator)
    ids[:, 1] = IMAGE_TOKEN_INDEX
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -supervised:] = ids[:, -supervised:]
    images = torch.randn(rows, tiles, 3, size, size, generator=generator)
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "images": [image.to(model.dtype) for image in images],
        "image_sizes": [(size * (tiles - 1), size) if tiles > 1 else (size, size)] * rows,
        "modalities": ["image"] * rows,
    }


def count(module: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
