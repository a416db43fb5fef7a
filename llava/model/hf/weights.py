"""Weights of a checkpoint from its files into others, a shard at a time: the model is never in memory as a whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from llava.errors import InputError
from llava.mezo.durable import follow_umask
from llava.model.checkpoint_files import headers, read_tensors
from llava.model.loading import some

SHARD_BYTES = 5 * 10**9
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A weight in a file, or as it is to be written.

    Attributes:
        shape, dtype: of the weight.
        read: gives it, on the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_weights(files: Sequence[Path]) -> dict[str, Stored]:
    """All weights of a checkpoint's files, by name; read when they are asked for.

    Raises:
        InputError: a file is damaged, or a name is in two files.
    """
    found: dict[str, Stored] = {}
    for path in files:
        own = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
        twice = set(own) & set(found)
        if twice:
            raise InputError(f"{path}: {min(twice)} is in another file of this checkpoint too")
        found |= own
    return found


def _safetensors(path: Path) -> dict[str, Stored]:
    def read(name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as again:
            return again.get_tensor(name)

    found = headers(path)
    unknown = {dtype for _, dtype in found.values()} - set(_DTYPES)
    if unknown:
        raise InputError(f"{path}: has tensors of dtype {min(unknown)}; known are {', '.join(_DTYPES)}")
    return {name: Stored(shape, _DTYPES[dtype], partial(read, name)) for name, (shape, dtype) in found.items()}


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _torch_file(path: Path) -> dict[str, Stored]:
    return {name: Stored(tuple(one.shape), one.dtype, one.contiguous) for name, one in read_tensors(path).items()}


def renamed(weights: Mapping[str, Stored], rename: Callable[[str], str]) -> dict[str, Stored]:
    """The same weights under other names."""
    return {rename(name): weight for name, weight in weights.items()}


def grown(weight: Stored, rows: int) -> Stored:
    """With more rows, each the mean of those there are: no new token is ever the likeliest, as its logit is a mean."""

    def read() -> torch.Tensor:
        table = weight.read()
        mean = table.mean(0, dtype=torch.float32).to(table.dtype)
        return torch.cat([table, mean.expand(rows - len(table), -1)])

    return Stored((rows, *weight.shape[1:]), weight.dtype, read)


def cut(weight: Stored, rows: int) -> Stored:
    """The first rows alone."""
    return Stored((rows, *weight.shape[1:]), weight.dtype, lambda: weight.read()[:rows].clone())


def check_complete(weights: Mapping[str, Stored], shapes: Mapping[str, Sequence[int]], source: str) -> None:
    """`InputError` unless the weights are those of a model: every one, of the right shape, and no other.

    Args:
        shapes: of the model's weights; those that it may lack, as a head tied to the embeddings, are not in it.
    """
    missing = sorted(set(shapes) - set(weights))
    if missing:
        raise InputError(f"{source}: the checkpoint lacks {len(missing)} weights: {some(missing)}. Is it complete?")
    unknown = sorted(set(weights) - set(shapes))
    if unknown:
        raise InputError(
            f"{source}: {len(unknown)} weights have no place in the model that config.json describes: {some(unknown)}"
        )
    for name, shape in shapes.items():
        if weights[name].shape != tuple(shape):
            raise InputError(
                f"{source}: {name} is {list(weights[name].shape)}, but {list(shape)} by config.json: are they of one "
                "model?"
            )


def write_shards(folder: Path, weights: Mapping[str, Stored], limit: int = SHARD_BYTES) -> None:
    """Write safetensors files of at most `limit` bytes, where no single weight is larger, and their index.

    One file alone is model.safetensors, and has no index.
    """
    shards = list(_divided(weights, limit))
    places: dict[str, str] = {}
    size = sum(weight.size for weight in weights.values())
    with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:
        for number, names in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
            save_file({key: weights[key].read() for key in names}, folder / name, metadata={"format": "pt"})
            follow_umask(folder / name)
            places |= dict.fromkeys(names, name)
            bar.update(sum(weights[key].size for key in names))
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _divided(weights: Mapping[str, Stored], limit: int) -> Iterable[list[str]]:
    names: list[str] = []
    size = 0
    for name, weight in weights.items():
        if names and size + weight.size > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += weight.size
    yield names
