"""A lock on a folder: one process at a time writes a journal. It goes with its process, however that ends."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path

from llava.mezo.errors import JournalError

LOCK = "lock"


class FolderLock:
    """Holds `folder`, which is made, until `release`. JournalError: another process holds it, or it cannot be written.

    It is not handed on to processes that are forked, such as a data loader's workers, which may outlive this one.
    Where there is no fcntl (Windows), nothing is checked.
    """

    def __init__(self, folder: Path, patience: float = 0.0, name: str = LOCK) -> None:
        """Args: patience: seconds to wait for a process that is about to end; name: of the file that is locked."""
        path, until = folder / name, time.monotonic() + patience
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a")
        except OSError as error:
            raise JournalError(f"{folder}: the journal cannot be made ({error.strerror})") from error
        try:
            import fcntl
        except ImportError:
            return
        try:
            while True:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise
                    time.sleep(0.2)
        except OSError as error:
            self._file.close()
            if not isinstance(error, BlockingIOError):  # a file system without locks: as on Windows
                self._file = path.open("a")
                return
            raise JournalError(f"{folder}: another run is writing to this journal; wait for it or stop it") from error
        _HELD.add(self)

    def release(self) -> None:
        """Let go of it; further calls do nothing."""
        self._file.close()


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_HELD):
        lock.release()  # closes the child's descriptor; the lock stays with the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
