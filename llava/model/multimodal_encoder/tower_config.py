"""What a vision tower is made of: its architecture and its image processor, and where these are written down.

A checkpoint names its tower (`mm_vision_tower`: hub id or folder) and holds the tower's weights, but not its
configuration. It is looked for in this order, and the network is asked last:

1. `mm_vision_tower_config` (and `mm_image_processor_config`) in the checkpoint's config.json,
2. config.json and preprocessor_config.json in the folder that `mm_vision_tower` names (a relative one may lie
   inside the checkpoint) or in the hub cache,
3. the shapes of the tower weights in the checkpoint,
4. the table of published towers below, for their hub ids,
5. the hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PretrainedConfig, SiglipVisionConfig

from llava.errors import InputError
from llava.model.checkpoint_files import find_file, read_json, usable
from llava.model.multimodal_encoder.image_processor import (
    SigLipImageProcessor,
    TowerImageProcessor,
    clip_image_processor,
)

SUPPORTED_TOWERS = "SigLIP and CLIP, as a hub id (such as google/siglip-so400m-patch14-384) or a local folder"

# model_type of a config.json, full model or vision part, to the family.
FAMILY_OF_MODEL_TYPE = {
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "clip": "clip",
    "clip_vision_model": "clip",
}
_CONFIG_CLASS: dict[str, type[PretrainedConfig]] = {"siglip": SiglipVisionConfig, "clip": CLIPVisionConfig}
_DEFAULT_PROCESSOR = {"siglip": lambda side: SigLipImageProcessor(size=(side, side)), "clip": clip_image_processor}
# Heads of the published towers by width; weights do not tell them.
_HEADS_OF_WIDTH = {"siglip": {768: 12, 1024: 16, 1152: 16}, "clip": {768: 12, 1024: 16, 1280: 16, 1664: 16}}
# Where the side of the picture is not a multiple of the patch: (patch, patches per side) of published towers.
_IMAGE_SIZE_OF_GRID = {(14, 27): 384}
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_CLIP_LARGE = {
    "model_type": CLIPVisionConfig.model_type,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
# Architectures of the usual towers, so that their hub ids build without the hub. Weights are never assumed.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {"model_type": SiglipVisionConfig.model_type, **SO400M},
    "openai/clip-vit-large-patch14-336": {**_CLIP_LARGE, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_CLIP_LARGE, "image_size": 224},
}
# SigLIP loses its last layer in LLaVA, CLIP keeps all.
DROPPED_LAYERS = {"siglip": 1, "clip": 0}
_ADVICE = (
    "Put the tower's config.json (and preprocessor_config.json) into a folder and name that folder: "
    '--vision_tower DIR, or overwrite_config={"mm_vision_tower": DIR} when loading a checkpoint.'
)


@dataclass(frozen=True)
class TowerSpec:
    """How a tower is built.

    Attributes:
        family: a key of `DROPPED_LAYERS`.
        vision_config: the full architecture, with the layers that LLaVA drops.
        image_processor: makes its pixels.
        source: folder or hub id of its own weights.
        portable: its config has to travel inside the checkpoint, as it came from there or from a local folder.
    """

    family: str
    vision_config: PretrainedConfig
    image_processor: TowerImageProcessor
    source: str
    portable: bool

    def remember(self, model_config: Any) -> None:
        """Write the tower into a model config, so that building it again needs no other file.

        A tower that a hub id leads back to is kept out of the saved config.json (`LlavaConfigMixin`), so that a
        checkpoint that was only loaded and saved keeps its keys.
        """
        values = self.vision_config.to_diff_dict()
        values.pop("transformers_version", None)
        model_config.mm_vision_tower_config = {**values, "model_type": self.vision_config.model_type}
        model_config.mm_image_processor_config = self.image_processor.to_config()
        model_config._tower_found_elsewhere = not self.portable


def tower_name(model_config: Any) -> str | None:
    """Name of the tower in a model config or in `ModelArguments`: `mm_vision_tower`, else `vision_tower`."""
    return getattr(model_config, "mm_vision_tower", None) or getattr(model_config, "vision_tower", None)


def tower_source(name: str, model_config: Any = None) -> str:
    """The folder or hub id behind a tower name: `hf:` is dropped, a relative folder may lie inside the checkpoint."""
    name = name.removeprefix("hf:")
    checkpoint = getattr(model_config, "_name_or_path", None) or ""
    inside = Path(checkpoint) / name
    if checkpoint and not Path(name).is_absolute() and inside.is_dir():
        return str(inside)
    return name


def embedded_config(model_config: Any) -> dict[str, Any] | None:
    """The tower's config inside a model config, where there is one. InputError: it is no object."""
    values = getattr(model_config, "mm_vision_tower_config", None)
    if values is not None and not isinstance(values, dict):
        raise InputError(f"mm_vision_tower_config is a {type(values).__name__}; it must be an object, or be left out")
    return values


