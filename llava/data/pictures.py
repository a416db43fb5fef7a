"""Pictures of any kind to small RGB PNG files.

| picture | becomes |
| --- | --- |
| with an EXIF orientation | turned upright |
| RGBA, LA, palette or grey with transparency | drawn over white |
| 16-bit grey | 0..65535 scaled to 0..255 |
| CMYK, palette, black and white, others | converted to RGB |
| MPO (JPEG of some cameras) | its first frame, which is the photograph; the others are previews or depth |
| other files of several frames or pages, 32-bit float | refused: which frame or range is meant is not known |

Colour profiles and metadata are dropped.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from llava.errors import InputError

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow gives 16-bit files either mode
_LARGEST = 65535


def prepared_png(data: bytes, max_side: int, where: str) -> bytes:
    """A picture file as an RGB PNG whose longer side is at most `max_side` pixels; smaller ones keep their size.

    Equal input gives equal bytes with the same version of Pillow. Raises `InputError`, beginning with `where`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = scaled_down(to_rgb(image), max_side)
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        # Pillow names the buffer it read from by its address in memory, which helps nobody.
        reason = "it is no picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{where} cannot be used: {reason}") from error
    file = io.BytesIO()
    small.save(file, format="PNG")
    return file.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture, upright and without transparency, mode RGB.

    Raises:
        ValueError: several frames, or grey values without a known range.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(f"it has {getattr(image, 'n_frames', 'several')} frames or pages, but must have one")
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT:
        image = _to_eight_bits(image)
    if image.mode == "F":
        raise ValueError("it has grey values in floating point, whose range is not known")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > _LARGEST:
        raise ValueError(f"it has grey values from {values.min()} to {values.max()}, but 16 bits end at {_LARGEST}")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 257 = 65535 / 255, rounded to nearest


def scaled_down(image: Image.Image, max_side: int) -> Image.Image:
    """The picture with its longer side at most `max_side` and its aspect kept; without metadata."""
    longer = max(image.size)
    if longer > max_side:
        width, height = (max(1, (side * max_side + longer // 2) // longer) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    image.info = {}  # a colour profile would be written into the file
    return image
