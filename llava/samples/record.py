"""A record of LLaVA JSON, read: the one reader for training, checking and evaluation.

    {"id", "image": path or paths, or "video": path, "conversations": [{"from", "value"}, ...]}

Other keys are welcome.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llava.errors import InputError, naming, short
from llava.samples.parts import parts_media
from llava.samples.stored import StoredPicture
from llava.samples.turns import ANSWER, Turn, check_text, names_of, record_turns, written_turns

Picture = str | StoredPicture
"""A path below the image folder, or a picture in a table."""


@dataclass(frozen=True)
class Record:
    """What a record says.

    Attributes:
        id: whatever the file has under that name, or None.
        number: its place in the data, from 0.
        turns: in one form, see `turns.py`.
        images: paths below the image folder, or pictures in a table.
        video: path below the video folder, of a record without images.
    """

    id: Any
    number: int
    turns: tuple[Turn, ...]
    images: tuple[Picture, ...] = ()
    video: str | None = None

    @property
    def name(self) -> str:
        """How error messages call it."""
        return record_name(self.id, self.number)

    @property
    def has_media(self) -> bool:
        """Whether it shows an image or a video."""
        return self.shown > 0

    @property
    def shown(self) -> int:
        """Number of its images and videos, each of which has a mark in the turns."""
        return len(self.images) + (self.video is not None)

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
        check_id(raw)
    return Record(raw.get("id"), number, tuple(turns), images, video)


def record_name(identifier: Any, number: int) -> str:
    """How error messages call a record; without an id by its number."""
    return f"record {number if identifier is None else short(repr(identifier))} (number {number})"


def check_id(raw: Mapping[str, Any]) -> None:
    """`InputError` for an id that no file can hold."""
    check_text(json.dumps(raw.get("id"), ensure_ascii=False), "`id`")


_WORDS = {
    "image": "img imgs pic pics picture pictures photo photos imagepath imagepaths imagefile imagefiles imageurl "
    "imageurls imagename imagenames imagelist imgpath imgpaths imgfile imgurl imgname picturepath",
    "video": "videopath videopaths videofile videofiles videourl videoname clip clips videoclip",
}
NEAR = {word: key for key, words in _WORDS.items() for word in words.split()}
"""Keys that mean another one, without signs between words, in a form that nobody knows here."""
NOTHING: tuple[Any, ...] = (None, "", [])
LONGEST_PATH = 1000
"""Characters; a longer text is a picture's data."""


def entry(raw: Mapping[str, Any], key: str) -> Any:
    """What a record has under a key or another name of it; None and an empty text or list are nothing."""
    return next((raw[name] for name in names_of(key) if raw.get(name) not in NOTHING), None)


@functools.lru_cache(maxsize=4096)
def meant_by(key: str) -> str | None:
    """Which of "image" and "video" a key means that is no name of it, but near one."""
    plain = re.sub(r"[^a-z]", "", key.lower())
    if plain in NEAR:
        return NEAR[plain]
    close = difflib.get_close_matches(plain, ("image", "images", "video", "videos"), 1, cutoff=0.8)
    typo = bool(close) and abs(len(close[0]) - len(plain)) <= 1  # `image_size` and `image_id` mean themselves
    return close[0].removesuffix("s") if typo else None


def _refuse_near_misses(raw: Mapping[str, Any], known: Collection[str]) -> None:
    for name in raw:
        meant = None if name in known or raw[name] in NOTHING else meant_by(name)
        if meant is not None:
            raise InputError(f"the key {short(repr(name))} is not known: did you mean {meant!r}?")


def record_media(raw: Mapping[str, Any]) -> tuple[tuple[Picture, ...], str | None]:
    """A record's images, or the path of its video; an image wins over a video.

    Raises:
        InputError: something else than paths, or than pictures of a table; parts of turns that do not fit them.
    """
    given = {"image": entry(raw, "image"), "video": entry(raw, "video")}
    lists = {kind: value if isinstance(value, list) else [value] for kind, value in given.items() if value is not None}
    of_parts = parts_media(written_turns(raw), {"image": [], "video": []} | lists)
    if not lists and not of_parts:
        _refuse_near_misses(raw, (*names_of("image"), *names_of("video")))
    images, video = of_parts.get("image", lists.get("image")), of_parts.get("video", lists.get("video"))
    if images is not None:
        if not all(isinstance(path, (str, StoredPicture)) and path for path in images):
            raise InputError(f"`image` must be a path or a list of paths, got {given['image'] or images!r:.80}")
        for path in images:
            if isinstance(path, str):
                _check_path(path, "image")
        return tuple(images), None
    if video is None:
        return (), None
    if len(video) != 1 or not isinstance(video[0], str):
        raise InputError(f"`video` must be one path, got {given['video'] or video!r:.80}")
    _check_path(video[0], "video")
    return (), video[0]


def _check_path(path: str, key: str) -> None:
    check_text(path, f"`{key}`")
    if path.startswith("data:") or len(path) > LONGEST_PATH:
        raise InputError(f"`{key}` holds data in place of a path ({path:.30}...): save it as a file and give its path")
    if "://" in path:
        raise InputError(f"`{key}` holds an address in place of a path ({path:.80}): save the file and give its path")
    parts = path.split(",")
    if len(parts) > 1 and all("." in part.strip().rpartition("/")[2] for part in parts):
        raise InputError(f"`{key}` holds {len(parts)} paths in one text, {path:.80}: give a list of paths")
