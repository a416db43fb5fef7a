"""What a run of LLaVA-NeXT needs, small: a LLaVA-Qwen checkpoint, the tower in a hub cache, a few pictures and records.

LLaVA-NeXT fixes two sizes: the tower is 1152 wide and sees 384 pixels. It finds the tower by its hub id alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import save_file

TOKENIZER = Path(__file__).parents[1] / "assets" / "golden" / "tokenizer_qwen"
VOCABULARY = 903  # with the three marks of the tokenizer
TOWER = "google/siglip-so400m-patch14-384"
TOWER_WIDTH, TOWER_LAYERS, PATCHES = 1152, 2, 729  # LLaVA-NeXT drops the last layer
TOWER_CONFIG: dict[str, Any] = {
    "hidden_size": TOWER_WIDTH,
    "image_size": 384,
    "intermediate_size": 64,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": TOWER_LAYERS,
    "patch_size": 14,
}
HIDDEN, MLP, LAYERS, HEADS, KEY_VALUE_HEADS = 32, 64, 2, 4, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
    "bos_token_id": 900,
    "eos_token_id": 902,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "max_position_embeddings": 4096,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": TOWER_WIDTH,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": TOWER,
    "tokenizer_padding_side": "right",
    "use_mm_proj": True,
}
COLOURS = ["red", "green", "blue", "yellow", "black", "white", "orange", "purple"]


class Small(NamedTuple):
    checkpoint: Path
    hub_cache: Path
    """For HF_HUB_CACHE."""
    data: Path
    images: Path


def make(folder: Path) -> Small:
    """All of it under `folder`."""
    random = torch.Generator().manual_seed(11)
    small = Small(folder / "llava-qwen", folder / "hub", folder / "data.json", folder / "images")
    tower = _tower(random)
    _write_checkpoint(small.checkpoint, tower, random)
    _write_hub_cache(small.hub_cache, tower)
    small.images.mkdir()
    records = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40 + 8 * number, 64 - 4 * number), colour).save(small.images / f"{colour}.png")
        question = f"<image>\nIs the picture {COLOURS[number // 2]}? Yes or No?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes" if number < 2 else "No"}]
        records.append({"id": colour, "image": f"{colour}.png", "conversations": turns})
    small.data.write_text(json.dumps(records))
    return small


def _normal(random: torch.Generator, *shape: int, size: float = 0.05) -> torch.Tensor:
    return (torch.randn(*shape, generator=random) * size).to(torch.bfloat16)


def _linear(name: str, rows: int, columns: int, random: torch.Generator, bias: bool = True) -> dict[str, torch.Tensor]:
    weights = {f"{name}.weight": _normal(random, rows, columns)}
    return weights | ({f"{name}.bias": _normal(random, rows)} if bias else {})


def _layer_norm(name: str) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": torch.ones(TOWER_WIDTH, dtype=torch.bfloat16),
        f"{name}.bias": torch.zeros(TOWER_WIDTH, dtype=torch.bfloat16),
    }


def _tower(random: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights of the tower without its last layer and its head."""
    weights = {
        "embeddings.patch_embedding.weight": _normal(random, TOWER_WIDTH, 3, 14, 14),
        "embeddings.patch_embedding.bias": _normal(random, TOWER_WIDTH),
        "embeddings.position_embedding.weight": _normal(random, PATCHES, TOWER_WIDTH, size=1.0),
        **_layer_norm("post_layernorm"),
    }
    for layer in range(TOWER_LAYERS - 1):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= _linear(f"{name}.self_attn.{part}", TOWER_WIDTH, TOWER_WIDTH, random)
        weights |= _linear(f"{name}.mlp.fc1", TOWER_CONFIG["intermediate_size"], TOWER_WIDTH, random)
        weights |= _linear(f"{name}.mlp.fc2", TOWER_WIDTH, TOWER_CONFIG["intermediate_size"], random)
        weights |= _layer_norm(f"{name}.layer_norm1") | _layer_norm(f"{name}.layer_norm2")
    return {f"vision_model.{name}": weight for name, weight in weights.items()}


def _write_hub_cache(cache: Path, tower: dict[str, torch.Tensor]) -> None:
    """The tower's repository as the hub client keeps it; what LLaVA-NeXT drops, transformers makes up at loading."""
    repository, commit = cache / f"models--{TOWER.replace('/', '--')}", "0" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text(json.dumps(TOWER_CONFIG))
    processor = {"size": {"height": 384, "width": 384}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (snapshot / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file(tower, snapshot / "model.safetensors", metadata={"format": "pt"})


def _write_checkpoint(folder: Path, tower: dict[str, torch.Tensor], random: torch.Generator) -> None:
    shutil.copytree(TOKENIZER, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 900, "eos_token_id": 902}))
    keys = HIDDEN // HEADS * KEY_VALUE_HEADS
    weights = {
        "model.embed_tokens.weight": _normal(random, VOCABULARY, HIDDEN),
        "model.image_newline": _normal(random, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
        **_linear("model.mm_projector.0", HIDDEN, TOWER_WIDTH, random),
        **_linear("model.mm_projector.2", HIDDEN, HIDDEN, random),
        **{f"model.vision_tower.vision_tower.{name}": weight for name, weight in tower.items()},
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        weights |= _linear(f"{name}.self_attn.q_proj", HIDDEN, HIDDEN, random)
        weights |= _linear(f"{name}.self_attn.k_proj", keys, HIDDEN, random)
        weights |= _linear(f"{name}.self_attn.v_proj", keys, HIDDEN, random)
        weights |= _linear(f"{name}.self_attn.o_proj", HIDDEN, HIDDEN, random, bias=False)
        weights |= _linear(f"{name}.mlp.gate_proj", MLP, HIDDEN, random, bias=False)
        weights |= _linear(f"{name}.mlp.up_proj", MLP, HIDDEN, random, bias=False)
        weights |= _linear(f"{name}.mlp.down_proj", HIDDEN, MLP, random, bias=False)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
