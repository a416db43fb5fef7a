"""Whether the files that records name are there, before a run that would meet the missing one hours later.

Each folder is listed once: a million records on a network disk take seconds, where asking for each file takes minutes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llava.errors import InputError, naming, short
from llava.samples.media import below
from llava.samples.record import Record


def check_media_files(
    records: Iterable[tuple[str, Record]], image_folder: str | None, video_folder: str | None
) -> None:
    """`InputError` for the first record, of these with their files, that names an image or a video that is not there.

    It says of how many others this is true. What lies in tables is not looked at, nor what is in a file.
    """
    is_there = _listing()
    missing = [
        (file, record, kind, path)
        for file, record in records
        for kind, path in _paths(record, image_folder, video_folder)
        if not is_there(path)
    ]
    if not missing:
        return
    file, record, kind, path = missing[0]
    others = f" ({len(missing) - 1} more are missing, `python -m llava.data.check` lists them)" if missing[1:] else ""
    with naming(short(file)), naming(record.name):
        raise InputError(f"{kind} {short(path)} does not exist; check --{kind}_folder and the record's path{others}")


def _paths(record: Record, image_folder: str | None, video_folder: str | None) -> Iterator[tuple[str, Path]]:
    if record.video is not None:
        yield "video", Path(video_folder or "", record.video)
    for picture in record.images:
        path = below(image_folder, picture)
        if isinstance(path, Path):
            yield "image", path


def _listing() -> Callable[[Path], bool]:
    """Tells of a path whether it is there; what a folder holds is read once."""

    @functools.cache
    def names(folder: Path) -> frozenset[str]:
        try:
            return frozenset(os.listdir(folder))
        except OSError:
            return frozenset()

    # some file systems find a file by more names than the one that they list it by
    return lambda path: path.name in names(path.parent) or path.exists()
