"""Models of known sizes with random weights, and a batch for them: what the benchmarks measure on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaQwenForCausalLM
from llava.model.shapes import SHAPES, shape_config
from llava.train.parts.tunable import select_trainable

__all__ = ["SHAPES", "batch", "build", "moved"]


def build(
    shape: str, dtype: torch.dtype, device: torch.device, tuned: str, layers: str | None = None
) -> LlavaQwenForCausalLM:
    """A LLaVA-Qwen of this shape in evaluation mode; what requires gradients is as two flags of train.py say.

    Args:
        tuned: as `--mm_tunable_parts`.
        layers: as `--tunable_layers`.
    """
    config = shape_config(shape)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaQwenForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    flags = SimpleNamespace(mm_tunable_parts=tuned, tunable_layers=layers, freeze_vectors=False)
    select_trainable(model, flags, None, frozenset())
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


def moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors, and those of its images, on the device."""
    tensors = {name: value.to(device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return {**inputs, **tensors, "images": [image.to(device) for image in inputs["images"]]}
