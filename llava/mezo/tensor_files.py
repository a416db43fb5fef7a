"""Tensors in safetensors files: found by name, read one at a time and written one at a time.

The format (https://github.com/huggingface/safetensors) is a 64-bit length, a JSON header with each tensor's dtype,
shape and place, then the bytes. Written here, one tensor is in memory; the library's writer takes copies of all. The
files are the library's, byte for byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch

_CODES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the order that the library puts tensors in; those of one dtype are in the order of their names."""
_RANKS = {dtype: rank for rank, dtype in enumerate(_CODES)}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
Shapes = dict[str, tuple[torch.dtype, torch.Size]]
"""Dtype and shape by name."""


class TensorFiles:
    """All tensors of the safetensors files of a folder; none where there is no folder."""

    def __init__(self, folder: Path | None) -> None:
        paths = [] if folder is None else sorted(folder.glob("*.safetensors"))
        self.files: dict[Path, Shapes] = {path: _shapes(path) for path in paths}
        """What is in each file, in the file's order."""
        self._file_of = {name: path for path, shapes in self.files.items() for name in shapes}

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def read(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own. KeyError: there is none of this name."""
        from safetensors import safe_open

        with safe_open(self._file_of[name], framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor


def _shapes(path: Path) -> Shapes:
    """ValueError: not a safetensors file, one that is cut off, or one with a dtype that is not known here."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < size <= path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    end = 8 + size + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if path.stat().st_size < end:
        raise ValueError(f"{path} is cut off: it has {path.stat().st_size} of {end} bytes; copy or download it again")
    unknown = {entry["dtype"] for entry in header.values()} - set(_DTYPES)
    if unknown:
        raise ValueError(f"{path} has tensors of dtype {', '.join(sorted(unknown))}; known are {', '.join(_DTYPES)}")
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {name: (_DTYPES[entry["dtype"]], torch.Size(entry["shape"])) for name, entry in ordered}


def write_tensors(path: Path, shapes: Shapes, read: Callable[[str], torch.Tensor]) -> None:
    """Write a safetensors file of these tensors; `read` is asked for one after the other, in the file's order."""
    shapes = dict(sorted(shapes.items(), key=lambda item: (_RANKS[item[1][0]], item[0])))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (dtype, shape) in shapes.items():
        size = shape.numel() * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, shape) in shapes.items():
            tensor = read(name).detach().to(device="cpu", dtype=dtype).contiguous()
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
            file.write(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
