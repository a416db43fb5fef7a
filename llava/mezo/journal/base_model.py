"""The checkpoint that a journal starts from: its weights by canonical name, and a checkpoint with other ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from llava.mezo.errors import JournalError
from llava.mezo.journal.files import Journal
from llava.mezo.tensor_files import TensorFiles, write_tensors

MODEL = "model"
"""Folder of a journal with the files of a saved model that the base does not have: its configuration at least."""
DESCRIBES = (".json", ".txt", ".model", ".jinja")
"""Files of configuration and tokenizer, the index of shards among them."""
OF_A_RUN = ("trainer_state", "report", "training_args", "optimizer", "scheduler", "rng_state")
"""Beginnings of names of files that tell how a model was trained: they are another run's."""


def folder_of(model: str, download: bool = False) -> Path | None:
    """The folder of a model: `model` itself or, for a hub id, its snapshot in the cache; None if it is not there.

    Args:
        download: fetch a hub id that is not there.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    if (Path(model) / "config.json").is_file():
        return Path(model)
    if download and _may_be_hub_id(model):
        return Path(snapshot_download(model))
    try:
        config = try_to_load_from_cache(model, "config.json")
    except ValueError:  # a path is no hub id
        return None
    return Path(config).parent if isinstance(config, str) else None


def _may_be_hub_id(model: str) -> bool:
    """Whether a name has the form OWNER/NAME."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~"))


def recorded_name(model: str) -> str:
    """What a journal calls a model: a folder by its absolute path, which is found from anywhere; a hub id as it is."""
    return str(Path(model).absolute()) if model and Path(model).is_dir() else model


def recorded_model(journal: Journal) -> str:
    """The model that a journal says it starts from, as it can be found now.

    A relative folder, of journals before 2026-11-27, is looked for in the working directory and in every folder
    that the journal lies in; the fingerprint tells whether it is the one.

    Raises:
        JournalError: a folder that is not there.
    """
    name = journal.header.model
    if not name or folder_of(name) is not None:
        return name
    for above in journal.folder.absolute().parents:
        if (above / name / "config.json").is_file():
            return str(above / name)
    if _may_be_hub_id(name):
        return name  # it may be fetched
    below = "" if Path(name).is_absolute() else f", neither in {Path.cwd()} nor in a folder that the journal lies in"
    raise JournalError(f"{journal.folder} starts from the model {name}, which is not there{below}: give its folder")


class BaseModel:
    """Files of a base model, overlaid by those in a journal's folder `model`.

    Args:
        base: the model's folder.

    Raises:
        JournalError: a trained weight is in neither folder's safetensors files.
    """

    def __init__(self, base: Path, journal: Journal) -> None:
        self.overlay = journal.folder / MODEL
        own = TensorFiles(self.overlay)
        self.tensors = own if own.files else TensorFiles(base)
        self.base = self.overlay if own.files else base
        self.stored = {name: names for one in journal.chain() for name, names in one.header.stored.items()}
        self._check(journal)

    def read(self, name: str) -> torch.Tensor:
        """The tensor of a canonical name."""
        return self.tensors.read(self._names_of(name)[0])

    def write(
        self, folder: Path, names: Iterable[str], weight: Callable[[str], torch.Tensor], dtype: torch.dtype | None
    ) -> None:
        """A checkpoint in `folder`: `weight` gives the trained ones, `names`; of others a base's are put in `dtype`."""
        own = self.base == self.overlay  # which the run wrote as it had them
        folder.mkdir(parents=True, exist_ok=True)
        trained = {stored: name for name in names for stored in self._names_of(name)}

        def read(name: str) -> torch.Tensor:
            return weight(trained[name]) if name in trained else self.tensors.read(name)

        def in_dtype(stored: torch.dtype) -> torch.dtype:
            return stored if own or dtype is None or not stored.is_floating_point else dtype

        for path, tensors in self.tensors.files.items():
            shapes = {name: (in_dtype(stored), shape) for name, (stored, shape) in tensors.items()}
            write_tensors(folder / path.name, shapes, read)
        for source in (self.base, self.overlay):
            for path in source.iterdir() if source.is_dir() else ():
                if path.suffix in DESCRIBES and not path.name.startswith(OF_A_RUN):
                    shutil.copyfile(path, folder / path.name)

    def _names_of(self, name: str) -> list[str]:
        """What a parameter is called in the files."""
        return self.stored.get(name, [name])

    def _check(self, journal: Journal) -> None:
        for one in journal.chain():
            for name in one.header.names:
                stored = self._names_of(name)[0]
                if stored not in self.tensors:
                    raise JournalError(
                        f"{self.base} has no tensor {stored!r} (safetensors files), which the run trained"
                    )
