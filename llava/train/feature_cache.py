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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from llava.errors import InputError

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
        except FileNotFoundError:
            tensor = None
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("%s is computed anew: %s", path, error)
            tensor = None
        if tensor is None:
            self.misses += 1
        else:
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
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as draft:
                try:
                    draft.write(data)
                    draft.close()
                    os.replace(draft.name, path)
                except BaseException:
                    os.unlink(draft.name)
                    raise
        except OSError as error:
            self._writable = False
            logger.warning("--mm_feature_cache %s: no more features are kept (%s)", self.folder, error)
            return
        self._size += len(data)
        if self._size > self.limit_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """Remove the entries that were used last, and what other processes left unfinished, as far as needed."""
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


class CachedEncoder:
    """Pixels [n, 3, S, S] to features [n, patches, width]: tiles that are known are read, the others encoded.

    It stands for `encode`, the forward of `modules` in a row. The last batch is remembered in memory, for the 2n
    forwards of a zeroth-order step.
    """

    def __init__(
        self, encode: Callable[[torch.Tensor], torch.Tensor], modules: Iterable[nn.Module], cache: FeatureCache
    ) -> None:
        self.encode = encode
        self.cache = cache
        self._weights = fingerprint(modules)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self._last is not None and _equal(self._last[0], images):
            return self._last[1]
        keys = [self.key(tile) for tile in images]
        found = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, features in found.items() if features is None]
        if missing:
            computed = self.encode(images[[keys.index(key) for key in missing]])
            for key, features in zip(missing, computed, strict=True):
                self.cache.put(key, features)
                found[key] = features
        features = torch.stack([found[key].to(images.device) for key in keys])  # type: ignore[union-attr]
        self._last = images, features
        return features

    def key(self, tile: torch.Tensor) -> str:
        """Name of the entry of one tile [3, S, S]."""
        return _hash(self._weights.encode(), f"{tile.dtype} {tuple(tile.shape)}".encode(), _bytes(tile))


def fingerprint(modules: Iterable[nn.Module]) -> str:
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
    model = network.get_base_model() if hasattr(network, "get_base_model") else network
    if not hasattr(model, "get_vision_tower") or model.get_vision_tower() is None:
        raise InputError(f"--mm_feature_cache {folder}: the model has no vision tower; leave the flag out")
    tower, projector = model.get_vision_tower(), model.get_model().mm_projector
    if any(p.requires_grad for p in tower.parameters()):
        logger.warning("--mm_feature_cache has no effect: the vision tower is trained, and its features change")
        return None
    cache = FeatureCache(Path(folder), gigabytes * GIB)
    if any(p.requires_grad for p in projector.parameters()):
        tower.forward = CachedEncoder(tower.forward, [tower], cache)
    else:
        model.encode_images = CachedEncoder(model.encode_images, [tower, projector], cache)
    logger.info("image features are kept in %s (at most %g GiB)", folder, gigabytes)
    return cache


def _hash(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory, whatever its dtype."""
    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
