"""A run with a journal inside the HF Trainer: how it starts, is recorded, saved, and goes on.

In OUTPUT_DIR/mezo_journal, beside what `llava.mezo.journal.files` and `starting_point.py` keep there:

    resume-N/    state of the Trainer after N steps (scheduler, generators, log), without weights; one, every minute

A run that was stopped goes on from resume-N: its weights are those of the base model, or of a later full checkpoint,
with the records applied. Steps that were recorded after N run through the Trainer's loop once more, except that
nothing is measured, so that whatever should have been logged, evaluated and saved there is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch.optim import Optimizer
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from llava.mezo import MeZO
from llava.mezo.errors import InputError
from llava.mezo.held import write_into
from llava.mezo.journal.base_model import MODEL, BaseModel
from llava.mezo.journal.files import HEADER, PARENT, RECORDS, Journal
from llava.mezo.journal.fingerprint import fingerprint
from llava.mezo.journal.replay import Replay
from llava.mezo.messages import raising_together
from llava.mezo.names import parameters_by_name
from llava.train.zo import state
from llava.train.zo.disks import Disks
from llava.train.zo.other_weights import load_other_weights, save_other_weights
from llava.train.zo.resume_points import (
    full_checkpoint,
    has_optimizer,
    newest_checkpoint,
    resume_points,
    start_of,
    steps_of,
)
from llava.train.zo.settings import Settings
from llava.train.zo.starting_point import Parameters, StartingPoint, prepare

logger = logging.getLogger(__name__)

RANDOM_STATES = "rng_state"
RESUME_SECONDS = 60.0
"""How often the Trainer's state is written."""


