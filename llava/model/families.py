"""Which of our model classes a config or checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from llava.errors import InputError
from llava.mm_utils import get_model_name_from_path
from llava.model.checkpoint_files import find_file, usable
from llava.model.configuration import TOWER_KEYS
from llava.model.hf.from_hf import MODEL_TYPE as HF_MODEL_TYPE
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM

FAMILIES: tuple[type[Any], ...] = (LlavaQwenForCausalLM, LlavaLlamaForCausalLM)
SUPPORTED_MODELS = "Qwen2 (model_type qwen2 or llava_qwen) and Llama (model_type llama or llava_llama)"

_CLASS_OF_MODEL_TYPE = {
    model_type: family
    for family in FAMILIES
    for model_type in (family.config_class.model_type, family.config_class.base_model_type)
}
_CLASS_OF_MODEL_TYPE[HF_MODEL_TYPE] = LlavaQwenForCausalLM
_CLASS_OF_ARCHITECTURE = {family.__name__: family for family in FAMILIES}
# Words in the last part of a path, for a config that says nothing.
_CLASS_OF_WORD = {
    "qwen": LlavaQwenForCausalLM,
    "quyen": LlavaQwenForCausalLM,
    "llama": LlavaLlamaForCausalLM,
    "vicuna": LlavaLlamaForCausalLM,
}


def model_class_for(config: Any, name_or_path: str | None = None) -> type[Any]:
    """The LLaVA class for a config: by `model_type`, else by `architectures`, else by the last part of the path.

    Args:
        config: a config object, or the contents of a config.json.
        name_or_path: of the checkpoint; `config.name_or_path` if not given.

    Raises:
        InputError: for a language model that is not supported.
    """
    values = config if isinstance(config, dict) else vars(config)
    model_type = values.get("model_type") or getattr(config, "model_type", None)
    if model_type in _CLASS_OF_MODEL_TYPE:
        return _CLASS_OF_MODEL_TYPE[model_type]
    architectures = values.get("architectures") or []
    for architecture in architectures:
        if architecture in _CLASS_OF_ARCHITECTURE:
            return _CLASS_OF_ARCHITECTURE[architecture]
    path = name_or_path or values.get("_name_or_path") or ""
    if not model_type and not architectures and path:
        name = get_model_name_from_path(path).lower()
        for word, family in _CLASS_OF_WORD.items():
            if word in name:
                return family
    other = in_words(values)
    if other is not None:
        raise InputError(f"{path or 'config'}: {other}.")
    raise InputError(
        f"{path or 'config'}: language model with model_type {model_type!r}, architectures {architectures} is not "
        f"supported; supported: {SUPPORTED_MODELS}."
    )


def in_words(config: Mapping[str, Any]) -> str | None:
    """What a config is of, if it is transformers' own class of a model with images, and what to give instead."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if "text_config" not in config and not any(str(name).endswith("ForConditionalGeneration") for name in names):
        return None
    kind = str(config.get("model_type"))
    return f"model_type {kind} is not supported as a model with images; supported: {SUPPORTED_MODELS}"


def config_for(name_or_path: str, **hub: Any) -> PretrainedConfig:
    """Read the config of a LLaVA or plain checkpoint as the config class of our model (`model_class_for`).

    Raises:
        InputError: as there, and for a config.json that cannot be found or read, or has impossible values.
    """
    if find_file(name_or_path, "config.json", **hub) is None:
        raise InputError(f"{name_or_path}: no folder with a config.json here, and none that the hub gives by this name")
    with usable(f"{name_or_path}: its config.json"):
        values, _ = PretrainedConfig.get_config_dict(name_or_path, **hub)
        family = model_class_for(values, name_or_path)
        config = family.config_class.from_pretrained(name_or_path, **hub)
        if hasattr(config, "validate"):
            config.validate()  # else what does not go together shows when the model is saved
    return config


def is_llava_config(config: Any) -> bool:
    """Whether a config describes a model with images: it names a tower."""
    return getattr(config, "mm_vision_tower", None) is not None


def overwrite_entries(config: Any, entries: dict[str, Any]) -> None:
    """Set entries on a config before a checkpoint is loaded with it, such as `{"mm_vision_tower": DIR}`.

    With another tower, what the checkpoint wrote down about its old one no longer holds and is dropped.
    """
    if "mm_vision_tower" in entries:
        for key in TOWER_KEYS:
            vars(config).pop(key, None)
    for name, value in entries.items():
        setattr(config, name, value)
