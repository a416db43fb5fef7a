"""Where an unfinished MeZO run goes on: full checkpoints, and the points that its journal keeps (`zo_journal.py`)."""

from __future__ import annotations

import logging
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from llava.mezo.journal import HEADER
from llava.train import run_folder

if TYPE_CHECKING:
    from llava.train.zo_journal import RunJournal

logger = logging.getLogger(__name__)

RESUME_SECONDS = 60.0
"""How often the Trainer's state is written."""
_RESUME = re.compile(r"resume-(\d+)")


class SaveResumePoints(TrainerCallback):
    """Writes a resume point now and then, when all that belongs to a step is done."""

    def __init__(self, journal: RunJournal) -> None:
        self.journal = journal
        self._last = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.journal.prepared and state.global_step > 0 and time.monotonic() - self._last >= RESUME_SECONDS:
            self._last = time.monotonic()
            try:
                self.journal.save_resume_point()
            except (OSError, SafetensorError) as error:  # the records are what counts
                logger.warning("no resume point after step %d (%s)", state.global_step, error)
                shutil.rmtree(self.journal.folder / f"resume-{state.global_step}", ignore_errors=True)


def resume_point(output_dir: Path) -> Path | None:
    """The complete resume point of the run in `output_dir` with the most steps; its journal if that has none yet."""
    journal = output_dir / run_folder.JOURNAL_FOLDER
    if not (journal / HEADER).exists():
        return None
    complete = [
        (int(match[1]), path)
        for path in journal.glob("resume-*")
        if (match := _RESUME.fullmatch(path.name)) and (path / run_folder.STATE_FILE).exists()
    ]
    return max(complete)[1] if complete else journal


def start_of(output_dir: Path) -> Path | None:
    """Where an unfinished run goes on: its newest full checkpoint or resume point; None for a new run."""
    full, light = run_folder.newest_checkpoint(output_dir), resume_point(output_dir)
    return full if light is None or steps_of(full) > steps_of(light) else light


def steps_of(point: Path | None) -> int:
    """Steps before checkpoint-N or resume-N; 0 for None and for a journal without either."""
    number = "" if point is None else point.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
