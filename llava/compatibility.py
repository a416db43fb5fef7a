"""Names that other people's code imports from LLaVA-NeXT's modules, where they have another home in this tree.

A module at such a path says `__getattr__ = names_of(__name__)` and imports nothing for it; a name is looked up when it
is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def _homes(listed: Mapping[str, str]) -> Mapping[str, str]:
    """Name -> module, from module -> names."""
    return {name: module for module, names in listed.items() for name in names.split()}


HOMES: Mapping[str, Mapping[str, str]] = {
    "llava": _homes({"llava.model": "LlavaLlamaForCausalLM"}),
    "llava.utils": _homes({"llava.samples.video": "process_video_with_decord process_video_with_pyav"}),
    "llava.train.train": _homes(
        {
            "llava.train.flags.arguments": "ModelArguments DataArguments TrainingArguments",
            "llava.samples.dataset": "LazySupervisedDataset make_supervised_data_module",
            "llava.samples.collator": "DataCollatorForSupervisedDataset",
            "llava.samples.preprocess": "preprocess preprocess_multimodal preprocess_plain preprocess_v1 "
            "preprocess_llama_2 preprocess_llama3 preprocess_mpt preprocess_qwen preprocess_gemma",
            "llava.train.parts.build": "get_model smart_tokenizer_and_embedding_resize",
            "llava.train.parts.adapters": "find_all_linear_names",
            "llava.train.parts.state_dicts": "maybe_zero_3 get_peft_state_maybe_zero_3 "
            "get_peft_state_non_lora_maybe_zero_3 get_mm_adapter_state_maybe_zero_3 safe_save_model_for_hf_trainer",
        }
    ),
    "llava.train.llava_trainer": _homes(
        {
            "llava.samples.samplers": "LengthGroupedSampler split_to_even_chunks get_length_grouped_indices "
            "get_length_grouped_indices_auto_single get_modality_length_grouped_indices "
            "get_modality_length_grouped_indices_auto get_variable_length_grouped_indices"
        }
    ),
}


def names_of(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module."""
    homes = HOMES[module]

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return find