def describe_tower(
    name: str, model_config: Any, checkpoint_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> TowerSpec:
    """Find the architecture and image processor of a tower.

    Args:
        name: the tower's name, see `tower_name`.
        model_config: the checkpoint's config, whose own entries come first.
        checkpoint_shapes: shapes of the tower's weights in a checkpoint, names beginning with `embeddings.`,
            `encoder.` and so on; None or empty when there are none.

    Raises:
        InputError: for a kind of tower that is not supported, or when nothing tells how the tower is built.
    """
    if getattr(model_config, "s2", False):
        raise InputError(f"multi-scale (s2) towers are not supported; supported: {SUPPORTED_TOWERS}.")
    source = tower_source(name, model_config)
    embedded = embedded_config(model_config)
    explicit = embedded is not None or Path(source).is_dir()
    network = False
    values = embedded if embedded is not None else config_beside(source, local_only=True)
    if values is not None and checkpoint_shapes:
        problem = _disagreement(parse_vision_config(values, source), checkpoint_shapes)
        if problem and explicit:
            raise InputError(f"the tower config of {source} does not fit the weights in the checkpoint: {problem}.")
        values = None if problem else values
    if values is None and checkpoint_shapes:
        values = infer_vision_config(checkpoint_shapes, name)
    if values is None:
        values = _PUBLISHED.get(source)
    if values is None:
        values, network = config_beside(source, local_only=False), True
    if values is None:
        raise InputError(
            f"vision tower {name!r}: no config.json found there (no such folder or cached hub model). "
            f"Supported: {SUPPORTED_TOWERS}. {_ADVICE}"
        )
    vision_config = parse_vision_config(values, source)
    family = FAMILY_OF_MODEL_TYPE[vision_config.model_type]
    processor = _read_processor(source, model_config, family, vision_config.image_size, network)
    portable = explicit and not getattr(model_config, "_tower_found_elsewhere", False)
    return TowerSpec(family, vision_config, processor, source, portable)


def parse_vision_config(values: Mapping[str, Any], source: str) -> PretrainedConfig:
    """Vision config of a config.json, which is the vision part's or the full model's with a `vision_config` inside."""
    model_type = values.get("model_type")
    family = FAMILY_OF_MODEL_TYPE.get(str(model_type))
    if family is None:
        raise InputError(
            f"vision tower {source!r} has model_type {model_type!r} in its config.json, which is not supported; "
            f"supported: {SUPPORTED_TOWERS}."
        )
    with usable(f"vision tower {source!r}: its config"):
        part = {**(values.get("vision_config") or values)}
        for key in ("model_type", "transformers_version", "architectures"):
            part.pop(key, None)
        return _CONFIG_CLASS[family](**part)


def infer_vision_config(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, Any]:
    """Architecture of a tower from the shapes of its weights; heads by width, as published.

    Raises:
        InputError: when the width is none of a published tower.
    """
    family = "clip" if "embeddings.class_embedding" in shapes else "siglip"
    width, channels, patch, _ = shapes["embeddings.patch_embedding.weight"]
    positions = shapes["embeddings.position_embedding.weight"][0]
    side = math.isqrt(positions)
    heads = _HEADS_OF_WIDTH[family].get(width)
    if heads is None:
        raise InputError(
            f"vision tower {name!r}: no config.json found, and the number of heads of a {family} tower of width "
            f"{width} is not known (known widths: {sorted(_HEADS_OF_WIDTH[family])}). {_ADVICE}"
        )
    return {
        "model_type": _CONFIG_CLASS[family].model_type,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _layers(shapes) + DROPPED_LAYERS[family],
        "num_attention_heads": heads,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": _IMAGE_SIZE_OF_GRID.get((patch, side), side * patch),
    }


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return len({match[1] for match in map(re.compile(r"encoder\.layers\.(\d+)\.").match, shapes) if match})


def _disagreement(config: PretrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    family = FAMILY_OF_MODEL_TYPE[config.model_type]
    expected = {
        "width": (config.hidden_size, shapes["embeddings.patch_embedding.weight"][0]),
        "patch size": (config.patch_size, shapes["embeddings.patch_embedding.weight"][2]),
        "layers": (config.num_hidden_layers - DROPPED_LAYERS[family], _layers(shapes)),
    }
    wrong = [f"{what} {given} against {found}" for what, (given, found) in expected.items() if given != found]
    return ", ".join(wrong) or None


def config_beside(source: str, local_only: bool) -> dict[str, Any] | None:
    """The config.json of a tower's folder or hub id; None where there is none.

    Args:
        local_only: as for `find_file`.
    """
    path = find_file(source, "config.json", local_only)
    return read_json(path) if path is not None else None


def _read_processor(source: str, model_config: Any, family: str, image_size: int, network: bool) -> TowerImageProcessor:
    default = _DEFAULT_PROCESSOR[family](image_size)
    values = getattr(model_config, "mm_image_processor_config", None)
    if values is None:
        path = find_file(source, "preprocessor_config.json", local_only=not network)
        values = read_json(path) if path is not None else {}
    with usable(f"vision tower {source!r}: its image processor's config"):
        processor = TowerImageProcessor.from_config(values, default) if values else default
        crop = processor.crop_size or {}
        sizes = processor.size if isinstance(processor.size, dict) else {"height": processor.size[0]}
        given = crop.get("height") or sizes.get("height") or sizes.get("shortest_edge")
    if given != image_size:
        raise InputError(
            f"vision tower {source!r}: its image processor gives {given} pixels, but the tower takes {image_size}: "
            "correct size in preprocessor_config.json."
        )
    return processor
