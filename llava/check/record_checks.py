"""Training's verdict about single records, with everything that is wrong with one and without stopping at it.

The steps are those of `llava.samples.sample_maker`, which training itself takes. Pictures and videos are really
decoded, each file once; what is kept of them is their size, which tells the number of tokens, or the reason why not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError, short
from llava.mm_utils import count_tiles
from llava.samples.encoding import Encoded
from llava.samples.loading import JsonRecord
from llava.samples.media import (
    IMAGE,
    MULTI_IMAGE_ASPECT_RATIO,
    VIDEO,
    Entry,
    Media,
    below,
    open_picture,
    processor_side,
)
from llava.samples.record import NOTHING, Picture, Record, check_id, entry, record_media
from llava.samples.sample_maker import SampleMaker, check_marks
from llava.samples.settings import SampleSettings
from llava.samples.turns import ANSWER, HUMAN, OTHER_NAMES, SYSTEM, Turn, count_image_marks, record_turns
from llava.samples.video import Video, VideoSettings, read_video

# What can be wrong with a record, in the order in which training would notice.
PROBLEMS = {
    "turns": "malformed turns",
    "media": "missing or broken images and videos",
    "marks": f"{DEFAULT_IMAGE_TOKEN} marks that do not match",
    "template": "turns that the conversation template cannot hold",
    "cut": "answers that --model_max_length cuts off entirely",
    "unsupervised": "nothing to learn from (a batch of such records alone stops a run)",
}


@dataclass(frozen=True)
class Problem:
    """Why training would stop at a record: a key of `PROBLEMS`, the message, and the file if it is one's fault."""

    kind: str
    message: str
    path: str | None = None


@dataclass
class Verdict:
    """What training would make of a record.

    Attributes:
        problems: training would fail if there are any.
        warnings: (what holds for many records, what is said of this one).
        record: as training reads it; None when its turns or media are malformed.
        length: tokens before any cut, images included; None when that is not known.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    record: Record | None = None
    length: int | None = None


@dataclass(frozen=True)
class Outline:
    """What is kept of a picture: (width, height), and what is done to it when it is read."""

    size: tuple[int, int]
    notes: tuple[str, ...] = ()


class OpenedOnce:
    """Opens every picture and video the way training does, once, and keeps its outline or what is wrong with it."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Any], Any] = {}

    def image(self, path: Picture, settings: SampleSettings) -> Any:
        def outline() -> Outline:
            picture, notes = open_picture(below(settings.image_folder, path), settings.pictures)
            return Outline(picture.size, tuple(notes))

        return self._once((IMAGE, path), outline)

    def video(self, path: str, settings: VideoSettings) -> Video:
        def outline() -> Video:
            video = read_video(path, settings)
            frame: Any = Outline(video.frames[0].size)
            return Video([frame] * len(video.frames), video.times, video.seconds)

        return self._once((VIDEO, path), outline)

    def _once(self, key: tuple[str, Any], look: Callable[[], Any]) -> Any:
        if key not in self._seen:
            try:
                self._seen[key] = look()
            except Exception as error:  # whatever it is, it would stop training; pixels hang on its traceback
                self._seen[key] = _reason(error)
        found = self._seen[key]
        if isinstance(found, str):
            raise InputError(found)
        return found


def entry_outlines(media: Media, settings: SampleSettings) -> list[Entry]:
    """What `llava.samples.media.media_entries` gives, in shape: pixels on the meta device, [tiles, 3, S, S]."""
    side = processor_side(settings.image_processor)
    if media.video is not None:
        frames = media.video.frames
        return [(torch.empty(len(frames), 3, side, side, device="meta"), frames[0].size, VIDEO)]
    several = len(media.images) > 1
    name = MULTI_IMAGE_ASPECT_RATIO if several else settings.image_aspect_ratio
    entries = []
    for image in media.images:
        tiles = count_tiles(name, image.size, settings.image_processor, settings.image_grid_pinpoints)
        entries.append((torch.empty(tiles, 3, side, side, device="meta"), image.size, IMAGE))
    return entries


