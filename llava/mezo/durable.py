"""Files that are whole or not there, whatever happens meanwhile, and that those may read whom the umask lets."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def follow_umask(*paths: Path) -> None:
    """Give files the mode that `open` gives new ones there; safetensors makes its own readable by their owner alone."""
    for folder in {path.parent for path in paths}:
        probe = folder / f".mode.{os.getpid()}"
        try:
            probe.touch()  # the umask itself cannot be read without changing it for all threads
            mode = stat.S_IMODE(probe.stat().st_mode)
        finally:
            probe.unlink(missing_ok=True)
        for path in paths:
            if path.parent == folder:
                path.chmod(mode)


def write_durably(path: Path, data: bytes | str, sync: bool = True) -> None:
    """The whole file or none: written beside it, brought to the disk, renamed.

    Text is written as UTF-8; half a character becomes an escape, which JSON reads back.

    Args:
        sync: False for what a power cut may cost; the end of the process still leaves all or nothing.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring to the disk what was renamed in it."""
    with suppress(OSError):  # a folder cannot be opened everywhere
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
