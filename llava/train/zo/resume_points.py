"""Where an unfinished run goes on: full checkpoints, and the points that a journal keeps (`journaled_run.py`).

`checkpoint-N` and `resume-N` count once their trainer_state.json is there: it is written last.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from llava.mezo.errors import InputError, JournalError
from llava.mezo.journal.files import HEADER, JOURNAL_FOLDER, Journal

logger = logging.getLogger(__name__)


CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_RESUME = re.compile(r"resume-(\d+)")


def resume_points(journal: Path) -> list[Path]:
    """The resume points in a journal's folder, those with the most steps first."""
    found = [(int(match[1]), path) for path in journal.glob("resume-*") if (match := _RESUME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def start_of(output_dir: Path, checkpoints: bool = True) -> Path | None:
    """Where an unfinished run goes on: its newest full checkpoint or resume point, or its journal; None for a new run.

    Args:
        checkpoints: False where not every process sees them: the journal does without.

    Points beyond the journal's last record (after a power cut) are passed over.
    """
    journal = output_dir / JOURNAL_FOLDER
    if not has_journal(output_dir):
        return newest_checkpoint(output_dir)
    try:
        last = len(Journal.read(journal).records)
    except JournalError:
        return journal  # the run will say what is wrong
    points = [p for p in resume_points(journal) if steps_of(p) <= last and (p / TRAINER_STATE_NAME).exists()]
    full, light = full_checkpoint(output_dir, last) if checkpoints else None, points[0] if points else journal
    return full if full is not None and steps_of(full) > steps_of(light) else light


def has_journal(output_dir: Path) -> bool:
    """Whether a run was recorded there; a branch then has a copy of what it started from."""
    return (output_dir / JOURNAL_FOLDER / HEADER).exists()


def given_checkpoint(given: str | None) -> Path | None:
    """The checkpoint of `--resume_from_checkpoint`; None where it says no more than True or False.

    Raises:
        InputError: no complete checkpoint.
    """
    if given is None or given.lower() in ("true", "false"):
        return None
    path = Path(given)
    if not (path / TRAINER_STATE_NAME).exists():
        raise InputError(
            f"--resume_from_checkpoint {given}: no {TRAINER_STATE_NAME} there, which a whole checkpoint of a run has; "
            "give its checkpoint-N folder, or leave the flag out to go on from the newest one in --output_dir"
        )
    return path


def branching_point(where: str) -> tuple[Journal, int]:
    """The journal of `--zo_from_journal` DIR or DIR:N, and N or the number of its steps.

    Raises:
        InputError: DIR is no journal, or has not so many steps.
    """
    folder, step = split(where)
    journal = Journal.read(folder)
    steps = len(journal.records) if step is None else step
    if steps > len(journal.records):
        raise InputError(f"--zo_from_journal {where}: that journal has {len(journal.records)} steps")
    return journal, steps


def split(where: str) -> tuple[Path, int | None]:
    """DIR and N of DIR:N, N None for DIR alone.

    Raises:
        InputError: DIR is no journal.
    """
    folder, colon, step = where.rpartition(":")
    named, number = (folder, int(step)) if colon and step.isdigit() else (where, None)
    if not (Path(named) / HEADER).exists():
        raise InputError(f"--zo_from_journal {where}: give DIR or DIR:N, DIR the mezo_journal folder of a run")
    return Path(named), number


def newest_checkpoint(folder: Path, most: int | None = None) -> Path | None:
    """The complete `checkpoint-N` with the largest N, up to `most`; None when there is none."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        match = CHECKPOINT.fullmatch(path.name)
        if match and (path / TRAINER_STATE_NAME).exists():
            complete.append((int(match[1]), path))
        elif match:
            logger.warning("%s is incomplete (no %s) and is not resumed from", path, TRAINER_STATE_NAME)
    return max((found for found in complete if most is None or found[0] <= most), default=(0, None))[1]


def discard_after(step: int, output_dir: Path) -> None:
    """Remove checkpoints and resume points of later steps; what is left of one by a kill counts no more."""
    checkpoints = [path for path in output_dir.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    for point in [*checkpoints, *resume_points(output_dir / JOURNAL_FOLDER)]:
        if steps_of(point) > step:
            (point / TRAINER_STATE_NAME).unlink(missing_ok=True)
            shutil.rmtree(point)


def full_checkpoint(output_dir: Path, most: int) -> Path | None:
    """The newest checkpoint-N, of at most `most` steps, from which a run with a journal can go on; or None."""
    found = newest_checkpoint(output_dir, most)
    while found is not None and not has_optimizer(found):
        logger.warning("%s was saved without its optimizer (--save_only_model) and is not resumed from", found)
        found = newest_checkpoint(output_dir, steps_of(found) - 1)
    return found


def has_optimizer(checkpoint: Path) -> bool:
    """Whether it holds the state of the optimizer, as JSON or as transformers has it."""
    return any((checkpoint / name).exists() for name in ("optimizer.json", "optimizer.pt"))


def steps_of(point: Path | None) -> int:
    """Steps before checkpoint-N or resume-N; 0 for None and for a journal without either."""
    number = "" if point is None else point.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def steps_done(output_dir: Path, point: Path | None) -> int:
    """Steps that a run which goes on from `point` does not take again: those in its journal, if it has one."""
    try:
        return len(Journal.read(output_dir / JOURNAL_FOLDER).records)
    except JournalError:
        return steps_of(point)


def check_enough_steps(flag: str, steps: int, done: int) -> None:
    """`InputError` where a run is to have fewer steps than it has: its last weights are not those of any of them."""
    if done > steps:
        raise InputError(
            f"{flag} is for {steps} steps, and the run in --output_dir has {done}: give at least these, or choose "
            "another --output_dir"
        )