class JournaledRun(transformers.Trainer):
    """A Trainer whose optimizer is a `MeZO`, with or without a journal.

    A class that derives from it gives `zo`, makes the optimizer and calls `open_journal` for it.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    zo: Settings
    starting_point: StartingPoint | None = None
    """None without a journal, and until a run begins."""
    disks: Disks | None = None
    """Which ranks see one OUTPUT_DIR; looked for when a run begins, unless it is known by then."""
    loaded_step: int | None = None
    """The step whose weights were taken at the end in place of the last ones."""

    @property
    def mezo(self) -> MeZO:
        """The optimizer."""
        return self.optimizer

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the base class; a run is also resumed from its journal's folder, or from a resume point in it.

        True is where an unfinished run in `output_dir` stopped; a new run starts if there is none.

        Afterwards the weights are in the model, however they were stored in training.

        Raises:
            InputError: the journal does not fit this run, is damaged, or cannot be written.
        """
        resume = resume_from_checkpoint
        if resume is True:
            folder = Path(str(self.args.output_dir))
            resume = start_of(folder) if self.zo.journal else newest_checkpoint(folder)
        resume = str(resume) if resume else None
        try:
            if self.zo.journal:
                self.disks = self.disks or Disks.find(Path(str(self.args.output_dir)), self.args.device)
                self.starting_point = prepare(
                    self.model,
                    self.args,
                    self.zo,
                    resume is not None,
                    run=self,
                    wait=self.accelerator.wait_for_everyone,
                    tokenizer=getattr(self, "processing_class", None) or getattr(self, "tokenizer", None),
                    disks=self.disks,
                )
            start = self.starting_point
            if start is not None and resume == str(start.folder):
                resume = None  # all recorded steps go through the loop
            result = super().train(resume, *args, **kwargs)
        finally:
            if self.optimizer is not None:
                self.mezo.release()
                if self.mezo.journal is not None:
                    self.mezo.journal.close()
            if self.starting_point is not None and self.starting_point.lock is not None:
                self.starting_point.lock.release()
        if self.starting_point is not None and self.args.load_best_model_at_end:
            self.load_best_step()
        return result

    def open_journal(self) -> Journal | None:
        """For the optimizer that was just made: written by one process for each disk, followed by the others."""
        start, disks = self.starting_point, self.disks
        if start is None or disks is None:
            return None
        header = self.mezo.journal_header(start.model, start.fingerprint, start.stored)
        with raising_together(disks.device):
            if disks.rank == 0:
                journal = Journal.open(start.folder, header, start.parent, start.parent_steps, start.lock)
                if journal.records:
                    logger.warning(
                        "%s has %d steps, which this run goes on from: they keep the data and learning rates of then. "
                        "For a new run choose another --output_dir",
                        start.folder,
                        len(journal.records),
                    )
        disks.copy(start.folder, [PARENT, RECORDS, HEADER])
        with raising_together(disks.device):
            if disks.writes:
                journal = Journal.open(start.folder, header, lock=start.lock)
            elif not disks.is_owner:
                journal = Journal.follow(start.folder, header)
        journal.sync_steps = self.zo.journal_sync_steps
        return journal

    def steps_before(self) -> int:
        """Those in the journal, if there is one."""
        journal = self.mezo.journal
        return int(self.state.global_step) if journal is None else len(journal.records)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, with the weights as they are now, wherever they are stored."""
        with self.current_weights():
            return super().evaluation_loop(*args, **kwargs)

    def current_weights(self) -> AbstractContextManager[Any]:
        """Within it, a forward through the model sees the weights as they are, wherever they are stored."""
        return contextlib.nullcontext() if self.optimizer is None else self.mezo.current_weights()

    def save_start(self, folder: Path) -> None:
        """Write what a checkpoint of the model holds into a folder."""
        self._save(str(folder))

    def fingerprint_of(self, weights: Mapping[str, torch.Tensor]) -> str:
        """See `llava/mezo/journal/fingerprint.py`."""
        return fingerprint(weights)

    def take_steps(self, parameters: Parameters, journal: Journal, steps: int) -> None:
        """Let the parameters, which are those before the journal's first step, become those after so many."""
        replay = Replay(journal, lambda name: parameters[name].detach().clone(), self.zo.config.kernel)
        replay.advance(steps)
        replay.copy_into(parameters)

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        with contextlib.nullcontext() if self.optimizer is None else self.mezo.exported():
            super()._save(output_dir, *args, **kwargs)
            if self.args.should_save:
                save_other_weights(self.model, Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.mezo.journal is not None:
            self.mezo.journal.sync()  # no checkpoint is ahead of the records, even after a power cut
        super()._save_checkpoint(*args, **kwargs)

    def save_resume_point(self) -> None:
        """State of the Trainer after the steps that are done; the older one goes once this one is on the disk."""
        assert self.starting_point is not None
        journal, step = self.starting_point.folder, self.state.global_step
        if self.args.world_size == 1:
            self.store_flos()  # a collective operation otherwise
        if self.mezo.journal is not None:
            self.mezo.journal.sync()
        folder, partial = journal / f"resume-{step}", journal / "resume.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        state.save_state(state.random_states(), partial, RANDOM_STATES)  # a base trainer may write a pickle
        state.save_state(Optimizer.state_dict(self.mezo), partial, "optimizer")
        state.save_state(self.lr_scheduler.state_dict(), partial, "scheduler")
        self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(folder)
        for path in resume_points(journal):
            if path != folder:
                shutil.rmtree(path, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        full = self._full_checkpoint(Path(resume_from_checkpoint))
        if full is not None:
            self._load_weights(full, model)
            load_other_weights(self.model, full)

    def _load_weights(self, checkpoint: Path, model: Any) -> None:
        super()._load_from_checkpoint(str(checkpoint), model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.starting_point is None:
            self._load_whole(checkpoint)
            return
        resume = Path(checkpoint)
        full = self._full_checkpoint(resume)
        if full is not None:  # weights as exactly as they were stored
            super()._load_optimizer_and_scheduler(str(full))
        mezo, step = self.mezo, steps_of(resume)
        have = 0 if mezo.journal is None else len(mezo.journal.records)
        if step > have:
            raise InputError(
                f"{resume} is of step {step}, but {self.starting_point.folder} has {have} steps. Start a new run from "
                "the checkpoint (--model_name_or_path), or go on without a journal (--zo_journal False)"
            )
        if full is not None and not has_optimizer(full):
            raise InputError(f"{full} was saved without its optimizer (--save_only_model): a run cannot go on from it")
        if resume != full:
            with state.settings_of_flags(mezo, self.lr_scheduler):
                Optimizer.load_state_dict(mezo, state.load_state(resume, "optimizer") or {})
                self.lr_scheduler.load_state_dict(state.load_state(resume, "scheduler") or {})
        mezo.catch_up(steps_of(full), step)

    def _load_whole(self, checkpoint: str | None) -> None:
        """As the base class, of a checkpoint that such a run saved."""
        advice = "choose another --output_dir, or start from its model (--model_name_or_path)"
        if checkpoint is not None and not has_optimizer(Path(checkpoint)):
            raise InputError(f"{checkpoint} has no state of an optimizer, and a run cannot go on from it: {advice}")
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except InputError:
            raise
        except ValueError as error:  # torch's, of groups and moments
            raise InputError(f"{checkpoint} is of a run with another optimizer ({error}): {advice}") from error

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._is_resume_point(Path(checkpoint)):
            super()._load_rng_state(checkpoint)
            return
        # those of the main process; nothing that other ranks draw from is saved
        states = state.load_state(Path(checkpoint), RANDOM_STATES) if self.args.process_index == 0 else None
        if states is not None:
            state.set_random_states(states)

    def _is_resume_point(self, path: Path) -> bool:
        """Whether it is one of this run's journal, rather than a checkpoint."""
        return self.starting_point is not None and path.parent == self.starting_point.folder

    def _full_checkpoint(self, resume: Path) -> Path | None:
        """The checkpoint with weights to resume from; None when they come from the base model and the records."""
        return full_checkpoint(resume.parent.parent, steps_of(resume)) if self._is_resume_point(resume) else resume

    def _load_best_model(self) -> None:
        if self.starting_point is not None:
            return  # its journal has every step
        self.mezo.release()
        super()._load_best_model()

    def load_best_step(self) -> None:
        """The weights of the best evaluation into the model, by `metric_for_best_model`; the first of equal ones."""
        assert self.starting_point is not None
        args = self.args
        key = "eval_" + str(args.metric_for_best_model).removeprefix("eval_")
        found = [(entry[key], entry["step"]) for entry in self.state.log_history if key in entry]
        if not found:
            logger.warning("--load_best_model_at_end: no evaluation gave %s; the last weights are kept", key)
            return
        best, step = (max if args.greater_is_better else min)(found, key=lambda pair: pair[0])
        logger.info("the best %s is %s, at step %d; its weights are taken", key, best, step)
        self.loaded_step = int(step)
        self.take_steps(parameters_by_name(self.model), self.load_base(), self.loaded_step)

    @torch.no_grad()
    def load_base(self) -> Journal:
        """The weights before the first step into the model; the run's journal."""
        assert self.starting_point is not None
        journal, parameters = Journal.read(self.starting_point.folder), parameters_by_name(self.model)
        base = BaseModel(self.starting_point.weights or journal.folder / MODEL, journal)
        for name in dict.fromkeys(name for one in journal.chain() for name in one.header.names):
            write_into(parameters[name], base.read(name))
        return journal


class SaveResumePoints(TrainerCallback):
    """Writes a resume point now and then, when all that belongs to a step is done."""

    def __init__(self, run: JournaledRun) -> None:
        self.run = run
        self._last = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the main process alone: the others have other clocks, and nothing of theirs is needed
        if (
            self.run.starting_point is not None
            and args.should_save
            and state.global_step > 0
            and time.monotonic() - self._last >= RESUME_SECONDS
        ):
            self._last = time.monotonic()
            try:
                self.run.save_resume_point()
            except (OSError, SafetensorError) as error:  # the records are what counts
                logger.warning("no resume point after step %d (%s)", state.global_step, error)
