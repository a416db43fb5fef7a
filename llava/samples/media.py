"""The images and videos of records: which files, how they are opened, which pixels they become."""

from __future__ import annotations

import logging
import zlib
from ctypes import c_bool
from dataclasses import dataclass
from multiprocessing import RawArray
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.errors import InputError, short
from llava.mm_utils import image_processing
from llava.samples.pictures import PictureSettings, read_picture
from llava.samples.record import Picture
from llava.samples.settings import SampleSettings
from llava.samples.stored import StoredPicture
from llava.samples.video import Video

logger = logging.getLogger(__name__)

IMAGE, VIDEO, TEXT = "image", "video", "text"
MULTI_IMAGE_ASPECT_RATIO = "pad"

Entry = tuple[torch.Tensor, tuple[int, int], str]


@dataclass(frozen=True)
class Media:
    """What a record shows: opened images, or one video, or nothing."""

    images: tuple[Image.Image, ...] = ()
    video: Video | None = None

    def __len__(self) -> int:
        """Number of `<image>` marks that the text needs."""
        return len(self.images) + (self.video is not None)


def below(folder: str | Path | None, picture: Picture) -> Path | StoredPicture:
    """Where a picture of a record is: a path below the folder, or in a table."""
    return Path(folder or "", picture) if isinstance(picture, str) else picture


def open_image(path: Picture, settings: SampleSettings) -> Image.Image:
    """The whole image, decoded, as RGB; what was done to it is logged once a kind.

    Raises:
        InputError: it is missing, truncated, too large or no image.
    """
    image, notes = open_picture(below(settings.image_folder, path), settings.pictures)
    for note in notes:
        if not _said[place := zlib.crc32(note.encode()) % len(_said)]:
            _said[place] = True
            logger.warning("image %s and others like it: %s", path, note)
    return image


_said = RawArray(c_bool, 4096)
"""Whether a note was logged, by its checksum: in memory that forked workers share, of all epochs."""


def open_picture(
    file: Path | StoredPicture, settings: PictureSettings | None = None, flag: str = "--image_folder"
) -> tuple[Image.Image, list[str]]:
    """As `read_picture`. Raises `InputError` that names the file; `flag` says which folder it is below."""
    try:
        if isinstance(file, StoredPicture):
            return read_picture(file.open(), settings)
        if not file.is_file() and file.exists():  # reading a pipe or a device may never end
            raise InputError(f"image {short(file)} is a folder or a device, but must be a file")
        return read_picture(file, settings)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"image {short(file)} does not exist; check {flag} and the record's path") from error
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        reason = short(getattr(error, "strerror", None) or error)
        raise InputError(f"image {short(file)} cannot be decoded, it is damaged or not an image: {reason}") from error


def media_entries(media: Media, settings: SampleSettings) -> list[Entry]:
    """(pixels, (width, height) of the original, modality) of each image, or of the video as one entry.

    One image is processed by `image_aspect_ratio`, several are padded to squares; a video is [frames, 3, S, S].
    """
    if media.video is not None:
        frames = media.video.frames
        pixels = settings.image_processor.preprocess(frames, return_tensors="pt")["pixel_values"]
        return [(pixels, frames[0].size, VIDEO)]
    mode = MULTI_IMAGE_ASPECT_RATIO if len(media.images) > 1 else None
    return [image_entry(image, settings, mode) for image in media.images]


def image_entry(image: Image.Image, settings: SampleSettings, aspect_ratio: str | None = None) -> Entry:
    """One image by `aspect_ratio`, else by that of the settings."""
    process = image_processing(aspect_ratio or settings.image_aspect_ratio)
    return process(image, settings.image_processor, settings.image_grid_pinpoints), image.size, IMAGE


def tiles_of(entry: torch.Tensor) -> torch.Tensor:
    """Pixels of an image, [3, S, S] or [tiles, 3, S, S], as the latter."""
    return entry[None] if entry.ndim == 3 else entry


def dummy_entry(side: int) -> Entry:
    """Stands in the batch for the image that a text-only sample does not have."""
    return torch.zeros(1, 3, side, side), (side, side), TEXT


def processor_side(processor: Any) -> int:
    """Side in pixels of what the image processor gives out."""
    crop = getattr(processor, "crop_size", None)
    size = crop if crop is not None else processor.size
    return int(size["height"] if isinstance(size, dict) else size if isinstance(size, int) else size[0])
