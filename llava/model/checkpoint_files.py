"""Files of a checkpoint: whether it is there, its weight files, some of their tensors or only the shapes.

Knows safetensors and torch files, in one piece or in shards with an index. Torch files are pickles and are
read with `weights_only=True`. Which files exist is looked up in a local folder or, for a hub id, in the hub cache.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import cached_file

from llava.errors import InputError

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_file(name_or_path: str, filename: str, local_only: bool = False, **hub: Any) -> Path | None:
    """A file of a local folder or hub repository, or None where there is no such file or no access to it.

    Args:
        local_only: look for a hub file in the cache alone.
        hub: cache_dir, revision, token, as for `from_pretrained`.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        path = folder / filename
        return path if path.is_file() else None
    if folder.is_absolute():
        return None
    try:
        found = cached_file(
            name_or_path,
            filename,
            local_files_only=local_only or hub.pop("local_files_only", False),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
    except (OSError, ValueError):
        return None
    return Path(found) if found is not None else None


def check_model(name: str, flag: str, variable: str | None = None, settings: Sequence[str] = ("config.json",)) -> None:
    """`InputError` unless `name` is a folder with one of `settings`, or a hub id that is cached or can be reached.

    Args:
        flag, variable: what the message tells to set: the flag and, where a script has one, its variable.
    """
    where = flag if variable is None else f"{variable} or {flag}"
    if Path(name).is_dir():
        if not any((Path(name) / file).exists() for file in settings):
            raise InputError(f"{flag} {name}: the folder has no {' or '.join(settings)}; set {where} to a model folder")
        return
    if looks_local(name):
        raise InputError(f"{flag} {name}: no such folder; set {where} to a model folder or a hub id")
    problem = _unreachable(name, settings)
    if problem is not None:
        raise InputError(
            f"{flag} {name}: not a folder here, not in the hub cache, and the hub does not give it "
            f"({type(problem).__name__}); set {where} to a folder that holds the model, or go online"
        ) from problem


def check_checkpoint(model_path: str, model_base: str | None) -> None:
    """`InputError` unless a checkpoint and, where one is given, the model it belongs to are there."""
    check_model(model_path, "--model-path", settings=("config.json", "adapter_config.json"))
    if model_base is not None:
        check_model(model_base, "--model-base")


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


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON file; what cannot be parsed is an InputError that names file and line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON, line {error.lineno}: {error.msg}.") from error


def weight_files(name_or_path: str, local_only: bool = False, **hub: Any) -> list[Path]:
    """All files that hold the checkpoint's weights; an empty list if there are none."""
    for name in WEIGHT_NAMES:
        path = find_file(name_or_path, name, local_only, **hub)
        if path is None:
            continue
        if path.suffix != ".json":
            return [path]
        shards = sorted(set(read_json(path)["weight_map"].values()))
        paths = [find_file(name_or_path, shard, local_only, **hub) for shard in shards]
        missing = [shard for shard, found in zip(shards, paths, strict=True) if found is None]
        if missing:
            raise InputError(f"{name_or_path}: {name} lists {', '.join(missing)}, which cannot be found.")
        return [found for found in paths if found is not None]
    return []


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """Tensors of one weight file, by name, on the CPU, in the dtype they are stored in.

    Raises:
        InputError: when the file is damaged or holds other objects than tensors.
    """
    try:
        return {name: tensor for name, tensor in _iterate(path) if wanted(name)}
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a file of tensors ({error}).") from error


def _iterate(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)
    else:
        # Only files in torch's zip format can be mapped; older ones are read as a whole.
        mapped = zipfile.is_zipfile(path)
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True, mmap=mapped).items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{path}: entry {name!r} is a {type(tensor).__name__}, not a tensor.")
            yield name, tensor


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of one weight file, by name; safetensors files are not read beyond their header."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