class RecordChecker:
    """Gives verdicts about the records of a run.

    Args:
        knows_lengths: whether the tokenizer is the run's, and not one that stands in for it.
    """

    def __init__(self, tokenizer: Any, settings: SampleSettings, knows_lengths: bool) -> None:
        self.knows_lengths = knows_lengths
        self._opened = OpenedOnce()
        self.maker = SampleMaker(tokenizer, settings, self._opened.image, self._opened.video, entry_outlines)

    def check(self, raw: JsonRecord, number: int) -> Verdict:
        """Everything that is wrong with a record; when nothing is, training takes it."""
        verdict = Verdict()
        turns: list[Turn] | None = None
        found: tuple[tuple[Picture, ...], str | None] | None = None
        with _attempt(verdict, "turns"):
            turns = record_turns(raw)
        with _attempt(verdict, "turns"):
            check_id(raw)
        with _attempt(verdict, "media"):
            found = record_media(raw)
        record = Record(raw.get("id"), number, tuple(turns or ()), *(found or ()))
        media = None if found is None else self._media(record, verdict)
        if turns is None:
            return verdict
        verdict.warnings += [(text, text) for text in _oddities(raw, record)]
        if found is not None:
            verdict.record = record
        if media is None:
            return verdict
        marks_fit = False
        with _attempt(verdict, "marks"):
            check_marks(record)
            marks_fit = True
        if marks_fit:
            self._check_tokens(record, media, verdict)
        return verdict

    def _media(self, record: Record, verdict: Verdict) -> Media | None:
        """The record's media; with outlines of one pixel for images that are broken; None if it cannot be said."""
        opened: Media | None = None
        trial = Verdict()
        with _attempt(trial, "media"):
            opened = self.maker.open(record)
        if opened is not None:
            outlines: Any = opened.images
            for note in dict.fromkeys(note for outline in outlines for note in outline.notes):
                verdict.warnings.append((note, note))
            return opened
        settings = self.maker.settings
        if record.images and settings.image_processor is not None:
            for path in dict.fromkeys(record.images):
                with _attempt(verdict, "media", str(path)):
                    self._opened.image(path, settings)
            return Media(images=(Outline((1, 1)),) * len(record.images))
        verdict.problems += [Problem(problem.kind, problem.message, record.video) for problem in trial.problems]
        return None

    def _check_tokens(self, record: Record, media: Media, verdict: Verdict) -> None:
        encoded: Encoded | None = None
        with _attempt(verdict, "template"), _training_warnings(verdict):
            encoded = self.maker.encode(record, media)
        if encoded is None:
            return
        with _attempt(verdict, "unsupervised"):
            self.maker.check_supervised(encoded)
        if not self.knows_lengths or any(problem.kind == "media" for problem in verdict.problems):
            return
        with _attempt(verdict, "cut"):
            entries = self.maker.entries(media)
            verdict.length = self.maker.spliced_place(encoded, len(encoded.input_ids), entries)
            self.maker.check_cut(encoded, entries)


def _oddities(raw: JsonRecord, record: Record) -> Iterator[str]:
    """What training takes, but not as its author may have meant it."""
    turns = record.turns
    if entry(raw, "image") is not None and entry(raw, "video") is not None:
        yield "has an image and a video; the video is not used"
    for key, others in OTHER_NAMES.items():
        for name in (key, *others):
            if entry(raw, key) is not None and raw.get(name) not in (*NOTHING, entry(raw, key)):
                yield f"has several of {', '.join((key, *others))}, which differ; {name} is not used"
    if not record.has_media and count_image_marks(turns):
        yield f"has {DEFAULT_IMAGE_TOKEN} but no image: the mark is read as text"
    roles = [turn["from"] for turn in turns]
    unknown = sorted(set(roles) - {HUMAN, ANSWER, SYSTEM})
    if unknown:
        yield f"turns from {short(', '.join(map(repr, unknown)))}, which is none of human, gpt, system, user, assistant"
    spoken = roles[1:] if roles[0] == SYSTEM else roles
    if spoken and spoken[0] != HUMAN:
        yield "the first turn is not from a human and is left out"
        spoken = spoken[1:]
    if ANSWER not in spoken:
        yield "no turn is an answer (from gpt)"
    elif not unknown and spoken != [HUMAN, ANSWER] * (len(spoken) // 2):
        yield "turns do not alternate between human and gpt up to an answer"
    if any(not turn["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip() for turn in turns if turn["from"] == HUMAN):
        yield "a human turn has no text"


@contextmanager
def _attempt(verdict: Verdict, kind: str, path: str | None = None) -> Iterator[None]:
    """Whatever is raised inside becomes a problem of the verdict."""
    try:
        yield
    except Exception as error:  # not InputError alone: any error would stop the run at this record
        verdict.problems.append(Problem(kind, _reason(error), path))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {short(error)}"


@contextmanager
def _training_warnings(verdict: Verdict) -> Iterator[None]:
    """What training would log as a warning belongs to the verdict, by its text before numbers are put in."""

    class Collector(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            verdict.warnings.append((str(entry.msg), entry.getMessage()))

    collector = Collector(logging.WARNING)
    logger = logging.getLogger("llava.samples")
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
