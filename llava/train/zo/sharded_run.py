"""A run whose processes share the weights: how they are cut, saved and read back. `llava/mezo/sharding` does the rest.

The model is cut when the Trainer would move it to its device: each process has it whole on the host until then. It is
put together again on the host of the main process alone, while a model is saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.mezo.errors import InputError
from llava.mezo.held import is_sharded, write_into
from llava.mezo.names import names_in_files, parameters_by_name
from llava.mezo.sharding.shards import shard_model
from llava.mezo.sharding.whole import whole_on_first
from llava.mezo.tensor_files import TensorFiles
from llava.train.zo.device_settings import DeviceSettings, refuse_placement
from llava.train.zo.journaled_run import JournaledRun
from llava.train.zo.settings import refuse_impossible


class ShardedRun(JournaledRun):
    """A `JournaledRun` that cuts its model into shards where `--zo_shard` says so."""

    @property
    def shares_weights(self) -> bool:
        """Whether each process has a shard of every weight."""
        return DeviceSettings.of(self.args).shard != "none"

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if self.shares_weights and not any(is_sharded(parameter) for parameter in model.parameters()):
            refuse_impossible(self.args)
            refuse_placement(self.args)
            shard_model(model, device)
        super()._move_model_to_device(model, device)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As the base class; all processes take part, and the main one has the whole model meanwhile."""
        with whole_on_first(self.model):
            super().save_model(*args, **kwargs)

    def _save_start(self, folder: Path) -> None:
        with whole_on_first(self.model):
            super()._save_start(folder)

    def _load_weights(self, checkpoint: Path, model: Any) -> None:
        if self.shares_weights:
            read_weights(self.model, checkpoint)
        else:
            super()._load_weights(checkpoint, model)


def read_weights(model: nn.Module, folder: Path) -> None:
    """Each process's shards of what a checkpoint's safetensors files hold. InputError: they lack a trained weight."""
    files, names = TensorFiles(folder), names_in_files(model)
    for name, parameter in parameters_by_name(model).items():
        stored = next((candidate for candidate in names[parameter] if candidate in files), None)
        if stored is not None:
            write_into(parameter, files.read(stored))
        elif parameter.requires_grad:
            raise InputError(f"{folder}: lacks {name} as this run trains it, so it is of a run with other flags")
