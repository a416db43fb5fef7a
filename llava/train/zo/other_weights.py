"""Trained weights that the base trainer's checkpoints leave out: LLaVA-NeXT saves of a LoRA run the adapter alone.

`MeZOTrainer` writes them into a file of their own, so that a run resumes and replays. Where the base trainer saves
all that is trained there are none.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from llava.mezo.held import write_into
from llava.mezo.names import names_in_files, parameters_by_name
from llava.mezo.tensor_files import TensorFiles, write_tensors

FILE = "trained.safetensors"


def save_other_weights(model: nn.Module, folder: Path) -> None:
    """Write the trained weights that the folder's safetensors files lack, if any, by canonical name."""
    files, names = TensorFiles(folder), names_in_files(model)
    rest = {
        name: parameter
        for name, parameter in parameters_by_name(model).items()
        if parameter.requires_grad and not any(saved in files for saved in names[parameter])
    }
    if rest:
        folder.mkdir(parents=True, exist_ok=True)
        shapes = {name: (parameter.dtype, parameter.shape) for name, parameter in rest.items()}
        write_tensors(folder / FILE, shapes, rest.__getitem__)


def load_other_weights(model: nn.Module, folder: Path) -> None:
    """Read back what `save_other_weights` wrote, if anything."""
    if not (folder / FILE).exists():
        return
    files, parameters = TensorFiles(folder), parameters_by_name(model)
    with torch.no_grad():
        for name in files.files[folder / FILE]:
            write_into(parameters[name], files.read(name))
