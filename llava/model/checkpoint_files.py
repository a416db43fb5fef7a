"""Files of a checkpoint: its weight files, some of their tensors or only the shapes, and what is wrong with a file.

Knows safetensors and torch files, in one piece or in shards with an index. Torch files are pickles and are
read with `weights_only=True`. Which files exist is looked up in a local folder or, for a hub id, in the hub cache.
"""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import cached_file

from llava.errors import InputError

_POINTER = b"version https://git-lfs"

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


def is_pointer(path: Path) -> bool:
    """Whether a file holds no more than what git-lfs leaves in place of a large one."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def is_replaced(path: Path) -> bool:
    """Whether a file is empty, or a pointer (`is_pointer`)."""
    return path.is_file() and (path.stat().st_size == 0 or is_pointer(path))


def unreadable(path: Path, what: str, reason: object) -> InputError:
    """The error for a file that is there and is not what its name says.

    Args:
        what: it should be, "a file of tensors".
        reason: an exception, or words, of which the first line is shown.
    """
    if path.is_file() and is_pointer(path):
        return InputError(
            f"{path}: a git-lfs pointer in place of the file: run `git lfs pull` where it was cloned, or download it"
        )
    if path.is_file() and path.stat().st_size == 0:
        return InputError(f"{path}: the file is empty; copy or download it again")
    return InputError(f"{path}: cannot be read as {what} ({first_line(reason)}): damaged, or cut off while copying")


def first_line(reason: object) -> str:
    """What an exception says, without the pages that some add; its type if it says nothing."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += f" {lines[1]}"
    kind = f"{type(reason).__name__}: " if isinstance(reason, (KeyError, AttributeError, AssertionError)) else ""
    return (kind + lines[0]).rstrip(".:") if lines else type(reason).__name__


@contextmanager
def usable(what: str) -> Iterator[None]:
    """Turns whatever the library raises of files that it cannot use into one line that begins with `what`.

    A config.json with wrong values makes it raise nearly every type there is. Memory that does not suffice is not the
    files' fault and passes, and so does an `InputError`. The library's table of weights that do not fit is left out:
    whoever loads says of each what is to be said.
    """
    report = logging.getLogger("transformers.modeling_utils")
    without_table = _WithoutTable()
    report.addFilter(without_table)
    try:
        yield
    except (InputError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what} cannot be used ({first_line(error)})") from error
    finally:
        report.removeFilter(without_table)


class _WithoutTable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object; anything else is an InputError that names file and line."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        wrong = InputError(f"{path}: not valid JSON, line {error.lineno}: {error.msg}.")
        raise (unreadable(path, "JSON", error) if is_replaced(path) else wrong) from error
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, "JSON", error) from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a JSON {type(values).__name__}, but must hold an object of names and values")
    return values


def weight_files(name_or_path: str, local_only: bool = False, **hub: Any) -> list[Path]:
    """All files that hold the checkpoint's weights; an empty list if there are none."""
    for name in WEIGHT_NAMES:
        path = find_file(name_or_path, name, local_only, **hub)
        if path is None:
            continue
        if path.suffix != ".json":
            return [path]
        shards = _shards(path)
        paths = [find_file(name_or_path, shard, local_only, **hub) for shard in shards]
        missing = [shard for shard, found in zip(shards, paths, strict=True) if found is None]
        if missing:
            raise InputError(f"{name_or_path}: {name} lists {', '.join(missing)}, which cannot be found.")
        return [found for found in paths if found is not None]
    return []


def _shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f"{index}: has no weight_map that names the file of every weight; copy or download it again")
    return sorted(set(places.values()))


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """Tensors of one weight file, by name, on the CPU, in the dtype they are stored in.

    Raises:
        InputError: when the file is damaged or holds other objects than tensors.
    """
    try:
        return {name: tensor for name, tensor in _iterate(path) if wanted(name)}
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise unreadable(path, "a file of tensors", "other objects are pickled in it, which is not run") from error
    except Exception as error:
        raise unreadable(path, "a file of tensors", error) from error


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
    """Shapes of all tensors of one weight file, by name; safetensors files are not read beyond their header.

    Raises:
        InputError: as `read_tensors`; a safetensors file that is cut off shows it in its header.
    """
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    return {name: shape for name, (shape, _) in headers(path).items()}


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype, in the format's word for it (BF16), of all tensors of a safetensors file, by name."""
    try:
        with safe_open(path, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except Exception as error:  # the library's own, and those of the file system
        raise unreadable(path, "a file of tensors", error) from error
