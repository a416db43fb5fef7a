"""A run is not begun with records whose files are not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from llava.errors import InputError
from llava.samples.media_files import check_media_files
from llava.samples.record import Record
from llava.samples.stored import StoredPicture


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "frames").mkdir()
    return tmp_path


def check(folder: Path | None, *shown: dict[str, Any]) -> None:
    records = [("some.json", Record(f"r{number}", number, (), **one)) for number, one in enumerate(shown)]
    below = None if folder is None else str(folder)
    check_media_files(records, below, below)


def test_what_is_there_passes(folder: Path) -> None:
    in_a_table = StoredPicture("00", "t.parquet row 0", None, 0, ())
    check(
        folder, {"images": ("a/1.png", "b/1.png", in_a_table)}, {"images": ("b/../a/2.png",)}, {"video": "frames"}, {}
    )
    check(None, {"images": (str(folder / "a" / "1.png"),)})


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ({"images": ("a/1.png", "a/3.png")}, r"image .*a/3.png does not exist; check --image_folder"),
        ({"images": ("none/1.png",)}, "image .*none/1.png does not exist"),
        ({"video": "a/1.mp4"}, r"video .*a/1.mp4 does not exist; check --video_folder"),
    ],
)
def test_the_first_that_is_missing_is_named_with_its_record(shown: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"^some.json: record 'r1' \(number 1\): " + told + "[^(]*$"):
        check(folder, {"images": ("a/1.png",)}, shown)


def test_others_are_counted(folder: Path) -> None:
    with pytest.raises(InputError, match=r"a/4.png .*\(2 more are missing, `python -m llava.data.check` lists them\)"):
        check(folder, {"images": ("a/4.png", "a/5.png")}, {"video": "frames.mp4"})


def test_a_folder_is_listed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Mock(wraps=os.listdir)
    monkeypatch.setattr(os, "listdir", listing)
    monkeypatch.setattr(Path, "exists", lambda path: pytest.fail("asked for a file that is listed"))
    check(folder, *({"images": (name,)} for name in ("a/1.png", "a/2.png", "b/1.png", "a/1.png")))
    assert [call.args[0].name for call in listing.mock_calls] == ["a", "b"]
