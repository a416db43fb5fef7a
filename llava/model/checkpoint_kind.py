"""What a folder or hub id that is given as a model holds, judged before anything is loaded or written.

Whoever takes a model from a user asks here first. What cannot be used as asked is one line: what it is, and what to
give in its place. Of weights only the headers are read, and of a hub id no more than its settings: what shows later
(`usable`, `llava.model.loading.check_loaded`) is one line too.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from llava.errors import InputError, naming
from llava.model.checkpoint_files import (
    WEIGHT_NAMES,
    find_file,
    headers,
    is_pointer,
    read_json,
    unreadable,
    usable,
    weight_files,
)
from llava.model.families import SUPPORTED_MODELS, config_for, in_words
from llava.model.hf.from_hf import is_theirs, our_config, processor_settings
from llava.model.loading import ADAPTER_FILES
from llava.model.multimodal_encoder.tower_config import parse_vision_config
from llava.model.quantised_scales import SCALES_FILE

CONFIG = "config.json"
LORA = "adapter_config.json"
_READ = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
_EMBEDDINGS = "embed_tokens.weight"


def check_model(
    name: str,
    flag: str,
    variable: str | None = None,
    *,
    images: bool = False,
    weights: bool = True,
    any_class: bool = False,
) -> None:
    """`InputError` unless `name` is a whole model that can be used: a folder, or a hub id that can be reached.

    Args:
        flag, variable: what the message tells to set: the flag and, where a script has one, its variable.
        images: it is to see images, whatever its config says; a language model that can be taught to is enough.
        weights: they have to be there, all of them.
        any_class: the class to load it with is named elsewhere.
    """
    where = flag if variable is None else f"{variable} or {flag}"
    _check_there(name, flag, where, (CONFIG, LORA, *ADAPTER_FILES), CONFIG)
    part = _part(name)
    if part is not None:
        raise InputError(f"{flag} {name}: {part} Set {where} to {_BASE_OF[part]}{_named_base(name)}")
    with naming(flag):
        config = _settings(name)
        if config is not None and not any_class:
            _check_config(name, config, images)
        if config is not None and weights and Path(name).is_dir():
            _check_weights(name, config)


def check_checkpoint(model_path: str, model_base: str | None, weights: bool = True) -> None:
    """`InputError` unless a checkpoint and, where one is given, the model it belongs to can be used.

    Args:
        weights: as for `check_model`.
    """
    flag = "--model-path"
    _check_there(model_path, flag, flag, (CONFIG, LORA, *ADAPTER_FILES), f"{CONFIG} or {LORA}")
    if model_base is not None:
        check_model(model_base, "--model-base", weights=weights)
        return
    part = _part(model_path)
    if part is not None:
        raise InputError(
            f"{flag} {model_path} holds no complete model: {part} Give the model it was trained from as --model-base "
            f"(model_base){_named_base(model_path)}"
        )
    check_model(model_path, flag, weights=weights)


def check_tower(name: str, flag: str, variable: str | None = None) -> None:
    """`InputError` unless `name` is a folder with the config of a tower; weights in it, if any, have to be whole.

    A checkpoint holds its tower's weights, so that the folder need not.
    """
    where = flag if variable is None else f"{variable} or {flag}"
    _check_there(name, flag, where, (CONFIG,), CONFIG)
    with naming(flag):
        config = _settings(name)
        if config is not None:
            parse_vision_config(config, name)
        for file in weight_files(name) if Path(name).is_dir() else ():
            _check_header(file)


def _check_there(name: str, flag: str, where: str, settings: Sequence[str], wanted: str) -> None:
    """It is a folder with one of `settings` and no pointer in place of a file, or a hub id that can be reached."""
    path = Path(name)
    if path.is_dir():
        if not any((path / file).exists() for file in settings):
            raise InputError(f"{flag} {name}: the folder has no {wanted}; set {where} to a model folder")
        for file in sorted(path.iterdir()):
            if file.suffix in _READ and file.is_file() and is_pointer(file):
                raise InputError(f"{flag}: {unreadable(file, 'itself', '')}")
        return
    if path.exists():
        raise InputError(f"{flag} {name}: a file, not a folder; set {where} to the folder that holds the whole model")
    if looks_local(name):
        raise InputError(f"{flag} {name}: no such folder; set {where} to a model folder or a hub id")
    problem = _unreachable(name, settings)
    if problem is not None:
        raise InputError(
            f"{flag} {name}: not a folder here, not in the hub cache, and the hub does not give it "
            f"({type(problem).__name__}); set {where} to a folder that holds the model, or go online"
        ) from problem


_LORA = "an adapter lies there, which changes another model."
_PROJECTOR = "a projector alone lies there, which belongs to a language model."
_SCALES = "scales of quantised layers alone lie there, which belong to a language model."
_BASE_OF = {
    _SCALES: "the language model they were trained on, or merge both first (python -m llava.model.merge)",
    _LORA: "the model it was trained from, or merge both first (python -m llava.model.merge), where it can be merged",
    _PROJECTOR: "the language model it was trained on, and --pretrain_mm_mlp_adapter to this folder",
}


def _part(name: str) -> str | None:
    """What part of a model lies there; None for a whole one."""
    if find_file(name, LORA, local_only=True) is not None:
        return _LORA
    folder = Path(name)
    if (folder / SCALES_FILE).is_file():
        return _SCALES
    if any((folder / file).is_file() for file in ADAPTER_FILES) and not _has_weights(folder):
        return _PROJECTOR
    return None


def _has_weights(folder: Path) -> bool:
    return any((folder / file).is_file() for file in WEIGHT_NAMES)


def _named_base(name: str) -> str:
    file = find_file(name, LORA, local_only=True)
    base = None if file is None else read_json(file).get("base_model_name_or_path")
    return f"; {LORA} names {base}" if base else ""


def _settings(name: str) -> dict[str, Any] | None:
    """Its config.json, in our format; None for a hub id outside the usual cache, which is judged when it is loaded."""
    file = Path(name) / CONFIG if Path(name).is_dir() else find_file(name, CONFIG, local_only=True)
    if file is None:
        return None
    values = read_json(file)
    return our_config(values, processor_settings(name), name) if is_theirs(values, name) else values


def _check_config(name: str, config: Mapping[str, Any], images: bool) -> None:
    """Its class is one of those that can be used, and the values make a config of that class."""
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise InputError(f"{name}: {CONFIG} has model_type {kind!r}; it must be a name, such as qwen2 or llava_qwen")
    if images or config.get("mm_vision_tower") is not None or in_words(config) is not None:
        config_for(name)
        return
    if kind is None or kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{name}: {CONFIG} has model_type {kind!r}, which is no language model that transformers knows; give one, "
            f"or for images {SUPPORTED_MODELS}"
        )
    with usable(f"{name}: its {CONFIG}"):
        AutoConfig.from_pretrained(name)


def _check_weights(name: str, config: Mapping[str, Any]) -> None:
    """All weight files are there and whole, and the embeddings are as long as config.json says."""
    files = weight_files(name)
    if not files:
        raise InputError(f"{name} holds no complete model: {_instead_of_weights(Path(name))}")
    for file in files:
        for tensor, (shape, dtype) in _check_header(file).items():
            rows = config.get("vocab_size")
            if tensor.endswith(_EMBEDDINGS) and rows is not None and shape[:1] != (rows,):
                raise InputError(
                    f"{name}: {CONFIG} has vocab_size {rows}, but {tensor} in {file.name} has {shape[0]} rows: "
                    "settings and weights are of two models"
                )
            if dtype[0] in "IU" and config.get("quantization_config") is None and tensor.endswith((".weight", ".bias")):
                raise InputError(
                    f"{file}: {tensor} is stored as {dtype}, quantised, but {CONFIG} has no quantization_config that "
                    "says how; give the model as it was before, and --bits to load it in 8 or 4"
                )


def _check_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of a safetensors file. One of torch is only looked at for whether its end is there."""
    if file.suffix == ".safetensors":
        return headers(file)
    with file.open("rb") as stream:
        old_format = stream.read(1) == b"\x80"
    if not old_format and not zipfile.is_zipfile(file):
        raise unreadable(file, "a file of tensors", "not in torch's format, or its end is missing")
    return {}


def _instead_of_weights(folder: Path) -> str:
    if any(folder.glob("*.gguf")):
        return "it has weights for llama.cpp (GGUF); give the folder they were made from, with safetensors"
    if any(folder.glob("global_step*")):
        return "it has DeepSpeed's pieces; put them together with zero_to_fp32.py, which lies there"
    shards = sorted(path.name for path in folder.glob("*-of-*") if path.suffix in (".safetensors", ".bin"))
    if shards:
        return f"it has {shards[0]}, but no index ({' or '.join(n for n in WEIGHT_NAMES if n.endswith('.json'))})"
    return f"it has none of {', '.join(WEIGHT_NAMES)}; copy or download them, or give the folder that has them"


def looks_local(name: str) -> bool:
    """Whether a model is named by a path rather than by a hub id (`owner/name`)."""
    return os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") != 1


def _unreachable(name: str, settings: Sequence[str]) -> Exception | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    problem = None
    for file in settings:
        try:
            if not isinstance(try_to_load_from_cache(name, file), str):
                hf_hub_download(name, file)
        except Exception as error:  # the hub client raises a dozen unrelated types
            problem = error
        else:
            return None
    return problem
