"""A mark of a base model's files, by which what a run saved without its base knows the weights that it belongs to.

An adapter or a projector on another base of the same shapes loads without a word and answers nonsense. The mark is read
in a moment from a model of any size: of each tensor it has name, dtype, shape, and three of its rows.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava.errors import InputError
from llava.model.checkpoint_files import find_file, read_json, weight_files
from llava.model.own_settings import read_config

logger = logging.getLogger(__name__)

BASE_SHA256 = "base_sha256"
"""Entry of a config.json beside an adapter, a projector or scales: the mark of the base that they were trained on."""


def base_mark(base: str) -> str | None:
    """sha256 (hexadecimal) over all tensors by name, whichever files they are in; None where these are not safetensors.

    Args:
        base: a folder, or a hub id, which is looked for in the cache alone; empty for a model from nowhere.
    """
    try:
        files = weight_files(base, local_only=True) if base else []
    except InputError:
        return None  # files are missing: half a download, which goes on when the model is loaded
    if not files or any(file.suffix != ".safetensors" for file in files):
        return None
    lines = {name: line for file in files for name, line in _lines(file)}
    return hashlib.sha256("".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


def _lines(file: Path) -> list[tuple[str, str]]:
    with safe_open(file, framework="pt") as tensors:
        return [(name, f"{name} {_of_tensor(tensors.get_slice(name))}\n") for name in tensors.keys()]  # noqa: SIM118


def _of_tensor(tensor: Any) -> str:
    """Dtype, shape and hash of the first, the middle and the last row; a vector is one row."""
    shape = tensor.get_shape()
    rows = [0, shape[0] // 2, shape[0] - 1] if len(shape) > 1 and shape[0] else []
    parts = [tensor[row : row + 1] for row in rows] if rows else [tensor[...]]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"{tensor.get_dtype()} {shape} {digest.hexdigest()}"


def compare_bases(path: str, base: str) -> None:
    """A warning where what lies in `path` was trained on another base than `base`.

    Without a mark names decide: a folder that was moved keeps its last name, and the hub's cache has the names of
    models in its paths.
    """
    file = find_file(path, "adapter_config.json")
    named = None if file is None else read_json(file).get("base_model_name_or_path")
    trained_on, given = read_config(path).get(BASE_SHA256), base_mark(base)
    if trained_on and given:
        if trained_on != given:
            logger.warning(
                "%s was trained on %s, which had other weights than %s has, or the same in another precision or "
                "format: on another model its answers make no sense",
                *(path, named or "a base", base),
            )
    elif named and not _is_called(Path(base).absolute(), named):
        logger.warning(
            "%s was trained on %s, by its adapter_config.json, and is put on %s: its answers make sense if these have "
            "the same weights",
            *(path, named, base),
        )


def _is_called(folder: Path, named: str) -> bool:
    return Path(named).name == folder.name or f"models--{named.replace('/', '--')}" in folder.parts
