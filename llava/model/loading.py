"""Checks around loading weights: nothing is fetched twice, and nothing stays silently uninitialised."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from llava.errors import InputError
from llava.model.checkpoint_files import find_file, read_tensors, tensor_shapes, usable, weight_files
from llava.model.configuration import HUB_ARGUMENTS
from llava.model.hf import names
from llava.model.multimodal_encoder.tower import loads_at_once
from llava.model.multimodal_encoder.tower_config import describe_tower, tower_name
from llava.model.quantised import keep_layout

logger = logging.getLogger(__name__)

LEARNED_TOKENS = ("image_newline", "faster_token")
ADAPTER_FILES = ("mm_projector.safetensors", "mm_projector.bin")

TOWER_PREFIX = "model.vision_tower."
_TOWER_BODY = "model.vision_tower.vision_tower.vision_model."
# How names in a checkpoint are read: pattern -> replacement. Checkpoints written with the library's later vision
# classes lack one level in the names of the tower; Hugging Face's own format of LLaVA has names of its own.
READ_AS = {r"^model\.vision_tower\.vision_tower\.(?!vision_model\.)": _TOWER_BODY, **names.READ_AS}
_PROJECTOR_PREFIX = "model.mm_projector."


def settled_config(config_class: type[Any], name_or_path: Any, config: Any, arguments: dict[str, Any]) -> Any:
    """The config to load a checkpoint with: read if it is not given, with the tower's architecture filled in.

    Args:
        arguments: of `from_pretrained`; those that say how the hub is reached are used.
    """
    hub = {key: arguments[key] for key in HUB_ARGUMENTS if arguments.get(key) is not None}
    if config is None:
        with usable(f"{name_or_path}: its config.json"):
            config = config_class.from_pretrained(name_or_path, **hub)
    config = copy.deepcopy(config)
    if not config.name_or_path:
        # A relative tower folder is looked for inside the checkpoint.
        config.name_or_path = str(name_or_path)
    if getattr(config, "mm_vision_tower", None) is not None:
        name = tower_name(config)
        assert name is not None
        with usable(f"{name_or_path}: the vision tower of its config.json"):
            describe_tower(name, config, tower_shapes(str(name_or_path), **hub)).remember(config)
    return config


def tower_shapes(name_or_path: str, **hub: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the tower's weights in a checkpoint, for `describe_tower`; empty when it holds none.

    Args:
        hub: as for `weight_files`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(name_or_path, **hub):
        shapes.update(tensor_shapes(path))
    for pattern, replacement in READ_AS.items():
        shapes = {re.sub(pattern, replacement, name): shape for name, shape in shapes.items()}
    return {name.removeprefix(_TOWER_BODY): shape for name, shape in shapes.items() if name.startswith(_TOWER_BODY)}


def forget_renaming(model: Any) -> None:
    """Let the model be saved under its own names: the library would write those that `READ_AS` replaced."""
    applied = getattr(model, "_weight_conversions", None) or []
    kept = [renaming for renaming in applied if not set(renaming.source_patterns) & set(READ_AS)]
    if len(kept) < len(applied):
        model._weight_conversions = kept


def load_plain(model_class: type[Any], name_or_path: str, **arguments: Any) -> Any:
    """A language model without images, by `from_pretrained` of `model_class`; no weight stays at random numbers.

    Raises:
        InputError: a checkpoint that is damaged, or whose weights are not those of its config.json.
    """
    with usable(name_or_path):
        model, info = model_class.from_pretrained(
            name_or_path, **arguments, output_loading_info=True, ignore_mismatched_sizes=True
        )
    _refuse_misfits(model, info, name_or_path)
    _refuse_missing(model, set(info["missing_keys"]), name_or_path)
    keep_layout(model)
    return model


def check_loaded(model: Any, info: dict[str, Any], name: str, projector_needed: bool) -> None:
    """Deal with what a checkpoint lacks, and with what has no place in the model.

    The tower's weights come from its own source when all are missing; learned tokens start at fixed random numbers,
    with a warning; anything else is an error.

    Args:
        info: what the library reports about loading.
        name: folder or hub id of the checkpoint.
        projector_needed: False when the projector is loaded from another file afterwards.
    """
    _refuse_misfits(model, info, name)
    missing = set(info["missing_keys"])
    _settle_tower(model, {name for name in missing if name.startswith(TOWER_PREFIX)})
    tokens = {f"model.{name}" for name in LEARNED_TOKENS} & missing
    if projector_needed and tokens:
        logger.warning("%s not in the checkpoint; initialised at random (fixed seed)", ", ".join(sorted(tokens)))
    others = {name for name in missing - tokens if not name.startswith(TOWER_PREFIX)}
    if not projector_needed:
        others = {name for name in others if not name.startswith(_PROJECTOR_PREFIX)}
    broken = not_finite(model)
    if broken is not None:
        raise InputError(f"{name}: the weight {broken} has numbers that are not finite")
    _refuse_missing(model, others, name)


def _refuse_misfits(model: Any, info: dict[str, Any], name: str) -> None:
    """`InputError` for weights of another shape than config.json gives them, and for those with no place at all."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        weight, found, wanted = mismatched[0]
        raise InputError(
            f"{name}: {len(mismatched)} weights have another shape than its config.json gives them: {weight} is "
            f"{list(found)}, by config.json {list(wanted)}. Is config.json that of these weights?"
        )
    # LLaVA has no use for the pooling head of a tower; some checkpoints hold it.
    unused = {key for key in info["unexpected_keys"] if not key.startswith(f"{_TOWER_BODY}head.")}
    if unused:
        raise InputError(
            f"{name}: {len(unused)} of its weights have no place in a {type(model).__name__} as its config.json "
            f"describes it, and would be left out: {some(unused)}. Is config.json that of these weights?"
        )


