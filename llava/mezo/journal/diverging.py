"""Whether a run with a journal diverges, while it still runs: projected gradients rise, and the loss does too.

Those of an estimator that normalises (`fzoo`, `per_example`) are in units of their own spread and cannot rise: there
the loss alone tells.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from llava.mezo.algorithms.course import Course
from llava.mezo.algorithms.interface import Term
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import HEADER, JOURNAL_FOLDER, RECORDS, Journal
from llava.mezo.journal.header import Header
from llava.mezo.journal.records import Record, applied_steps

WINDOW = 25
"""Steps that are looked at together."""
RISE = 4.0
"""Times the projected gradients of the first window: more, twice in a row, is a run that diverges."""


def diverging(losses: Sequence[float], gradients: Sequence[float], normalised: bool = False) -> str | None:
    """Why a run diverges, in a few words; None if it does not, or is too short to tell.

    Args:
        losses: one a step.
        gradients: projected gradients, one a step; only their size counts.
        normalised: the estimator normalises, and only the losses count.

    Medians of windows are compared, since a single projected gradient has heavy tails. In the last two whole windows
    both have to be above those of the first: gradients by `RISE`, which a run may also reach whose loss falls fast.
    Losses alone have to be above all of the first window, however they spread: by chance a median hardly gets there.
    """
    count = len(losses) // WINDOW
    if count < 3:
        return None
    parts = [slice(number * WINDOW, (number + 1) * WINDOW) for number in (0, count - 2, count - 1)]
    if normalised:
        return _of_losses([losses[part] for part in parts], count * WINDOW)
    sizes = [statistics.median(abs(value) for value in gradients[part]) for part in parts]
    means = [statistics.median(losses[part]) for part in parts]
    if min(sizes[1:]) > RISE * sizes[0] and min(means[1:]) > means[0]:
        return (
            f"diverged by step {count * WINDOW}: projected gradients are {sizes[2] / max(sizes[0], 1e-300):.1f} times "
            f"those of the first {WINDOW} steps (medians), the loss {means[2]:.3g} after {means[0]:.3g}"
        )
    return None


def _of_losses(parts: Sequence[Sequence[float]], step: int) -> str | None:
    """The same by the losses of the first and the last two windows, the last of which ends with the step."""
    first, *last = [statistics.median(part) for part in parts]
    largest = max(parts[0])
    if min(last) > largest:
        return (
            f"diverged by step {step}: the loss is {last[1]:.3g} (medians of {WINDOW} steps) after {first:.3g}, and "
            f"above all of the first {WINDOW} steps, which are at most {largest:.3g}"
        )
    return None


def journal_bytes(run: Path) -> int:
    """Size of the records of the journal in a run's folder; 0 without one."""
    records = run / JOURNAL_FOLDER / RECORDS
    return records.stat().st_size if records.exists() else 0


def of_steps(header: Header, records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Losses and sizes of projected gradients of the steps that were applied, for `diverging`."""
    losses, sizes = [], []
    for record, proposal in applied_steps(records, Course(header)):
        if proposal.terms:
            losses.append(record.loss)
            sizes.append(size_of(proposal.terms))
    return losses, sizes


def size_of(terms: Sequence[Term]) -> float:
    """Root mean square of the projected gradients of a step."""
    return math.sqrt(sum(term.projected_grad**2 for term in terms) / len(terms))


def journal_diverges(run: Path) -> str | None:
    """`diverging` of the journal in a run's folder, which may be in the middle of being written; None without one."""
    folder = run / JOURNAL_FOLDER
    if not (folder / HEADER).exists():
        return None
    try:
        journal = Journal.read(folder)
    except JournalError:
        return None  # the run itself says what is wrong with it
    return diverging(*of_steps(journal.header, journal.records), Course(journal.header).estimator.normalised)
