"""A config of LlavaOnevisionForConditionalGeneration as one of ours.

What their config has no words for, and how ours spelt the rest, a converted folder keeps in an entry of its config.json
(`RECORD`). It counts as long as the value that it stands for is what it was: what has been changed since, by training
in transformers, wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from transformers import LlavaOnevisionConfig, PretrainedConfig

from llava.errors import InputError
from llava.model.checkpoint_files import find_file, first_line, read_json
from llava.model.config_spelling import as_version_4
from llava.model.multimodal_encoder.image_processor import SigLipImageProcessor, TowerImageProcessor
from llava.model.multimodal_encoder.tower_config import SO400M

MODEL_TYPE = "llava_onevision"
LANGUAGE_MODEL, TOWER = "qwen2", "siglip_vision_model"
RECORD = "llava_checkpoint"
"""Entry of a converted config.json; see `record_of`."""

_OTHER_CLASSES = ("llava", "llava_next", "llava_next_video", "vipllava", "video_llava")
_SO400M_NAME = "google/siglip-so400m-patch14-384"
_PREPROCESSING = ("image_mean", "image_std", "size", "crop_size", "do_center_crop", "resample", "rescale_factor")
_STEPS = ("do_resize", "do_rescale", "do_normalize")


def is_theirs(values: Mapping[str, Any], name: str) -> bool:
    """Whether the contents of the config.json of the model `name` are of Hugging Face's format.

    Raises:
        InputError: it is that of another class of theirs for LLaVA models.
    """
    kind = values.get("model_type")
    if kind in _OTHER_CLASSES and "text_config" in values:
        raise InputError(
            f"{name}: config.json has model_type {kind!r}, which is not supported; of Hugging Face's classes only "
            f"{MODEL_TYPE!r} (LlavaOnevisionForConditionalGeneration) is"
        )
    return kind == MODEL_TYPE


def processor_settings(name_or_path: str, **hub: Any) -> dict[str, Any]:
    """Settings of the image processor of a folder or hub id in Hugging Face's format; empty where it has none."""
    together = find_file(name_or_path, "processor_config.json", **hub)
    inside = read_json(together).get("image_processor") if together is not None else None
    if isinstance(inside, dict):
        return inside
    alone = find_file(name_or_path, "preprocessor_config.json", **hub)
    return read_json(alone) if alone is not None else {}