def _refuse_missing(model: Any, missing: set[str], name: str) -> None:
    if missing:
        raise InputError(
            f"{name}: the checkpoint lacks {len(missing)} weights of {type(model).__name__}: "
            f"{some(missing)}. Is it a checkpoint of this model, and complete? An adapter needs its base model."
        )


@torch.no_grad()
def not_finite(model: Any) -> str | None:
    """Name of the first weight that has a NaN or an infinity; None if all are finite."""
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if hasattr(values, "to_local"):  # of one in shards, this process's
            values = values.to_local()
        if values.is_floating_point() and not values.is_meta and not torch.isfinite(values).all():
            return name
    return None


def _settle_tower(model: Any, missing: set[str]) -> None:
    tower = model.get_vision_tower()
    if tower is None:
        return
    expected = {f"{TOWER_PREFIX}{name}" for name in tower.state_dict()}
    if not missing:
        tower.is_loaded = True
        tower.requires_grad_(False)
    elif missing != expected:
        raise InputError(
            f"{model.config.name_or_path}: the checkpoint holds only a part of the vision tower; it lacks "
            f"{some(missing)}."
        )
    elif loads_at_once(model.config, getattr(model.config, "delay_load", False)):
        tower.load_model()


def some(names: Collection[str]) -> str:
    """The first five names, in order, for a message."""
    shown = ", ".join(sorted(names)[:5])
    return f"{shown}, ..." if len(names) > 5 else shown


def adapter_file(path: str | Path) -> Path:
    """An adapter file itself, or the one that lies in a folder or hub repository."""
    if Path(path).is_file():
        return Path(path)
    for name in ADAPTER_FILES:
        found = find_file(str(path), name)
        if found is not None:
            return found
    raise InputError(f"no adapter at {path}: give a file, or a folder with {' or '.join(ADAPTER_FILES)}.")


def load_adapter(inner_model: Any, path: str | Path) -> None:
    """Load projector weights, and learned tokens where there are any, from an adapter file (`adapter_file`).

    Keys may carry any prefix in front of `mm_projector.`; embeddings in the file are left to the tokenizer's set-up.
    """
    file = adapter_file(path)
    tensors = read_tensors(file)
    projector = {name.split("mm_projector.", 1)[1]: value for name, value in tensors.items() if "mm_projector." in name}
    try:
        inner_model.mm_projector.load_state_dict(projector)
    except RuntimeError as error:  # it lists what is missing, left over or of another shape
        kind = inner_model.config.mm_projector_type
        raise InputError(f"{file}: does not fit --mm_projector_type {kind}: {error}") from error
    load_learned_tokens(inner_model, tensors, str(file))


def load_learned_tokens(inner_model: Any, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy `image_newline` and `faster_token` out of tensors with full names; warn about those that are missing."""
    for name in LEARNED_TOKENS:
        token = getattr(inner_model, name, None)
        if token is None:
            continue
        found = [value for key, value in tensors.items() if key.split(".")[-1] == name]
        if not found:
            logger.warning("%s: no %s; it keeps the value it has", source, name)
            continue
        if found[0].shape != token.shape:
            raise InputError(f"{source}: {name} is {list(found[0].shape)}, but {list(token.shape)} in the model")
        with torch.no_grad():
            token.copy_(found[0])
