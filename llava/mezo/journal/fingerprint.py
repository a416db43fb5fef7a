"""A fingerprint of weights, by which a journal knows the model that it starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hexadecimal) over name, dtype, shape and sha256 of the bytes of each tensor, in the mapping's order."""
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        return combined(pool.map(line, tensors.items()))


def combined(lines: Iterable[str]) -> str:
    """The fingerprint of weights with these lines."""
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def line(item: tuple[str, torch.Tensor]) -> str:
    """What a fingerprint has of a weight and its name."""
    name, tensor = item
    digest = hashlib.sha256()
    for part in _parts(tensor.detach()):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return f"{name} {dtype_name(tensor.dtype)} {list(tensor.shape)} {digest.hexdigest()}\n"


def _parts(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """The elements in order, some megabytes at a time: a tensor elsewhere is not copied here as a whole."""
    return torch.split(tensor.contiguous().view(-1), 2**22) if tensor.numel() else ()


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
