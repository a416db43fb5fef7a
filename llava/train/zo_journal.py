"""The journal of a MeZO run inside the HF Trainer: where it starts, and how a run goes on from it.

In OUTPUT_DIR/mezo_journal, beside what `llava.mezo.journal` keeps there:

    model/       what a saved model of this run has beyond its base: the configuration and, where the base lacks a
                 trained weight (LoRA, a new projector), all that a checkpoint holds before the first step
    resume-N/    state of the Trainer after N steps (scheduler, generators, log), without weights; one, every minute

A run that was stopped goes on from resume-N: its weights are those of the base model, or of a later full checkpoint,
with the records applied. Steps that were recorded after N run through the Trainer's loop once more, except that
nothing is measured, so that whatever should have been logged, evaluated and saved there is.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer
from transformers.trainer import TRAINER_STATE_NAME

from llava.errors import InputError
from llava.mezo.base_model import MODEL, BaseModel, folder_of
from llava.mezo.fingerprint import fingerprint
from llava.mezo.journal import HEADER, PARENT, Journal
from llava.mezo.journal_format import JournalError
from llava.mezo.locking import FolderLock
from llava.mezo.names import names_in_files, parameters_by_name
from llava.mezo.replay import Replay
from llava.mezo.tensor_files import TensorFiles
from llava.mezo.tensor_sizes import tensor_sizes
from llava.train import state
from llava.train.resume_points import JOURNAL_FOLDER, full_checkpoint, has_optimizer, resume_points, steps_of
from llava.train.zo_arguments import mezo_config

if TYPE_CHECKING:
    from llava.train.mezo_trainer import MeZOTrainer

logger = logging.getLogger(__name__)

RANDOM_STATES = "rng_state"


class RunJournal:
    """The journal of one training run."""

    def __init__(self, trainer: MeZOTrainer) -> None:
        self.trainer = trainer
        self.folder = Path(trainer.args.output_dir) / JOURNAL_FOLDER
        config = getattr(trainer.model, "config", None)
        self.model = str(getattr(config, "_name_or_path", "") or "")
        self.branch: str | None = getattr(trainer.args, "zo_from_journal", None)
        self.parent: Journal | None = None
        self.parent_steps = 0
        self.stored: dict[str, list[str]] = {}
        self.fingerprint = ""
        self.sizes: tuple[float, ...] | None = None
        """Of the trained weights' noise, from the base model."""
        self.lock: FolderLock | None = None
        self.prepared = False

    def prepare(self, resume: str | bool | None) -> str | bool | None:
        """Look at the base model, before anything is loaded over it.

        Args:
            resume: where the run goes on, as the Trainer takes it, or this journal's folder; if nowhere, the run must
                not have a journal yet.

        Returns:
            The same for the Trainer: None for the folder, since all recorded steps go through the loop then.

        A checkpoint of a run without journal leaves this one unprepared.
        """
        exists = (self.folder / HEADER).exists()
        if exists and not resume:
            raise InputError(
                f"{self.folder} is the journal of another run: choose another --output_dir, pass the folder as "
                "resume_from_checkpoint to go on with it, or remove it"
            )
        if resume and not exists:
            logger.warning(
                "%s has no journal: this run goes on without one, with checkpoints alone", self.folder.parent
            )
            return resume
        main, trained, overlay = self.trainer.args.process_index == 0, self._trained(), self.folder / MODEL
        if main:
            self.lock = FolderLock(self.folder)
        if main and not exists:
            shutil.rmtree(overlay, ignore_errors=True)
            if self.branch is not None and TensorFiles(Path(_split(self.branch)[0]) / MODEL).files:
                shutil.copytree(Path(_split(self.branch)[0]) / MODEL, overlay)
        self.trainer.accelerator.wait_for_everyone()
        if TensorFiles(overlay).files:  # an adapter's random start need not come out the same again
            self._load(overlay)
        if main and not exists:
            self._save_model_files(overlay, trained)
        self.trainer.accelerator.wait_for_everyone()
        self.stored = self._stored(self._source(), trained)
        if exists and (self.folder / PARENT).exists():
            self._start_from(str(self.folder / PARENT))
        elif self.branch is not None:
            self._start_from(self.branch)
        self.fingerprint = fingerprint({name: p.detach() for name, p in trained.items()})
        self.sizes = tensor_sizes(
            mezo_config(self.trainer.args).tensor_scales, self.trainer.model, list(trained.values())
        )
        self.prepared = True
        return None if resume and str(resume) == str(self.folder) else resume

    def open(self) -> Journal:
        """The journal, once the optimizer is there; written by the main process, followed by the others."""
        header = self.trainer.mezo.journal_header(self.model, self.fingerprint, self.stored)
        with self.trainer.args.main_process_first(local=False):
            if self.trainer.args.process_index == 0:
                journal = Journal.open(self.folder, header, self.parent, self.parent_steps, self.lock)
                if journal.records:
                    logger.warning(
                        "%s has %d steps, which this run goes on from: they keep the data and learning rates of then. "
                        "For a new run choose another --output_dir",
                        self.folder,
                        len(journal.records),
                    )
            else:
                journal = Journal.follow(self.folder, header)
        journal.sync_steps = getattr(self.trainer.args, "zo_journal_sync_steps", None)
        return journal

    def full_checkpoint(self, resume: Path) -> Path | None:
        """The checkpoint with weights to resume from; None when they come from the base model and the records."""
        if resume.parent != self.folder:
            return resume
        return full_checkpoint(self.folder.parent, steps_of(resume))

    def wrong(self, error: JournalError) -> InputError:
        """The error as commands show it."""
        return InputError(str(error))

    def load(self, resume: Path, full: Path | None) -> None:
        """State and weights at a resume point, or at a full checkpoint.

        Args:
            full: the checkpoint whose weights, optimizer and scheduler are loaded already; None: those of the base.
        """
        mezo, step = self.trainer.mezo, steps_of(resume)
        have = 0 if mezo.journal is None else len(mezo.journal.records)
        if step > have:
            raise InputError(
                f"{resume} is of step {step}, but {self.folder} has {have} steps. Start a new run from the checkpoint "
                "(--model_name_or_path), or go on without a journal (--zo_journal False)"
            )
        if full is not None and not has_optimizer(full):
            raise InputError(f"{full} was saved without its optimizer (--save_only_model): a run cannot go on from it")
        if resume != full:
            Optimizer.load_state_dict(mezo, state.load_state(resume, "optimizer") or {})
            self.trainer.lr_scheduler.load_state_dict(state.load_state(resume, "scheduler") or {})
        mezo.catch_up(steps_of(full), step)

    def save_resume_point(self) -> None:
        """State of the Trainer after the steps that are done; the older one goes once this one is on the disk."""
        trainer, step = self.trainer, self.trainer.state.global_step
        if trainer.args.world_size == 1:
            trainer.store_flos()  # a collective operation otherwise
        if trainer.mezo.journal is not None:
            trainer.mezo.journal.sync()
        folder, partial = self.folder / f"resume-{step}", self.folder / "resume.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        state.save_state(state.random_states(), partial, RANDOM_STATES)  # a base trainer may write a pickle
        state.save_state(Optimizer.state_dict(trainer.mezo), partial, "optimizer")
        state.save_state(trainer.lr_scheduler.state_dict(), partial, "scheduler")
        trainer.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(folder)
        for path in resume_points(self.folder):
            if path != folder:
                shutil.rmtree(path, ignore_errors=True)

    def load_random_states(self, resume: Path) -> bool:
        """Random generators as they were at a resume point; False for a full checkpoint, which has its own."""
        if resume.parent != self.folder:
            return False
        # those of the main process; nothing that other ranks draw from is saved
        states = state.load_state(resume, RANDOM_STATES) if self.trainer.args.process_index == 0 else None
        if states is not None:
            state.set_random_states(states)
        return True

    def load_best(self) -> None:
        """The weights of the best evaluation into the model, by `metric_for_best_model`; the first of equal ones."""
        args = self.trainer.args
        key = "eval_" + args.metric_for_best_model.removeprefix("eval_")
        found = [(entry[key], entry["step"]) for entry in self.trainer.state.log_history if key in entry]
        if not found:
            logger.warning("--load_best_model_at_end: no evaluation gave %s; the last weights are kept", key)
            return
        best, step = (max if args.greater_is_better else min)(found, key=lambda pair: pair[0])
        logger.info("the best %s is %s, at step %d; its weights are taken", key, best, step)
        parameters = parameters_by_name(self.trainer.model)
        journal = Journal.read(self.folder)
        base = BaseModel(self._source() or self.folder / MODEL, journal)
        device = next(iter(parameters.values())).device
        replay = Replay(journal, lambda name: base.read(name).to(device), args.zo_kernel)
        replay.advance(step)
        replay.copy_into(parameters)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """Canonical name -> parameter, in the order of their numbers."""
        return {name: p for name, p in parameters_by_name(self.trainer.model).items() if p.requires_grad}

    def _source(self) -> Path | None:
        """Folder with the weights before the first step; None for a model that came from nowhere."""
        overlay = self.folder / MODEL
        if TensorFiles(overlay).files:
            return overlay
        return folder_of(self.model) if self.model else None

    def _save_model_files(self, overlay: Path, trained: dict[str, torch.nn.Parameter]) -> None:
        missing = self._uncovered(trained)
        if missing is None:
            overlay.mkdir(parents=True, exist_ok=True)
            self.trainer.model.config.save_pretrained(overlay)
        elif self.branch is not None:
            raise InputError(
                f"--zo_from_journal {self.branch}: this run trains {missing!r}, which that run's "
                "model does not have. Write its step with llava.mezo.replay and start from there"
            )
        else:
            self.trainer._save(str(overlay))

    def _uncovered(self, trained: dict[str, torch.nn.Parameter]) -> str | None:
        """A trained parameter that the files do not hold with the value it starts from; None if there is none."""
        files = TensorFiles(self._source())
        stored = self._stored(self._source(), trained)
        for name, parameter in trained.items():
            there = stored.get(name, [name])[0]
            if there not in files:
                return name
            value = files.read(there).to(parameter.dtype)
            if value.shape != parameter.shape or not torch.equal(value, parameter.detach().cpu()):
                return name
        return None

    def _stored(self, folder: Path | None, parameters: dict[str, torch.nn.Parameter]) -> dict[str, list[str]]:
        """Names in the files of those parameters that do not go by their canonical name alone."""
        files = TensorFiles(folder)
        candidates = names_in_files(self.trainer.model)
        stored = {}
        for name, parameter in parameters.items():
            found = [candidate for candidate in candidates[parameter] if candidate in files]
            if found and found != [name]:
                stored[name] = found
        return stored

    def _load(self, overlay: Path) -> None:
        everything = parameters_by_name(self.trainer.model)
        files, stored = TensorFiles(overlay), self._stored(overlay, everything)
        with torch.no_grad():
            for name, parameter in everything.items():
                there = stored.get(name, [name])[0]
                if there in files:
                    parameter.copy_(files.read(there))

    def _start_from(self, where: str) -> None:
        """Weights of another run's step into the model."""
        folder, step = _split(where)
        self.parent = Journal.read(Path(folder))
        self.parent_steps = len(self.parent.records) if step is None else step
        if self.parent_steps > len(self.parent.records):
            raise InputError(f"--zo_from_journal {where}: that journal has {len(self.parent.records)} steps")
        parameters = parameters_by_name(self.trainer.model)
        unknown = [name for name in self.parent.header.names if name not in parameters]
        if unknown:
            raise InputError(f"--zo_from_journal {where}: that run trained {unknown[0]!r}, which this model lacks")
        replay = Replay(self.parent, lambda name: parameters[name].detach().clone(), self.trainer.args.zo_kernel)
        replay.advance(self.parent_steps)
        replay.copy_into(parameters)


def _split(where: str) -> tuple[str, int | None]:
    """DIR and N of DIR:N, N None for DIR alone."""
    folder, colon, step = where.rpartition(":")
    named, number = (folder, int(step)) if colon and step.isdigit() else (where, None)
    if not (Path(named) / HEADER).exists():
        raise InputError(f"--zo_from_journal {where}: give DIR or DIR:N, DIR the mezo_journal folder of a run")
    return named, number
