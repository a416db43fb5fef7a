"""A folder whose files are all there or none: they are written into another one and take their place at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llava.mezo.errors import InputError

PART = ".part"  # how the name ends of what is being written


def check_new(target: Path, flag: str) -> None:
    """`InputError` unless `target`, the value of `flag`, is not there, or an empty folder."""
    try:
        part = _part(target)
        begun, taken = part.exists(), target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:  # a folder on the way that may not be read
        raise InputError(f"{flag} {target} cannot be written ({error})") from error
    if begun:
        raise InputError(f"{flag} {target}: {part} is left from a process that was killed, or runs; remove it first")
    if taken:
        raise InputError(f"{flag} {target} is not an empty folder; choose another one, or remove it first")


@contextmanager
def new_folder(target: Path, flag: str) -> Iterator[Path]:
    """Within it, a folder to write into; what that holds is in `target` once the block ends without an error.

    Otherwise it is removed. Only a process that is killed leaves it behind, and the next one says so.

    Args:
        target: not there, or an empty folder, which may be mounted or in use.
        flag: whose value that is.

    Raises:
        InputError: `target` is something else, or cannot be written. One that is raised inside names `target` where it
            named the folder.
    """
    check_new(target, flag)
    final, part, exists = target.absolute(), _part(target), target.exists()
    folder = part / final.name  # which what describes the files may take for theirs
    try:
        folder.mkdir(parents=True)
        yield folder
        if exists:
            for path in folder.iterdir():
                path.rename(final / path.name)
        else:
            folder.rename(final)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{flag} {target} cannot be written ({error})") from error
    except InputError as error:
        raise type(error)(str(error).replace(str(folder), str(target))) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(target: Path) -> Path:
    """Where it is written: on the disk that it will be on."""
    final = target.absolute()
    return final / PART if final.exists() else final.with_name(f"{final.name}{PART}")
