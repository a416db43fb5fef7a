"""A record of LLaVA JSON, read: the one reader for training, checking and evaluation.

    {"id", "image": path or paths, or "video": path, "conversations": [{"from", "value"}, ...]}

Other keys are welcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.errors import InputError
from llava.samples.turns import ANSWER, Turn, check_text, names_of, naming, record_turns


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
    """A record as it stands in the file.

    Raises:
        InputError: turns, images or a video of another form, a key that is near one of these, text that is not text;
            the record is named.
    """
    with naming(record_name(raw.get("id"), number)):
        turns, (images, video) = record_turns(raw), record_media(raw)
        check_text(str(raw.get("id")), "`id`")
    return Record(raw.get("id"), number, tuple(turns), images, video)


def record_name(identifier: Any, number: int) -> str:
    """How error messages call a record; without an id by its number."""
    return f"record {number if identifier is None else identifier!r} (number {number})"


NEAR = {
    "image": ("img", "imgs", "image_path", "image_paths", "image_file", "picture", "pictures", "photo"),
    "video": ("video_path", "video_file", "clip"),
}
"""Keys that mean this one, in a form that nobody knows here."""
NOTHING: tuple[Any, ...] = (None, "", [])
LONGEST_PATH = 1000
"""Characters; a longer text is a picture's data."""


def entry(raw: Mapping[str, Any], key: str) -> Any:
    """What a record has under a key or another name of it; None and an empty text or list are nothing.

    Raises:
        InputError: it has a key that means this one and is not known.
    """
    found = next((raw[name] for name in names_of(key) if raw.get(name) not in NOTHING), None)
    near = [name for name in NEAR[key] if raw.get(name) not in NOTHING]
    if found is None and near:
        raise InputError(f"the key {near[0]!r} is not known: did you mean {key!r}?")
    return found


def record_media(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Paths of a record's images, or of its video; an image wins over a video.

    Raises:
        InputError: something else than paths.
    """
    images, video = entry(raw, "image"), entry(raw, "video")
    if images is not None:
        paths = images if isinstance(images, list) else [images]
        if not all(isinstance(path, str) and path for path in paths):
            raise InputError(f"`image` must be a path or a list of paths, got {images!r:.80}")
        for path in paths:
            _check_path(path, "image")
        return tuple(paths), None
    if isinstance(video, list) and len(video) == 1:
        video = video[0]
    if video is not None and not isinstance(video, str):
        raise InputError(f"`video` must be one path, got {video!r:.80}")
    _check_path(video or "", "video")
    return (), video


def _check_path(path: str, key: str) -> None:
    check_text(path, f"`{key}`")
    if path.startswith("data:") or len(path) > LONGEST_PATH:
        raise InputError(f"`{key}` holds data in place of a path ({path:.30}...): save it as a file and give its path")
    parts = path.split(",")
    if len(parts) > 1 and all("." in part.strip().rpartition("/")[2] for part in parts):
        raise InputError(f"`{key}` holds {len(parts)} paths in one text, {path:.80}: give a list of paths")
