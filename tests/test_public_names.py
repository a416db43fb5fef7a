"""The names that other people's code imports from LLaVA-NeXT's modules exist here."""

from __future__ import annotations

import importlib

import pytest
from torch import nn

from llava.train.train import find_all_linear_names

NAMES = {
    "llava": "LlavaLlamaForCausalLM",
    "llava.constants": "IGNORE_INDEX IMAGE_TOKEN_INDEX DEFAULT_IMAGE_TOKEN DEFAULT_IMAGE_PATCH_TOKEN "
    "DEFAULT_IM_START_TOKEN DEFAULT_IM_END_TOKEN LOGDIR",
    "llava.conversation": "SeparatorStyle Conversation conv_templates default_conversation",
    "llava.mm_utils": "resize_and_center_crop auto_pad_images extract_patches process_highres_image_crop_split "
    "process_highres_image select_best_resolution resize_and_pad_image divide_to_patches get_anyres_image_grid_shape "
    "process_anyres_image load_image_from_base64 expand2square process_images tokenizer_image_token "
    "get_model_name_from_path KeywordsStoppingCriteria",
    "llava.utils": "process_video_with_decord process_video_with_pyav rank0_print rank_print build_logger "
    "StreamToLogger disable_torch_init pretty_print_semaphore",
    "llava.model": "LlavaLlamaForCausalLM LlavaConfig LlavaQwenForCausalLM LlavaQwenConfig",
    "llava.model.language_model.llava_qwen": "LlavaQwenForCausalLM LlavaQwenConfig",
    "llava.model.language_model.llava_llama": "LlavaLlamaForCausalLM LlavaConfig",
    "llava.model.llava_arch": "LlavaMetaModel LlavaMetaForCausalLM unpad_image",
    "llava.model.builder": "load_pretrained_model",
    "llava.model.multimodal_encoder.siglip_encoder": "SigLipVisionTower SigLipImageProcessor SigLipVisionConfig",
    "llava.model.multimodal_encoder.clip_encoder": "CLIPVisionTower",
    "llava.model.multimodal_encoder.builder": "build_vision_tower",
    "llava.model.multimodal_projector.builder": "build_vision_projector",
    "llava.model.multimodal_resampler.builder": "build_vision_resampler",
    "llava.train.train": "ModelArguments DataArguments TrainingArguments LazySupervisedDataset "
    "DataCollatorForSupervisedDataset make_supervised_data_module preprocess preprocess_multimodal preprocess_plain "
    "preprocess_v1 preprocess_llama_2 preprocess_mpt preprocess_qwen preprocess_gemma preprocess_llama3 get_model "
    "find_all_linear_names get_peft_state_maybe_zero_3 get_peft_state_non_lora_maybe_zero_3 "
    "get_mm_adapter_state_maybe_zero_3 maybe_zero_3 safe_save_model_for_hf_trainer "
    "smart_tokenizer_and_embedding_resize train",
    "llava.train.llava_trainer": "LLaVATrainer LengthGroupedSampler split_to_even_chunks get_length_grouped_indices "
    "get_length_grouped_indices_auto_single get_modality_length_grouped_indices "
    "get_modality_length_grouped_indices_auto get_variable_length_grouped_indices should_only_save_mm_adapter",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_exist(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


def test_linear_names_of_any_module() -> None:
    layers = {"q_proj": nn.Linear(2, 2), "mm_projector": nn.Linear(2, 2), "lm_head": nn.Linear(2, 2)}
    model = nn.ModuleDict({**layers, "vision_tower": nn.ModuleDict({"k_proj": nn.Linear(2, 2)})})
    assert find_all_linear_names(model) == ["q_proj"]
