"""A run goes back to an earlier step of its journal, and keeps the whole journal as it was, see `kept.py`."""

from __future__ import annotations

import os
import shutil

from llava.mezo.durable import sync_folder
from llava.mezo.errors import JournalError
from llava.mezo.journal.base_model import MODEL
from llava.mezo.journal.files import Journal, copy_beginning
from llava.mezo.journal.kept import Kept, kept_journals

PARTIAL = "diverged.partial"


def go_back(journal: Journal, step: int) -> Kept:
    """Let the journal in a folder, which the caller has locked, end after `step` of the given one's records.

    Raises:
        JournalError: it cannot be written; then all records still count.
    """
    kept = Kept(len(kept_journals(journal.folder)) + 1, len(journal.records), step)
    partial = journal.folder / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed right here
        copy_beginning(journal, partial, len(journal.records))
        if (journal.folder / MODEL).is_dir():  # what else a replay needs; no run writes into these files again
            shutil.copytree(journal.folder / MODEL, partial / MODEL, copy_function=_link)
        partial.rename(kept.inside(journal.folder))
        sync_folder(journal.folder)
    except OSError as error:
        raise JournalError(
            f"{journal.folder}: the run cannot go back to step {step} ({error.strerror}). All of its steps are safe; "
            "make room and start the same run again"
        ) from error
    return kept


def _link(source: str, target: str) -> None:
    """The same file by another name, or a copy where a disk has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
