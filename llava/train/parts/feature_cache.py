"""Features of images that a frozen vision tower has seen before, kept in a folder across epochs and runs.

An entry is one tile. Its name is a hash of the tile's pixels, which are what image and preprocessing come to, and of
the weights of the modules that make the features: the tower, and the projector where that is frozen too. So nothing
has to be declared out of date. An entry is one safetensors file that is written elsewhere and then moved into its
place; what does not check when it is read is computed anew. The entries that were not used for the longest time go
first. Several processes and runs may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from llava.errors import InputError
from llava.mezo.durable import write_durably

logger = logging.getLogger(__name__)

GIB = 2**30
FULL_TO = 0.9
"""Share of the limit that is left in use when old entries are removed."""


class FeatureCache:
    """Tensors by key in a folder of limited size.

    Args:
        folder: made if it is missing.
        limit_bytes: the sum of the entries' sizes stays below this.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, limit_bytes: float) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.hits = self.misses = 0
        self._writable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"--mm_feature_cache {folder} cannot be written to ({error.strerror})") from error
        self._size = sum(size for _, size, _ in self._entries())

    def get(self, key: str) -> torch.Tensor | None:
        """The tensor of `key` on the CPU, or None if there is no sound one."""
        path = self._path(key)
        try:
            with safe_open(path, "pt") as file:
                tensor, said = file.get_tensor("features"), file.metadata()
            if said != {"key": key, "checksum": _hash(_bytes(tensor))}:
                raise ValueError("its contents are not what was written")
            os.utime(path)
        except (SafetensorError, OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("%s is computed anew: %s", path, error)
            self.misses += 1
            return None
        self.hits += 1
        return tensor

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor. A folder that cannot be written to any more is given up with a warning, not an error."""
        if not self._writable:
            return
        path = self._path(key)
        tensor = tensor.detach().cpu().contiguous()
        data = save({"features": tensor}, {"key": key, "checksum": _hash(_bytes(tensor))})
        try:
            path.parent.mkdir(exist_ok=True)
            write_durably(path, data, sync=False)  # a damaged entry is noticed, and made again
        except OSError as error:
            self._writable = False
            logger.warning("--mm_feature_cache %s: no more features are kept (%s)", self.folder, error)
            return
        self._size += len(data)
        if self._size > self.limit_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """Remove what was not used for the longest time, as well as what others left unfinished, as far as needed."""
        entries = sorted(self._entries())
        self._size = sum(size for _, size, _ in entries)  # other processes write and remove, too
        for _, size, path in entries:
            if self._size <= FULL_TO * self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            self._size -= size

    def _entries(self) -> Iterable[tuple[float, int, Path]]:
        """(time of last use, size, path) of every file in the cache."""
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process has removed it
                continue
            yield status.st_mtime, status.st_size, path

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class TileFeatures:
    """The cache of what certain modules make of tiles; may be sent to other processes, such as a data loader's.

    Args:
        modules: their weights are part of every key.
    """

    def __init__(self, modules: Iterable[nn.Module], cache: FeatureCache, dtype: torch.dtype | None = None) -> None:
        self.cache = cache
        self.dtype = dtype
        """In which the modules read pixels, where a caller may have them in another one."""
        self._weights = weights_key(modules)

    def key(self, tile: torch.Tensor) -> str:
        """Name of the entry of one tile [3, S, S]."""
        tile = tile if self.dtype is None else tile.to(self.dtype)
        return _hash(self._weights.encode(), f"{tile.dtype} {tuple(tile.shape)}".encode(), _bytes(tile))

    def find(self, tiles: torch.Tensor) -> torch.Tensor | None:
        """Features [n, patches, width] of tiles [n, 3, S, S], on the CPU; None unless all are there."""
        found = []
        for tile in tiles:
            features = self.cache.get(self.key(tile))
            if features is None:
                return None
            found.append(features)
        return torch.stack(found)

    def keep(self, tiles: torch.Tensor, features: torch.Tensor) -> None:
        """Put what the modules gave for these tiles."""
        for tile, own in zip(tiles, features, strict=True):
            self.cache.put(self.key(tile), own)


class CachedEncoder:
    """Pixels [n, 3, S, S] to features [n, patches, width]: tiles that are known are read, the others encoded.

    It stands for `encode`, the forward of `modules` in a row, as a model's `feature_source`.
    """

    def __init__(
        self, encode: Callable[[torch.Tensor], torch.Tensor], modules: Sequence[nn.Module], cache: FeatureCache
    ) -> None:
        self.encode = encode
        self.cache = cache
        self.projected = len(modules) > 1
        self.key = TileFeatures(modules, cache).key

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        keys = [self.key(tile) for tile in images]
        found = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, features in found.items() if features is None]
        if missing:
            computed = self.encode(images[[keys.index(key) for key in missing]])
            for key, features in zip(missing, computed, strict=True):
                self.cache.put(key, features)
                found[key] = features
        return torch.stack([found[key].to(images.device) for key in keys])  # type: ignore[union-attr]


def weights_key(modules: Iterable[nn.Module]) -> str:
    """Hash of all weights of the modules: names, dtypes, shapes and values."""
    parts: list[Any] = []
    for module in modules:
        for name, tensor in module.state_dict().items():
            parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), _bytes(tensor)]
    return _hash(*parts)


def install(network: nn.Module, folder: str, gigabytes: float) -> FeatureCache | None:
    """Let a LLaVA model take the features of its frozen modules from a cache; None if the tower is trained.

    Raises:
        InputError: a folder that cannot be written to, or a model without a vision tower.
    """
    model, modules = _frozen_modules(network, folder)
    if not modules:
        return None
    cache, tower = _open(folder, gigabytes), modules[0]
    encode = tower if len(modules) == 1 else lambda tiles: model.project(tower(tiles))
    model.feature_source = CachedEncoder(encode, modules, cache)
    return cache


def tile_features(network: nn.Module, folder: str, gigabytes: float) -> TileFeatures | None:
    """The cache of a LLaVA model's frozen modules, for those who ask it themselves; as `install` otherwise."""
    _, modules = _frozen_modules(network, folder)
    if not modules:
        return None
    return TileFeatures(modules, _open(folder, gigabytes), next(modules[0].parameters()).dtype)


def _frozen_modules(network: Any, folder: str) -> tuple[Any, list[Any]]:
    """The model, and its tower and projector, from the first on, as far as they are frozen."""
    model: Any = network.get_base_model() if hasattr(network, "get_base_model") else network
    if not hasattr(model, "get_vision_tower") or model.get_vision_tower() is None:
        raise InputError(f"--mm_feature_cache {folder}: the model has no vision tower; leave the flag out")
    modules = [model.get_vision_tower(), model.get_model().mm_projector]
    frozen = list(takewhile(lambda module: not any(p.requires_grad for p in module.parameters()), modules))
    if not frozen:
        logger.warning("--mm_feature_cache has no effect: the vision tower is trained, and its features change")
    return model, frozen


def _open(folder: str, gigabytes: float) -> FeatureCache:
    logger.info("image features are kept in %s (at most %g GiB)", folder, gigabytes)
    return FeatureCache(Path(folder), gigabytes * GIB)


def _hash(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory, whatever its dtype."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
