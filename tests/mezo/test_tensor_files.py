"""Tensors written one at a time: the files are those of the library, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.mezo.tensor_files import _CODES, TensorFiles, write_tensors


@pytest.mark.parametrize("count", range(1, 12))
def test_files_are_those_of_the_library(count: int, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(count)
    tensors = {}
    for number, dtype in enumerate([*_CODES, torch.bfloat16, torch.float32][:: 1 if count % 2 else -1][:count]):
        shape = ((), (3, 5), (0, 2), (1,))[number % 4]
        tensors[f"{'zbäa'[number % 4]}.{number}"] = torch.randint(0, 2, shape, generator=draw).to(dtype)
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in reversed(tensors.items())}
    write_tensors(tmp_path / "ours.safetensors", shapes, tensors.__getitem__)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    files = TensorFiles(tmp_path)
    assert all(torch.equal(files.read(name), value) for name, value in tensors.items())
    assert load_file(tmp_path / "ours.safetensors").keys() == tensors.keys()
