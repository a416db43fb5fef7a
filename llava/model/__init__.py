"""LLaVA models: a vision tower, a projector and a language model; see `llava.model.builder` for loading them."""

from __future__ import annotations

from llava.model.families import config_for, model_class_for, overwrite_entries
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM

__all__ = [
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaQwenConfig",
    "LlavaQwenForCausalLM",
    "config_for",
    "model_class_for",
    "overwrite_entries",
]
