"""What lies beside the weights of a folder in Hugging Face's format: tokenizer, processors, template of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.hf.to_hf import MediaTokens, chat_template, grid, vision_aspect_ratio
from llava.model.multimodal_encoder.tower_config import TowerSpec

VIDEO_TOKEN = "<video>"


def add_media_tokens(tokenizer: Any) -> list[str]:
    """Make sure that `<image>` and `<video>` are tokens; returns those that were not."""
    known = tokenizer.get_vocab()
    new = [token for token in (DEFAULT_IMAGE_TOKEN, VIDEO_TOKEN) if token not in known]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in new], special_tokens=True)
    return new


def media_tokens(tokenizer: Any, rows: int) -> MediaTokens:
    """Ids of the two, and the rows that embeddings of `rows` rows must have then; they only ever grow."""
    image, video = (tokenizer.convert_tokens_to_ids(token) for token in (DEFAULT_IMAGE_TOKEN, VIDEO_TOKEN))
    return MediaTokens(image, video, max(rows, image + 1, video + 1))


def write_processors(folder: Path, config: Any, spec: TowerSpec, tokenizer: Any) -> None:
    """Tokenizer, chat template and settings of the processors for images and videos."""
    tokenizer.chat_template = chat_template(config)
    tokenizer.save_pretrained(folder)
    pixels, side = spec.image_processor, spec.vision_config.image_size
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(pixels.image_mean),
        "image_std": list(pixels.image_std),
        "processor_class": "LlavaOnevisionProcessor",
        "resample": int(pixels.resample),
        "rescale_factor": pixels.rescale_factor,
        "size": {"height": side, "width": side},
    }
    images = {
        **common,
        "do_pad": True,
        "image_grid_pinpoints": grid(config, spec),
        "image_processor_type": "LlavaOnevisionImageProcessor",
    }
    together = {
        "image_token": DEFAULT_IMAGE_TOKEN,
        "num_image_tokens": (side // spec.vision_config.patch_size) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": VIDEO_TOKEN,
        "vision_aspect_ratio": vision_aspect_ratio(config, spec),
        "vision_feature_select_strategy": "full",
    }
    write_json(folder / "preprocessor_config.json", images)
    write_json(
        folder / "video_preprocessor_config.json", {**common, "video_processor_type": "LlavaOnevisionVideoProcessor"}
    )
    write_json(folder / "processor_config.json", together)


def write_tokenizer(folder: Path, tokenizer: Any, without: Sequence[str], template: str | None) -> None:
    """The tokenizer as it was before `without` were added to it, with its own chat template."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    whole, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if whole.is_file() and without:
        values = json.loads(whole.read_text(encoding="utf-8"))
        values["added_tokens"] = [one for one in values["added_tokens"] if one["content"] not in without]
        write_json(whole, values)
    values = json.loads(settings.read_text(encoding="utf-8"))
    for key in ("processor_class", "image_token", "video_token"):
        values.pop(key, None)
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(values.get(key), list):
            values[key] = [token for token in values[key] if token not in without]
    decoder = values.get("added_tokens_decoder", {})
    for number in [number for number, one in decoder.items() if one["content"] in without]:
        del decoder[number]
    write_json(settings, values)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """As the library writes its own."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
