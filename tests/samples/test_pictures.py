"""Pictures of every kind are read as people see them, in training, evaluation and checks alike."""

from __future__ import annotations

import io
import logging
import multiprocessing
from ctypes import c_bool
from multiprocessing import RawArray
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.errors import InputError
from llava.samples import media
from llava.samples.media import open_image, open_picture
from llava.samples.pictures import PictureSettings, read_picture
from llava.samples.settings import SampleSettings
from llava.samples.video import VideoSettings, read_video


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def pixel(file: io.BytesIO, settings: PictureSettings | None = None) -> tuple[tuple[int, ...], list[str]]:
    image, notes = read_picture(file, settings)
    assert image.mode == "RGB"
    return image.getpixel((0, 0)), notes


def grey(values: list[list[float]], dtype: type, form: str) -> io.BytesIO:
    return encoded(Image.fromarray(np.array(values, dtype=dtype)), form)


def test_sixteen_bits_have_their_own_range() -> None:
    assert pixel(grey([[32768, 0]], np.uint16, "PNG"))[0] == (128,) * 3
    found, notes = pixel(grey([[1000, 0]], np.uint16, "PNG"), PictureSettings(image_window=(0, 2000)))
    assert found == (128,) * 3 and "--image_window" in notes[0]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wider_types_are_scaled_by_the_picture(dtype: type) -> None:
    for value, expected in ((-50000, 0), (25000, 128), (100000, 255)):
        assert pixel(grey([[value, -50000, 100000]], dtype, "TIFF"))[0] == (expected,) * 3
    window = PictureSettings(image_window=(0, 25000))
    assert pixel(grey([[-5, 9, 70000]], dtype, "TIFF"), window)[0] == (0, 0, 0)
    assert pixel(grey([[70000, 9, 70000]], dtype, "TIFF"), window)[0] == (255, 255, 255)


def test_a_constant_and_a_missing_value_do_no_harm() -> None:
    assert pixel(grey([[0.5, 0.5]], np.float32, "TIFF"))[0] == (0, 0, 0)
    assert pixel(grey([[np.nan, 1.0]], np.float32, "TIFF"))[0] == (0, 0, 0)


def test_orientation_transparency_frames_and_cmyk() -> None:
    turned = Image.new("RGB", (20, 10), "black")
    exif = Image.Exif()
    exif[0x0112] = 6
    image, notes = read_picture(encoded(turned, "JPEG", exif=exif))
    assert image.size == (10, 20) and "EXIF" in notes[0]
    assert pixel(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))) == (
        (255, 255, 255),
        ["transparent parts are drawn over white"],
    )
    shots = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    found, notes = pixel(encoded(shots[0], "TIFF", save_all=True, append_images=shots[1:]))
    assert found == (255, 0, 0) and "first" in notes[0]
    assert pixel(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"))[0] == (255, 0, 0)


def test_plain_pictures_are_not_spoken_of() -> None:
    assert pixel(encoded(Image.new("RGB", (2, 2), (1, 2, 3)))) == ((1, 2, 3), [])


def test_large_pictures_are_refused_in_one_line(tmp_path: Path) -> None:
    Image.new("1", (400, 300)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png .*400 x 300 pixels, and more than 9999 .*--max_image_pixels"):
        open_picture(tmp_path / "large.png", PictureSettings(max_image_pixels=9999))
    assert open_picture(tmp_path / "large.png", PictureSettings(max_image_pixels=120_000))[0].size == (400, 300)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("values", [{"image_window": [5, 5]}, {"image_window": [1]}, {"max_image_pixels": 0}])
def test_settings_out_of_range(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(values))}"):
        PictureSettings(**values)  # type: ignore[arg-type]


def test_a_kind_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "_said", RawArray(c_bool, 4096))
    for name in ("a.png", "b.png"):
        Image.new("LA", (2, 2)).save(tmp_path / name)
    with caplog.at_level(logging.WARNING, "llava.samples"):
        for name in ("a.png", "b.png"):
            open_image(name, SampleSettings(image_folder=str(tmp_path)))
    assert [record.getMessage() for record in caplog.records] == [
        "image a.png and others like it: transparent parts are drawn over white"
    ]


def test_workers_log_a_kind_once_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a later epoch, which the process forks anew."""
    monkeypatch.setattr(media, "_said", RawArray(c_bool, 4096))
    Image.new("LA", (2, 2)).save(tmp_path / "a.png")

    def work() -> None:
        logging.basicConfig(force=True)
        open_image("a.png", SampleSettings(image_folder=str(tmp_path)))

    for _ in range(3):
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    assert capfd.readouterr().err.count("transparent parts") == 1


def test_frames_of_a_folder_are_read_the_same_way(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 65535, np.uint16)).save(tmp_path / "0.png")
    assert read_video(tmp_path, VideoSettings()).frames[0].getpixel((0, 0)) == (255, 255, 255)