def our_config(values: Mapping[str, Any], processor: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Contents of a config.json of ours that says the same.

    Args:
        values: contents of their config.json.
        processor: settings of their image processor.
        source: what messages call it.

    Raises:
        InputError: for a model that ours cannot be.
    """
    fresh = _translated(values, processor, source)
    record = values.get(RECORD)
    if record is None:
        return fresh
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("config", "instead_of")):
        raise InputError(f"{source}: config.json has an entry {RECORD} that was not written here; remove it")
    return _as_it_was(fresh, record)


def record_of(original: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be remembered to get a config of ours back from its translation.

    Args:
        original: contents of our config.json.
        fresh: what `our_config` makes of its translation, without a record.

    Returns:
        `config`, entries as they were, and `instead_of`, the entries of `fresh` that those stand for. The number of
        tokens is left to whoever cuts the embeddings.
    """
    original = {key: value for key, value in original.items() if key != "vocab_size"}
    lost = {key: value for key, value in original.items() if key not in fresh or fresh[key] != value}
    told = {key: fresh[key] for key in fresh if key != "vocab_size" and (key in lost or key not in original)}
    return {"config": lost, "instead_of": told}


def _as_it_was(fresh: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    config, instead_of = record["config"], record["instead_of"]
    unchanged = {key for key, value in instead_of.items() if key in fresh and fresh[key] == value}
    kept = {key: value for key, value in fresh.items() if key not in unchanged}
    return kept | {key: value for key, value in config.items() if key not in kept}


def _translated(values: Mapping[str, Any], processor: Mapping[str, Any], source: str) -> dict[str, Any]:
    config = _parsed(values, source)
    text, vision = config.text_config, config.vision_config
    tile = vision.image_size
    ours = {
        **_language_model(text),
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "tie_word_embeddings": bool(config.tie_word_embeddings or text.tie_word_embeddings),
        "use_mm_proj": True,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "one_token",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config.vision_aspect_ratio,
        "image_grid_pinpoints": [[width, height] for height, width in config.image_grid_pinpoints],
        **_tower(vision, kept_layers(values, source), _pixels(processor, tile)),
    }
    dtype = values.get("dtype", values.get("torch_dtype"))
    if dtype is not None:
        ours["torch_dtype"] = dtype
    return json.loads(json.dumps(ours))  # tuples and the like as they come back from a file


def kept_layers(values: Mapping[str, Any], source: str) -> int:
    """Layers of their tower that have a use: those up to the one whose output is taken."""
    config = _parsed(values, source)
    layers, taken = config.vision_config.num_hidden_layers, config.vision_feature_layer
    kept = taken if taken >= 0 else layers + 1 + taken
    if not 1 <= kept <= layers:
        raise InputError(f"{source}: vision_feature_layer {taken} of a tower with {layers} layers is not supported")
    return kept


def check_readable(values: Mapping[str, Any], source: str) -> None:
    """`InputError` for a model that has to be converted before it can be read."""
    layers = _parsed(values, source).vision_config.num_hidden_layers
    if kept_layers(values, source) < layers:
        raise InputError(
            f"{source}: its tower has layers whose output is not used; leave them out first: "
            f"`python -m llava.model.convert --from {source} --to FOLDER`"
        )


def _parsed(values: Mapping[str, Any], source: str) -> Any:
    """Their config as an object.

    Raises:
        InputError: not one, or with settings that ours has no words for.
    """
    plain = {key: value for key, value in values.items() if key != RECORD}
    try:
        config: Any = LlavaOnevisionConfig.from_dict(json.loads(json.dumps(plain)))
        language_model, tower = config.text_config.model_type, config.vision_config.model_type
    except Exception as error:  # the library raises what it likes of a config that is none
        raise InputError(
            f"{source}: config.json is not one of LlavaOnevisionForConditionalGeneration: {first_line(error)}"
        ) from error
    layer = config.vision_feature_layer
    wrong = {
        f"text_config.model_type {language_model!r} (allowed: {LANGUAGE_MODEL!r})": language_model != LANGUAGE_MODEL,
        f"vision_config.model_type {tower!r} (allowed: {TOWER!r})": tower != TOWER,
        f"projector_hidden_act {config.projector_hidden_act!r} (allowed: 'gelu')": config.projector_hidden_act
        != "gelu",
        "multimodal_projector_bias false (allowed: true)": config.multimodal_projector_bias is not True,
        f"vision_feature_layer {layer!r} (allowed: one layer)": not isinstance(layer, int),
        f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} (allowed: 'full')": (
            config.vision_feature_select_strategy != "full"
        ),
        f"vision_aspect_ratio {config.vision_aspect_ratio!r} (allowed: 'anyres_max_N')": (
            re.fullmatch(r"anyres_max_[1-9]\d*", str(config.vision_aspect_ratio)) is None
        ),
        "quantization_config (give the model as it was before)": values.get("quantization_config") is not None,
    }
    problems = [what for what, given in wrong.items() if given]
    if problems:
        raise InputError(f"{source}: config.json has settings that are not supported here: {'; '.join(problems)}")
    return config


def _language_model(text: PretrainedConfig) -> dict[str, Any]:
    values = as_version_4(text.to_diff_dict())
    derived = () if getattr(text, "use_sliding_window", False) else ("layer_types",)
    for key in ("model_type", "transformers_version", "architectures", "torch_dtype", "_name_or_path", *derived):
        values.pop(key, None)
    return {"vocab_size": text.vocab_size} | {key: value for key, value in values.items() if value is not None}


def _pixels(processor: Mapping[str, Any], tile: int) -> TowerImageProcessor:
    settings = {key: processor[key] for key in (*_PREPROCESSING, *_STEPS) if processor.get(key) is not None}
    return TowerImageProcessor.from_config(settings, SigLipImageProcessor(size=(tile, tile)))


def _tower(vision: Any, layers: int, pixels: TowerImageProcessor) -> dict[str, Any]:
    """Name of the tower and, unless it is the usual one, what it is made of."""
    config = vision.to_diff_dict()
    for key in ("transformers_version", "architectures", "_name_or_path", "dtype"):
        config.pop(key, None)
    full = {**config, "model_type": TOWER, "num_hidden_layers": layers + 1}  # LLaVA counts the layer it drops
    usual = all(getattr(vision, key) == value for key, value in SO400M.items() if key != "num_hidden_layers")
    same_pixels = pixels.to_config() == SigLipImageProcessor().to_config()
    if usual and layers + 1 == SO400M["num_hidden_layers"] and same_pixels:
        return {"mm_vision_tower": _SO400M_NAME}
    return {
        "mm_vision_tower": f"siglip-patch{vision.patch_size}-{vision.image_size}",
        "mm_vision_tower_config": full,
        "mm_image_processor_config": pixels.to_config(),
    }
