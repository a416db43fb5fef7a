"""A record of LLaVA JSON, read: the one reader for training, checking and evaluation.

{"id", "image": path or paths, or "video": path, "conversations": [{"from", "value"}, ...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.errors import InputError
from llava.samples.turns import ANSWER, Turn, naming, record_turns


@dataclass(frozen=True)
class Record:
    """What a record says.

    Attributes:
        id: whatever the file has under that name, or None.
        number: its place in the data, from 0.
        turns: in one form, see `turns.py`.
        images: paths below the image folder.
        video: path below the video folder, of a record without images.
    """

    id: Any
    number: int
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    video: str | None = None

    @property
    def name(self) -> str:
        """How error messages call it."""
        return record_name(self.id, self.number)

    @property
    def has_media(self) -> bool:
        """Whether it shows an image or a video."""
        return bool(self.images) or self.video is not None

    @property
    def answer(self) -> str:
        """What the model is to say, all turns together."""
        return "\n".join(turn["value"] for turn in self.turns if turn["from"] == ANSWER)

    @property
    def words(self) -> int:
        """In all turns."""
        return sum(len(turn["value"].split()) for turn in self.turns)


def read_record(raw: Mapping[str, Any], number: int) -> Record:
    """A record as it stands in the file. Raises `InputError` naming it for turns, images or a video of another form."""
    with naming(record_name(raw.get("id"), number)):
        turns, (images, video) = record_turns(raw), record_media(raw)
    return Record(raw.get("id"), number, tuple(turns), images, video)


def record_name(identifier: Any, number: int) -> str:
    """How error messages call a record; without an id by its number."""
    return f"record {number if identifier is None else identifier!r} (number {number})"


def record_media(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Paths of a record's images, or of its video; an image wins over a video, and null is none.

    Raises:
        InputError: something else than paths.
    """
    images, video = raw.get("image"), raw.get("video")
    if images is not None:
        paths = images if isinstance(images, list) else [images]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise InputError(f"`image` must be a path or a non-empty list of paths, got {images!r:.80}")
        return tuple(paths), None
    if isinstance(video, list) and len(video) == 1:
        video = video[0]
    if video is not None and not isinstance(video, str):
        raise InputError(f"`video` must be one path, got {video!r:.80}")
    return (), video
