"""A lock on a folder: one process at a time writes a journal. It goes with its process, however that ends."""

from __future__ import annotations

from pathlib import Path

from llava.mezo.errors import JournalError

LOCK = "lock"


class FolderLock:
    """Holds `folder`, which is made, until `release`. JournalError: another process holds it, or it cannot be written.

    Where there is no fcntl (Windows), nothing is checked.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
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
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if not isinstance(error, BlockingIOError):  # a file system without locks: as on Windows
                self._file = path.open("a")
                return
            raise JournalError(f"{folder}: another run is writing to this journal; wait for it or stop it") from error

    def release(self) -> None:
        """Let go of it; further calls do nothing."""
        self._file.close()
