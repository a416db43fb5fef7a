"""One record to its ids, labels and pixels, with every check that training makes of it.

`LazySupervisedDataset` fetches its items through this, and `llava.check.command` gives its verdict through it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.samples.chat_labels import template_system_text
from llava.samples.encoding import Encoded
from llava.samples.media import Entry, Media, media_entries, open_image
from llava.samples.preprocess import encode
from llava.samples.record import Picture, Record
from llava.samples.settings import SampleSettings
from llava.samples.turns import Turn, count_image_marks, place_image_marks, split_system
from llava.samples.video import Video, VideoSettings, read_video

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleMaker:
    """The steps from a record to a sample, in the order in which training takes them.

    Attributes:
        open_image: (path, settings) to an image.
        open_video: (path, settings) to a video.
        make_entries: media and settings to entries.
    """

    tokenizer: Any
    settings: SampleSettings
    open_image: Callable[[Picture, SampleSettings], Image.Image] = open_image
    open_video: Callable[[str, VideoSettings], Video] = read_video
    make_entries: Callable[[Media, SampleSettings], list[Entry]] = media_entries

    def open(self, record: Record) -> Media:
        """The record's images or video. Raises `InputError` for the first that cannot be used."""
        if record.has_media and self.settings.image_processor is None:
            raise InputError("the record has an image or a video, but there is no vision tower; set --vision_tower")
        if record.video is not None:
            path = os.path.join(self.settings.video_folder or "", record.video)
            return Media(video=self.open_video(path, self.settings.video))
        return Media(images=tuple(self.open_image(path, self.settings) for path in record.images))

    def entries(self, media: Media) -> list[Entry]:
        """(pixels, (width, height), modality) of each image, or of the video."""
        return self.make_entries(media, self.settings) if media else []

    def encode(self, record: Record, media: Media) -> Encoded:
        """Ids and labels, before any cut. Raises `InputError` for marks or turns that do not fit."""
        turns: Sequence[Turn] = record.turns
        if media:
            check_marks(record)
            if media.video is not None and self.settings.add_time_instruction:
                turns = _with_time_instruction(turns, media.video)
            turns = place_image_marks(turns, self.settings.mm_use_im_start_end)
        template = self.settings.template
        system = template_system_text(template) if self.settings.use_template_system_prompt else None
        encoded = encode(turns, self.tokenizer, bool(media), template, system)
        kept = encoded.input_ids.count(IMAGE_TOKEN_INDEX)
        if kept > len(media):
            _check_marks(kept, len(media))
        elif kept < len(media):
            logger.warning("the conversation template shows only the first %d of %d images", kept, len(media))
        return encoded

    def check_cut(self, encoded: Encoded, entries: list[Entry]) -> None:
        """Refuse a sample whose answers the model cuts off after splicing: all, with `whole_answers_for` any of them.

        Without `count_image_tokens` only what the collator cuts is known, and any label that it leaves will do.
        """
        labels = self.labels(encoded) if self.settings.count_image_tokens is None else encoded.answer_labels
        first = next((k for k, label in enumerate(labels) if label != IGNORE_INDEX), None)
        if first is None:
            return
        limit = self.tokenizer.model_max_length
        place = self.spliced_place(encoded, first, entries)
        if place >= limit:
            raise InputError(
                f"its answer begins at token {place + 1}, so --model_max_length {limit} cuts off all supervised "
                "tokens; raise --model_max_length or use fewer image tiles"
            )
        if not self.settings.whole_answers_for:
            return
        last = max(k for k, label in enumerate(labels) if label != IGNORE_INDEX)
        place = self.spliced_place(encoded, last, entries)
        if place >= limit:
            raise InputError(
                f"its answer ends at token {place + 1}, so --model_max_length {limit} cuts off a part of it, and "
                f"{self.settings.whole_answers_for} needs all of it; raise --model_max_length or use fewer image tiles"
            )

    def check_supervised(self, encoded: Encoded) -> None:
        """Refuse a sample without any label: alone in a batch, its loss would be undefined."""
        if all(label == IGNORE_INDEX for label in self.labels(encoded)):
            raise InputError("it has no supervised token")

    def examine(self, record: Record) -> None:
        """All checks, at the price of pixels only where they decide. Raises `InputError` for a record that is bad."""
        media = self.open(record)
        encoded = self.encode(record, media)
        self.check_cut(encoded, self.entries(media) if self.settings.count_image_tokens is not None else [])
        self.check_supervised(encoded)

    def spliced_place(self, encoded: Encoded, index: int, entries: list[Entry]) -> int:
        """Where token `index` (or, for the number of ids, the end) is once images are spliced in, if that is known."""
        count = self.settings.count_image_tokens
        if count is None:
            return index
        before = encoded.input_ids[:index].count(IMAGE_TOKEN_INDEX)
        return index + sum(count(*entry) - 1 for entry in entries[:before])

    def labels(self, encoded: Encoded) -> list[int]:
        """The labels that `train_on_answers_only` chooses."""
        return encoded.answer_labels if self.settings.train_on_answers_only else encoded.labels


def check_marks(record: Record) -> None:
    """Refuse a record with images or a video whose turns have another number of `<image>` marks."""
    if record.has_media:
        marks = count_image_marks(record.turns)
        written = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in record.turns)
        hint = " (the first turn is not from a human and is left out; are the roles swapped?)"
        _check_marks(marks, record.shown, hint if marks < written else "")


def _check_marks(marks: int, media: int, hint: str = "") -> None:
    if marks != media:
        raise InputError(
            f"{marks} {DEFAULT_IMAGE_TOKEN} marks in the turns, but {media} images or videos; each needs one mark{hint}"
        )


def _with_time_instruction(turns: Sequence[Turn], video: Video) -> list[Turn]:
    """New turns; the first human one tells when the frames of the video were taken."""
    first = split_system(turns)[1][0]
    text = first["value"].replace(DEFAULT_IMAGE_TOKEN, "")
    sentence = (
        f"The video lasts for {video.seconds:.2f} seconds, and {len(video.frames)} frames are uniformly sampled "
        f"from it. These frames are located at {video.times_text}.Please answer the following questions related to "
        "this video."
    )
    timed = first | {"value": f"{DEFAULT_IMAGE_TOKEN}\n{sentence}\n{text}"}
    return [timed if turn is first else turn for turn in turns]
