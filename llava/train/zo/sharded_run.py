"""A run whose processes share the weights: how they are cut, saved and read back. `llava/mezo/sharding` does the rest.

The model is cut when the Trainer would move it to its device: each process has it whole on the host until then. It is
put together again on the host of the main process alone, while a model is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.mezo.errors import InputError
from llava.mezo.held import is_sharded, write_into
from llava.mezo.journal.files import Journal
from llava.mezo.names import names_in_files, parameters_by_name
from llava.mezo.sharding.replay import replay_shards
from llava.mezo.sharding.shards import shard_model
from llava.mezo.sharding.whole import fingerprint_of_shards, whole_on_first
from llava.mezo.tensor_files import TensorFiles
from llava.train.zo.device_settings import DeviceSettings, refuse_placement
from llava.train.zo.journaled_run import JournaledRun
from llava.train.zo.settings import refuse_impossible
from llava.train.zo.starting_point import Parameters


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

    def save_start(self, folder: Path) -> None:
        """As the base class; all processes take part."""
        with whole_on_first(self.model):
            super().save_start(folder)

    def fingerprint_of(self, weights: Mapping[str, torch.Tensor]) -> str:
        """As the base class, of whole weights."""
        return fingerprint_of_shards(weights) if self.shares_weights else super().fingerprint_of(weights)

    def take_steps(self, parameters: Parameters, journal: Journal, steps: int) -> None:
        """As the base class, each process of its own."""
        if self.shares_weights:
            replay_shards(parameters, journal, steps, self.zo.config.kernel)
        else:
            super().take_steps(parameters, journal, steps)

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
