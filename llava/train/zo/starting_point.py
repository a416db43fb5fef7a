"""Where a run with a journal starts: its base model, the journal it branches off from, the weights before its records.

In OUTPUT_DIR/mezo_journal, beside what `llava.mezo.journal.files` keeps there, the folder model/ holds what a saved
model of this run has beyond its base: configuration and tokenizer and, where the base lacks a trained weight (LoRA, a
new projector), all that a checkpoint holds before the first step.
"""

from __future__ import annotations

import copy
import logging
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from llava.mezo.errors import InputError
from llava.mezo.held import agreed, has_values, is_sharded, write_into
from llava.mezo.journal.base_model import MODEL, folder_of, recorded_name
from llava.mezo.journal.files import HEADER, JOURNAL_FOLDER, PARENT, Journal
from llava.mezo.journal.locking import FolderLock
from llava.mezo.messages import exchanged, raising_together
from llava.mezo.names import names_in_files, parameters_by_name
from llava.mezo.tensor_files import TensorFiles
from llava.mezo.tensor_sizes import tensor_sizes
from llava.train.zo.disks import Disks, patience_of_launcher
from llava.train.zo.resume_points import branching_point, split
from llava.train.zo.settings import Settings, in_flags

logger = logging.getLogger(__name__)

Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class StartingPoint:
    """What a run's journal builds on."""

    folder: Path
    """The journal's."""
    model: str
    """Folder or hub id of the base model; empty for one that came from nowhere."""
    fingerprint: str
    """Of the trained weights before the first record."""
    stored: dict[str, list[str]]
    """Names in the base model's files of those weights that do not go by their canonical name alone."""
    sizes: tuple[float, ...] | None
    """Of the trained weights' noise, from the base model."""
    parent: Journal | None
    """The journal it branches off from, after `parent_steps` of its records."""
    parent_steps: int
    lock: FolderLock | None
    """The main process's, and that of a rank that writes the journal to another disk."""

    @property
    def weights(self) -> Path | None:
        """Folder with the weights before the first step; None for a model that came from nowhere."""
        return _weights_folder(self.folder / MODEL, self.model)


class WeightsOfRun(Protocol):
    """What is done with a run's weights, wherever its processes have them."""

    def save_start(self, folder: Path) -> None:
        """Write what a checkpoint of the model holds into a folder."""

    def fingerprint_of(self, weights: Mapping[str, torch.Tensor]) -> str:
        """See `fingerprint.py`."""

    def take_steps(self, parameters: Parameters, journal: Journal, steps: int) -> None:
        """Let the parameters, which are those before the journal's first step, become those after so many."""


def prepare(
    model: nn.Module,
    args: Any,
    zo: Settings,
    resume: bool,
    run: WeightsOfRun,
    wait: Callable[[], None],
    tokenizer: Any,
    disks: Disks,
) -> StartingPoint | None:
    """The starting point of a run, and the model at it, before anything is loaded over that.

    Args:
        args: transformers' training arguments.
        resume: whether the run goes on; if not, it must not have a journal yet.
        wait: for all ranks.
        tokenizer: is saved with the model, if there is one.
        disks: which ranks see what the main process writes.

    Returns:
        None for a run that goes on from a checkpoint of one without journal.

    Raises:
        InputError: there is a journal of another run, `--zo_from_journal` does not fit, or ranks have other weights.
        JournalError: another process writes it.
    """
    folder = Path(args.output_dir) / JOURNAL_FOLDER
    exists = (folder / HEADER).exists()
    if exists and not resume:
        raise InputError(
            f"{folder} is the journal of another run: choose another --output_dir, pass the folder as "
            "resume_from_checkpoint to go on with it, or remove it"
        )
    if resume and not exists:
        logger.warning("%s has no journal: this run goes on without one, with checkpoints alone", folder.parent)
        return None
    shared = any(map(is_sharded, model.parameters()))
    lock = _locked(folder, disks)
    main = lock is not None and disks.rank == 0
    try:
        base = _BaseFiles(model, folder / MODEL)
        if main and not exists:
            base.begin(zo.from_journal)
        wait()
        disks.copy(folder, [MODEL])
        base.load()  # an adapter's random start need not come out the same again
        if not exists and (shared or main):  # weights in shards are put together by all ranks
            base.complete(zo.from_journal, run.save_start, tokenizer, main)
        wait()
        disks.copy(folder, [MODEL])
        stored = base.stored(base.trained)  # before a branch changes the weights
        parent = str(folder / PARENT) if exists and (folder / PARENT).exists() else zo.from_journal
        journal, steps = (None, 0) if parent is None else _branch_off(parent, model, run)
        if journal is not None and not exists:
            base.compare(journal)
        return StartingPoint(
            folder=folder,
            model=base.name,
            fingerprint=_common_fingerprint(base, run, disks),
            stored=stored,
            sizes=_sizes(model, zo, base.trained),
            parent=journal,
            parent_steps=steps,
            lock=lock,
        )
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _sizes(model: nn.Module, zo: Settings, trained: Parameters) -> tuple[float, ...] | None:
    with in_flags():
        return tensor_sizes(zo.config.tensor_scales, model, list(trained.values()))


def _locked(folder: Path, disks: Disks) -> FolderLock | None:
    """The lock of the journal's folder, of the rank that writes it."""
    with raising_together(disks.device):
        return FolderLock(folder, patience_of_launcher()) if disks.is_owner else None


