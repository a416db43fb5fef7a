"""Whether a run with a journal diverges, while it still runs: its loss has risen from its lowest, and stays there."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from llava.mezo.algorithms.course import Course
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import HEADER, JOURNAL_FOLDER, RECORDS, Journal
from llava.mezo.journal.header import Header
from llava.mezo.journal.records import Record, applied_steps

WINDOW = 25
"""Steps that are looked at together."""
RISE = 0.25
"""Of its fall so far: a loss that has risen back by as much does not just wander about where it has come to."""


def diverging(losses: Sequence[float]) -> str | None:
    """Why a run diverges, in a few words; None if it does not, or is too short to tell.

    Args:
        losses: one a step.

    The medians of the last two whole windows are compared with the best window before them, whose median is the lowest:
    both have to be above all losses of that one, however they spread, and by `RISE` of what it is below the first.
    Projected gradients tell no more: they have heavy tails, grow later than the loss does in most runs that diverge,
    and not at all where an estimator takes them in units of their own spread (`fzoo`, `per_example`).
    """
    windows = [losses[start : start + WINDOW] for start in range(0, len(losses) - WINDOW + 1, WINDOW)]
    if len(windows) < 3:
        return None
    medians = [statistics.median(window) for window in windows]
    best = min(range(len(windows) - 2), key=medians.__getitem__)
    lowest, largest = medians[best], max(windows[best])
    if min(medians[-2:]) <= max(largest, lowest + RISE * (medians[0] - lowest)):
        return None
    return (
        f"diverged by step {len(windows) * WINDOW}: the loss is {medians[-1]:.3g} (medians of {WINDOW} steps) after "
        f"{lowest:.3g} by step {(best + 1) * WINDOW}, and above all losses there, which are at most {largest:.3g}"
    )


def journal_bytes(run: Path) -> int:
    """Size of the records of the journal in a run's folder; 0 without one."""
    records = run / JOURNAL_FOLDER / RECORDS
    return records.stat().st_size if records.exists() else 0


def losses_of(header: Header, records: Sequence[Record]) -> list[float]:
    """Of the steps that moved the weights, for `diverging`."""
    return [record.loss for record, proposal in applied_steps(records, Course(header)) if proposal.terms]


def journal_diverges(run: Path) -> str | None:
    """`diverging` of the journal in a run's folder, which may be in the middle of being written; None without one."""
    folder = run / JOURNAL_FOLDER
    if not (folder / HEADER).exists():
        return None
    try:
        journal = Journal.read(folder)
    except JournalError:
        return None  # the run itself says what is wrong with it
    return diverging(losses_of(journal.header, journal.records))
