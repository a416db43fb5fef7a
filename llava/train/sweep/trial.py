"""One trial of a sweep: a run of train.py in a process and a folder of its own."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.mezo.durable import write_durably
from llava.mezo.journal.diverging import WINDOW, journal_bytes, journal_diverges
from llava.model.checkpoint_files import read_json, usable
from llava.runs.validation import CURVE_FILE
from llava.train.slots import environment_of_slot

TRIAL_FILE, LOG_FILE, COMMAND_FILE = "trial.json", "log.txt", "command.txt"
LOG_TAIL = 1500
"""Characters of a failed trial's log that are shown."""
SMALLEST_RECORD = 28
"""Bytes of a step with one loss and one rate in a journal."""
PATIENCE = 120.0
"""Seconds that a run has to save and end once it is asked to."""
TRAIN = ("-m", "llava.train.train")


class TrialRun:
    """A trial while its process runs.

    Args:
        number: of the trial, from 0.
        folder: of the run; what an earlier process left there is gone on with.
        words: of train.py.
        slot: which of the processes that run at a time it is, and so, of several cards, on which one.
        jobs: how many run at a time.
    """

    def __init__(self, number: int, folder: Path, words: Sequence[str], slot: int, jobs: int) -> None:
        self.number, self.folder, self.slot = number, folder, slot
        self.why_stopped: str | None = None
        self._read = 0
        folder.mkdir(parents=True, exist_ok=True)
        _wait_for_earlier(folder)
        write_durably(folder / COMMAND_FILE, command_line(words) + "\n")
        self._begin = time.monotonic()
        with (folder / LOG_FILE).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *TRAIN, *words],
                env=os.environ | environment_of_slot(slot, jobs),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its trials
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        _note(folder, pid=self.process.pid)

    def ended(self) -> int | None:
        """The exit code; None while it runs. The seconds that it took are noted once it has ended."""
        code = self.process.poll()
        if code is not None and self._begin:
            before = noted(self.folder).get("seconds", 0.0)
            _note(self.folder, pid=None, seconds=before + time.monotonic() - self._begin)
            self._begin = 0.0
        return code

    def stop(self, why: str) -> None:
        """Ask it to save and end."""
        if self.process.poll() is None:
            self.why_stopped = self.why_stopped or why
            self.process.terminate()

    def wait(self) -> None:
        """Until it has ended; a process that takes too long is killed."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.ended()

    def diverges(self, now: bool = False) -> str | None:
        """Why the run diverges, by its journal, which is read again once it has grown by a window, or `now`."""
        size = journal_bytes(self.folder)
        if size < self._read + SMALLEST_RECORD * WINDOW and not now:
            return None
        self._read = size
        return journal_diverges(self.folder)


def curve(folder: Path) -> dict[int, float | None]:
    """What the run in `folder` was validated at so far, by step; None where that was not finite."""
    file = folder / CURVE_FILE
    if not file.exists():
        return {}
    values = read_json(file)
    with usable(str(file)):
        return {int(point["step"]): point["value"] for point in values["history"]}


def noted(folder: Path) -> dict[str, Any]:
    """What the sweep has noted about a trial."""
    file = folder / TRIAL_FILE
    return read_json(file) if file.exists() else {}


def _note(folder: Path, **values: Any) -> None:
    write_durably(folder / TRIAL_FILE, json.dumps(noted(folder) | values, indent=2) + "\n")


def note_start(folder: Path, number: int, values: Mapping[str, str]) -> None:
    """Begin a trial's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _note(folder, number=number, values=dict(values))


def note_outcome(folder: Path, outcome: str, value: float | None) -> None:
    """What came of a trial: "finished", "stopped: ...", "diverged ..." or "failed: ..."; and its value."""
    _note(folder, outcome=outcome, value=value)


def end_of_log(folder: Path) -> str:
    """The last lines of a trial's log."""
    return (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()


def command_line(words: Sequence[str]) -> str:
    """A run of train.py as it is typed."""
    return shlex.join(["python", *TRAIN, *words])


def _end_with_parent() -> None:
    """A sweep that is killed takes its trials along, which save and end: nobody else would stop them (prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait_for_earlier(folder: Path) -> None:
    """Until the process of a sweep that was killed has ended, which holds the folder."""
    pid, deadline = noted(folder).get("pid"), time.monotonic() + PATIENCE
    while pid and time.monotonic() < deadline:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return
        if str(folder).encode() not in words:  # another process has its number now
            return
        time.sleep(0.2)
