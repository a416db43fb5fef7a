"""What runs leave in their folders, read to be compared bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def weights(folder: Path, files: str = "*.safetensors") -> dict[str, torch.Tensor]:
    """All tensors of the folder's own files, by name."""
    found = {name: tensor for file in folder.glob(files) for name, tensor in load_file(file).items()}
    assert found, f"{folder} has no {files}"
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether the same names have the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def report_of(folder: Path) -> dict[str, Any]:
    """A finished run's report."""
    return _json(folder / "report.json")


def state_of(folder: Path) -> dict[str, Any]:
    """The trainer's state at the end of a run, or at a checkpoint; `log_history` has its log."""
    return _json(folder / "trainer_state.json")


def logged_steps(folder: Path) -> list[dict[str, Any]]:
    """The log's entries of steps."""
    return [entry for entry in state_of(folder)["log_history"] if "loss" in entry]


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found
