"""Pictures of every kind become upright, opaque RGB of the right size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from llava.data.pictures import prepared_png
from llava.errors import InputError


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def opened(data: bytes, max_side: int = 100) -> Image.Image:
    image = Image.open(io.BytesIO(prepared_png(data, max_side, "here")))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


def first_pixel(image: Image.Image, form: str = "PNG", **options) -> tuple[int, ...]:
    return opened(encoded(image, form, **options)).getpixel((0, 0))


def palette(transparent: int) -> Image.Image:
    """Index 0 everywhere; its colour is black."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.info["transparency"] = transparent
    return image


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 100, 200, 51)), (204, 224, 244)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (palette(transparent=0), (255, 255, 255)),
        (palette(transparent=1), (0, 0, 0)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
    ],
    ids=["clear", "translucent", "grey", "palette", "palette, another colour", "opaque grey", "bits"],
)
def test_transparency_is_drawn_over_white(image, pixel):
    assert first_pixel(image) == pixel


def test_one_transparent_colour_is_white():
    assert first_pixel(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9)) == (255, 255, 255)


@pytest.mark.parametrize(("value", "grey"), [(65535, 255), (32768, 128), (300, 1), (0, 0)])
def test_sixteen_bits_are_scaled(value, grey):
    values = np.full((4, 4), value, dtype=np.uint16)
    assert first_pixel(Image.fromarray(values)) == (grey,) * 3
    assert first_pixel(Image.fromarray(values.astype(np.int32)), "TIFF") == (grey,) * 3


def test_cmyk_is_converted():
    red = first_pixel(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert red == (255, 0, 0)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left edge is the top
    upright = opened(encoded(image, exif=exif))
    assert upright.size == (10, 20)
    assert (upright.getpixel((5, 2)), upright.getpixel((5, 17))) == ((255, 255, 255), (0, 0, 0))
    assert not upright.getexif()


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [((100, 50), 40, (40, 20)), ((50, 100), 40, (20, 40)), ((30, 20), 40, (30, 20)), ((999, 2), 40, (40, 1))],
)
def test_only_longer_pictures_are_scaled(size, max_side, expected):
    assert opened(encoded(Image.new("RGB", size)), max_side).size == expected


def test_scaling_averages():
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    values = np.asarray(opened(encoded(stripes), 8))[2:-2, 2:-2]
    assert abs(values.astype(int) - 128).max() < 12


def test_profiles_and_texts_are_dropped():
    image = Image.new("RGB", (4, 4))
    assert prepared_png(encoded(image, icc_profile=b"x" * 200, dpi=(72, 72)), 9, "") == prepared_png(
        encoded(image), 9, ""
    )


def frames(form: str) -> bytes:
    shots = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return encoded(shots[0], form, save_all=True, append_images=shots[1:])


def test_the_photograph_of_an_mpo_is_used():
    red, _, blue = opened(frames("MPO")).getpixel((4, 4))
    assert red > 200 and blue < 50


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frames("GIF"), "2 frames"),
        (frames("TIFF"), "2 frames"),
        (b"no picture", "it is no picture$"),
        (encoded(Image.effect_noise((64, 64), 9))[:900], "truncated"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating point"),
        (encoded(Image.new("I", (4, 4), 70000), "TIFF"), "70000"),
    ],
    ids=["animated", "pages", "text", "truncated", "float", "32 bits"],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(InputError, match=rf"^yes/y1.png cannot be used: .*{message}"):
        prepared_png(data, 9, "yes/y1.png")
