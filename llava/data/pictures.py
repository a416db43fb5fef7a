"""Pictures of any kind to small RGB PNG files.

What is done to one is in `llava.samples.pictures`, the reader of training. Refused here, since it is not known what
is meant: files of several frames or pages (but for MPO, the JPEG of some cameras, whose first frame is the
photograph), grey values in floating point or beyond 16 bits.

Colour profiles and metadata are dropped.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from llava.errors import InputError
from llava.samples.pictures import LARGEST, SIXTEEN_BIT, to_rgb


def prepared_png(data: bytes, max_side: int, where: str) -> bytes:
    """A picture file as an RGB PNG whose longer side is at most `max_side` pixels; smaller ones keep their size.

    Equal input gives equal bytes with the same version of Pillow. Raises `InputError`, beginning with `where`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = scaled_down(_as_meant(image), max_side)
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        # Pillow names the buffer it read from by its address in memory, which helps nobody.
        reason = "it is no picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{where} cannot be used: {reason}") from error
    file = io.BytesIO()
    small.save(file, format="PNG")
    return file.getvalue()


def _as_meant(image: Image.Image) -> Image.Image:
    """An opened picture as RGB.

    Raises:
        ValueError: several frames, or grey values without a known range.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(f"it has {getattr(image, 'n_frames', 'several')} frames or pages, but must have one")
    if image.mode == "F":
        raise ValueError("it has grey values in floating point, whose range is not known")
    if image.mode in SIXTEEN_BIT:
        values: Any = image.getextrema()
        low, high = values
        if low < 0 or high > LARGEST:
            raise ValueError(f"it has grey values from {low} to {high}, but 16 bits end at {LARGEST}")
    return to_rgb(image)[0]


def scaled_down(image: Image.Image, max_side: int) -> Image.Image:
    """The picture with its longer side at most `max_side` and its aspect kept; without metadata."""
    longer = max(image.size)
    if longer > max_side:
        width, height = (max(1, (side * max_side + longer // 2) // longer) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    image.info = {}  # a colour profile would be written into the file
    return image
