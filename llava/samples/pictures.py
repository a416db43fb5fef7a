"""Pictures of any kind as upright, opaque RGB: one reader for training, checking, evaluation and frames of videos.

| picture | becomes |
| --- | --- |
| with an EXIF orientation | turned upright |
| RGBA, LA, palette or grey with transparency | drawn over white |
| 16-bit grey | 0..65535 scaled to 0..255 |
| 32-bit and floating point grey | its own smallest to largest value scaled to 0..255 |
| of several frames or pages | its first |
| CMYK, palette, black and white, others | converted to RGB |

A window (`--image_window LOW HIGH`) takes the place of the range of wide grey values; what lies outside is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from llava.errors import InputError
from llava.samples.lenient import attributes_of

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow gives 16-bit files either mode
LARGEST = 65535
MOST_PIXELS = 178_956_970
"""Above so many Pillow refuses a picture, for fear that a small file was made to fill the memory."""


@dataclass(frozen=True)
class PictureSettings:
    """How pictures are read; names of the flags.

    Raises:
        InputError: a window that is none, or a number of pixels below 1.
    """

    image_window: Sequence[float] | None = None
    max_image_pixels: int | None = None
    """Larger pictures are refused; None: `MOST_PIXELS`."""

    def __post_init__(self) -> None:
        window = self.image_window
        if window is not None and not (len(window) == 2 and window[0] < window[1]):
            raise InputError(f"--image_window {' '.join(map(str, window))}: give two numbers, the lower one first")
        if self.max_image_pixels is not None and self.max_image_pixels < 1:
            raise InputError(f"--max_image_pixels {self.max_image_pixels} must be at least 1")

    @classmethod
    def of(cls, data_args: Any) -> PictureSettings:
        """From an object with some of these attributes."""
        return cls(**attributes_of(cls, data_args))


def read_picture(file: Path | BinaryIO, settings: PictureSettings | None = None) -> tuple[Image.Image, list[str]]:
    """A picture as RGB, decoded to its end, and what was done to it beyond that, a line each.

    Raises:
        Exception: of many kinds, as decoders have them; ValueError for one that is too large.
    """
    settings = settings or PictureSettings()
    most, limit = settings.max_image_pixels or MOST_PIXELS, Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # ours is asked instead, which a flag can raise
    try:
        with Image.open(file) as image:
            if image.width * image.height > most:
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels, and more than {most} are refused; raise "
                    "--max_image_pixels if you trust the file"
                )
            return to_rgb(image, settings.image_window)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def to_rgb(image: Image.Image, window: Sequence[float] | None = None) -> tuple[Image.Image, list[str]]:
    """An opened picture, upright and without transparency, mode RGB; and what was done to it."""
    notes = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # further frames of an MPO are previews or depth
        notes.append("of several frames or pages the first is used")
    upright = ImageOps.exif_transpose(image)
    if upright.size != image.size or image.getexif().get(0x0112, 1) != 1:
        notes.append("turned as its EXIF orientation says")
    image = upright
    if image.mode in (*SIXTEEN_BIT, "F"):
        image, note = _to_eight_bits(image, window)
        notes.append(note)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        if image.mode == "RGBa":
            image = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
        notes.append("transparent parts are drawn over white")
    return image.convert("RGB"), notes


def _to_eight_bits(image: Image.Image, window: Sequence[float] | None) -> tuple[Image.Image, str]:
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if window is not None:
        low, high = window
        note = "wide grey values are scaled by --image_window"
    elif image.mode != "F" and low >= 0 and high <= LARGEST:
        low, high = 0.0, float(LARGEST)
        note = "16-bit grey values are scaled to 8 bits (--image_window LOW HIGH takes a narrower range)"
    else:
        note = "wide grey values are scaled by each picture's own range (--image_window LOW HIGH fixes one)"
    scaled = (np.clip(np.nan_to_num(values, nan=low), low, high) - low) * (255 / max(high - low, np.finfo(float).tiny))
    return Image.fromarray(np.floor(scaled + 0.5).astype(np.uint8)), note
