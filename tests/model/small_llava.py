"""Settings of a small LLaVA-Qwen: 32 pixel tiles of 4 x 4 patches."""

from __future__ import annotations

from typing import Any

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
