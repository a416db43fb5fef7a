"""A config of ours as one of LlavaOnevisionForConditionalGeneration, or why that cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, Qwen2Config

from llava.conversation import Conversation, SeparatorStyle, get_template
from llava.errors import InputError
from llava.mm_utils import expand_grid_pinpoints
from llava.model.config_spelling import as_version_4
from llava.model.hf.from_hf import LANGUAGE_MODEL, MODEL_TYPE, TOWER
from llava.model.merge_plan import MergePlan
from llava.model.multimodal_encoder.tower_config import DROPPED_LAYERS, TowerSpec
from llava.model.multimodal_resampler.builder import build_vision_resampler
from llava.model.own_settings import own_template

IMAGES_ONLY = "--images-only"
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class MediaTokens:
    """Ids of the tokens that stand for images and videos, and the rows of embeddings that the model then has."""

    image: int
    video: int
    rows: int


def check_expressible(config: Any, spec: TowerSpec, source: str, images_only: bool) -> None:
    """`InputError` that names all settings of ours which their class has no words for.

    Args:
        config: of a checkpoint of ours.
        spec: its tower.
        images_only: settings of videos may differ.
    """
    build_vision_resampler(config)
    plan = MergePlan.from_config(config)
    projector = getattr(config, "mm_projector_type", None) or "linear"
    aspect = getattr(config, "image_aspect_ratio", None) or "square"
    wrong = {
        f"language model {config.model_type!r} (allowed: 'llava_qwen')": config.model_type != "llava_qwen",
        f"a {spec.family} tower (allowed: siglip)": spec.family != "siglip",
        f"mm_projector_type {projector!r} (allowed: 'mlp2x_gelu')": projector != "mlp2x_gelu",
        f"mm_patch_merge_type {getattr(config, 'mm_patch_merge_type', None)!r} (allowed: 'spatial_unpad')": (
            not (plan.spatial and plan.unpad) or plan.maxpool or plan.nobase
        ),
        f"image_aspect_ratio {aspect!r} (allowed: 'anyres', 'anyres_max_N')": not plan.anyres,
        "no image_grid_pinpoints": plan.grid_pinpoints is None,
        "mm_use_im_start_end true (allowed: false)": bool(getattr(config, "mm_use_im_start_end", False)),
        "add_faster_video true (allowed: false)": plan.faster_stride is not None,
        "quantization_config (give the model as it was before)": (
            getattr(config, "quantization_config", None) is not None
        ),
        "an image processor that crops": spec.image_processor.size != (spec.vision_config.image_size,) * 2,
        f"conversation template {own_template(config)!r} (allowed: those in the form of ChatML, as 'qwen_1_5')": (
            not _is_chatml(get_template(own_template(config)))
        ),
    }
    of_videos = {
        f"mm_newline_position {plan.newline_position!r} (allowed: 'one_token')": plan.newline_position != "one_token",
        f"mm_spatial_pool_mode {plan.pool_mode!r} (allowed: 'bilinear')": plan.pool_mode != "bilinear",
        f"mm_spatial_pool_stride {plan.pool_stride} (allowed: 2)": plan.pool_stride != 2,
    }
    problems = [what for what, given in wrong.items() if given]
    videos = [what for what, given in of_videos.items() if given and not images_only]
    also = f"merges videos in another way than this checkpoint: {'; '.join(videos)}"
    also += f". Where it is asked about images and text alone, give {IMAGES_ONLY}"
    if problems:
        raise InputError(
            f"{source}: LlavaOnevisionForConditionalGeneration cannot have these settings of config.json: "
            f"{'; '.join(problems)}" + (f". It also {also}" if videos else "")
        )
    if videos:
        raise InputError(f"{source}: LlavaOnevisionForConditionalGeneration {also}")


def their_config(config: Any, spec: TowerSpec, tokens: MediaTokens, dtype: str) -> dict[str, Any]:
    """Contents of a config.json of theirs; see `check_expressible`.

    Args:
        dtype: the number format of the weights, "bfloat16".
    """
    tied = bool(config.tie_word_embeddings)
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "image_token_index": tokens.image,
        "video_token_index": tokens.video,
        "image_grid_pinpoints": grid(config, spec),
        "vision_aspect_ratio": vision_aspect_ratio(config, spec),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "text_config": _language_model(config) | {"vocab_size": tokens.rows, "tie_word_embeddings": tied},
        "vision_config": _tower(spec),
    }


def grid(config: Any, spec: TowerSpec) -> list[list[int]]:
    """Resolutions that pictures are fitted to, [height, width] as they have it, in the same order."""
    pairs = expand_grid_pinpoints(config.image_grid_pinpoints, spec.vision_config.image_size)
    return [[height, width] for width, height in pairs]


def vision_aspect_ratio(config: Any, spec: TowerSpec) -> str:
    """anyres_max_N. As large an N as the largest grid has tiles never shrinks anything, which is plain anyres."""
    if MergePlan.from_config(config).max_tiles is not None:
        return config.image_aspect_ratio
    tile = spec.vision_config.image_size
    return f"anyres_max_{max((height // tile) * (width // tile) for height, width in grid(config, spec))}"


def chat_template(config: Any) -> str:
    """Jinja of the template that the checkpoint was trained with, for messages with text, images and videos.

    One image or video comes first, as in training; several stay where they are. A newline follows each.
    """
    conversation = get_template(own_template(config))
    mark, _, system = conversation.system.partition("\n")
    start, end = mark.removesuffix("system"), conversation.sep
    return _CHAT_TEMPLATE.replace("START", start).replace("END", end).replace("SYSTEM", system)


_CHAT_TEMPLATE = r"""
{%- macro medium(part) -%}
    {{- '<video>\n' if part['type'] == 'video' else '<image>\n' -}}
{%- endmacro -%}
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- 'STARTsystem\nSYSTEMEND\n' -}}
    {%- endif -%}
    {{- 'START' + message['role'] + '\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- set media = message['content'] | rejectattr('type', 'equalto', 'text') | list -%}
        {%- if media | length == 1 -%}{{- medium(media[0]) -}}{%- endif -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- elif media | length > 1 -%}
                {{- medium(part) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- 'END\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'STARTassistant\n' -}}
{%- endif -%}
""".strip()


def _is_chatml(template: Conversation) -> bool:
    mark = template.system.partition("\n")[0]
    roles = (mark.removesuffix("system") + "user", mark.removesuffix("system") + "assistant")
    return template.sep_style == SeparatorStyle.CHATML and mark.endswith("system") and tuple(template.roles) == roles


def _language_model(config: Any) -> dict[str, Any]:
    """The entries of a language model's config.json, all of them: other versions may have other defaults."""
    of_all = set(PretrainedConfig().to_dict()) - {"tie_word_embeddings", *_SPECIAL_TOKENS}
    known = set(as_version_4(Qwen2Config().to_dict())) - of_all - {"torch_dtype"}
    ours: Mapping[str, Any] = as_version_4(config.to_dict())
    return {key: ours[key] for key in sorted(known) if key in ours} | {"model_type": LANGUAGE_MODEL}


def _tower(spec: TowerSpec) -> dict[str, Any]:
    values = spec.vision_config.to_diff_dict()
    for key in ("transformers_version", "architectures", "_name_or_path", "dtype"):
        values.pop(key, None)
    layers = spec.vision_config.num_hidden_layers - DROPPED_LAYERS[spec.family]
    return values | {"model_type": TOWER, "num_hidden_layers": layers, "vision_use_head": False}