class _BaseFiles:
    """Files with a model's weights before the first step: its checkpoint's, or those in `overlay`."""

    def __init__(self, model: Any, overlay: Path) -> None:
        self.model = model
        self.overlay = overlay
        self.name = recorded_name(str(getattr(getattr(model, "config", None), "_name_or_path", "") or ""))
        self.parameters = parameters_by_name(model)
        self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}

    def begin(self, branch: str | None) -> None:
        """An empty overlay, or that of the run that is branched off from."""
        shutil.rmtree(self.overlay, ignore_errors=True)
        theirs = None if branch is None else split(branch)[0] / MODEL
        if theirs is not None and TensorFiles(theirs).files:
            shutil.copytree(theirs, self.overlay)

    def load(self) -> None:
        """The overlay's weights, if it has any, into the model. InputError: this has others."""
        files = TensorFiles(self.overlay)
        stored = self.stored(self.parameters) if files.files else {}
        with torch.no_grad():
            for name, parameter in self.parameters.items() if files.files else ():
                there = stored.get(name, [name])[0]
                if there not in files:
                    continue
                value = files.read(there)
                if value.shape != parameter.shape:
                    raise InputError(
                        f"{self.overlay}: {name} is {list(value.shape)} there, and {list(parameter.shape)} in this "
                        "run: give the flags of the run that it is of"
                    )
                write_into(parameter, value)

    def compare(self, journal: Journal) -> None:
        """A warning about another base, which no fingerprint tells of where the journal has all that was trained."""
        theirs = journal.header.model
        if TensorFiles(self.overlay).files and Path(theirs).name != Path(self.name).name:
            logger.warning(
                "%s is of a run on %s, and this one is on %s: what was trained there makes sense if these have the "
                "same weights",
                *(journal.folder, theirs, self.name),
            )

    def complete(self, branch: str | None, save: Callable[[Path], None], tokenizer: Any, first: bool) -> None:
        """Put into the overlay what the checkpoint lacks.

        Args:
            first: of the ranks that are here: all of those that weights are in shards of, or the only one.
        """
        missing = agreed(self._uncovered(), self.parameters.values())
        if missing is None:
            if first:
                self._describe(tokenizer)
        elif branch is not None:
            raise InputError(
                f"--zo_from_journal {branch}: this run trains {missing!r}, which that run's "
                "model does not have. Write its step with llava.mezo.replay and start from there"
            )
        else:
            save(self.overlay)

    def _describe(self, tokenizer: Any) -> None:
        """What a saved model of the run has beside its weights; training alone has no use for a cache."""
        config, generation = copy.deepcopy(self.model.config), getattr(self.model, "generation_config", None)
        config.use_cache = True
        self.overlay.mkdir(parents=True, exist_ok=True)
        for part in (config, generation, tokenizer):
            if part is not None:
                part.save_pretrained(self.overlay)

    def stored(self, parameters: Parameters) -> dict[str, list[str]]:
        """Names in the files of those parameters that do not go by their canonical name alone."""
        files = TensorFiles(_weights_folder(self.overlay, self.name))
        candidates = names_in_files(self.model)
        stored = {}
        for name, parameter in parameters.items():
            found = [candidate for candidate in candidates[parameter] if candidate in files]
            if found and found != [name]:
                stored[name] = found
        return stored

    def _uncovered(self) -> str | None:
        """A trained parameter that the files do not hold with the value it starts from; None if there is none."""
        files, stored = TensorFiles(_weights_folder(self.overlay, self.name)), self.stored(self.trained)
        for name, parameter in self.trained.items():
            there = stored.get(name, [name])[0]
            if there not in files:
                return name
            value = files.read(there).to(parameter.dtype)
            if value.shape != parameter.shape or not has_values(parameter, value):
                return name
        return None


def _common_fingerprint(base: _BaseFiles, run: WeightsOfRun, disks: Disks) -> str:
    """Of the trained weights before the first step, the same on all ranks.

    Raises:
        InputError: on every rank, with the ranks whose weights are not the main process's.
    """
    mark = run.fingerprint_of({name: p.detach() for name, p in base.trained.items()})
    found = [told.decode().split(" ", 1) for told in exchanged(f"{mark} {socket.gethostname()}".encode(), disks.device)]
    others = [f"rank {rank} ({host})" for rank, (theirs, host) in enumerate(found) if theirs != found[0][0]]
    if others:
        raise InputError(
            f"{', '.join(others)}: its copy of the base model has other weights (a fingerprint of "
            f"{found[int(others[0].split()[1])][0][:16]}...) than that of rank 0, {base.name} ({found[0][0][:16]}...). "
            "Copy the model's files from there"
        )
    return mark


def _weights_folder(overlay: Path, model: str) -> Path | None:
    if TensorFiles(overlay).files:
        return overlay
    return folder_of(model) if model else None


def _branch_off(where: str, model: nn.Module, run: WeightsOfRun) -> tuple[Journal, int]:
    """Weights of another run's step into the model; that run's journal and the number of its steps."""
    journal, steps = branching_point(where)
    parameters = parameters_by_name(model)
    unknown = [name for name in journal.header.names if name not in parameters]
    if unknown:
        raise InputError(f"--zo_from_journal {where}: that run trained {unknown[0]!r}, which this model lacks")
    run.take_steps(parameters, journal, steps)
    return journal, steps
