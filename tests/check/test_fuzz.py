"""Whatever people feed: each of the four ways takes it, or refuses it in one line that says where it stands.

`EXAMPLES` in the environment is the number of examples of each test, in place of a few.
"""

from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from four_ways import FourWays, Outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

fuzz = settings(
    max_examples=int(os.environ.get("EXAMPLES", "20")),
    deadline=None,
    derandomize="EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

ANSWERED = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
TEXTS = st.text(st.characters(codec=None), max_size=12)  # halves of pairs are among them
WORDS = st.sampled_from(
    [
        "",
        " ",
        "<image>",
        "human",
        "gpt",
        "Human",
        "system",
        "user",
        "a.png",
        "b.png",
        "a.png,b.png",
        "film",
        "lost.png",
        "pipe.png",
        "loop.png",
        "folder.png",
        ".",
        "..",
        "/",
        "/dev/zero",
        "\x00",
        "a\nb",
        "�",
        "x" * 3000,
        "data:image/png;base64,AAAA",
        "https://a.b/c.png",
        "<image><image>",
        "ab " * 3000,
    ]
)
NUMBERS = st.integers() | st.floats() | st.just(10**400) | st.booleans() | st.none()
VALUES = st.recursive(
    TEXTS | WORDS | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | WORDS, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "id",
        "image",
        "images",
        "video",
        "videos",
        "conversations",
        "messages",
        "conversation",
        "img",
        "Image",
        "image_1",
        "sample_id",
        "metadata",
        "width",
        "data_source",
    ]
)
TURN_KEYS = st.sampled_from(["from", "value", "role", "content"])
TURNS = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "system", "bot", "GPT", ""]), "value": TEXTS | WORDS}
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FourWays]:
    """By `--image_aspect_ratio`."""
    folder = tmp_path_factory.mktemp("fed")
    for name, size in (("a", (40, 30)), ("b", (9, 50))):
        Image.effect_noise(size, 80).convert("RGB").save(folder / f"{name}.png")
    (folder / "film").mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "film" / "0.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    anyres = {"image_grid_pinpoints": "(1x1),...,(3x3)", "mm_patch_merge_type": "spatial_unpad"}
    changes: dict[str, dict[str, str]] = {"square": {}, "pad": {}, "anyres_max_9": anyres}
    return {name: FourWays(folder, image_aspect_ratio=name, **flags) for name, flags in changes.items()}


RATIOS = st.sampled_from(["square", "pad", "anyres_max_9"])


@st.composite
def record_of(draw: st.DrawFn) -> dict[str, Any]:
    """A good record with some edits."""
    record: dict[str, Any] = {"id": "r", "image": "a.png", "conversations": copy.deepcopy(ANSWERED)}
    for _ in range(draw(st.integers(1, 4))):
        edit = draw(st.sampled_from(["drop", "set", "turns", "turn", "any key"]))
        if edit == "drop":
            record.pop(draw(KEYS), None)
        elif edit == "set":
            record[draw(KEYS)] = draw(VALUES)
        elif edit == "turns":
            record["conversations"] = draw(TURNS)
        elif edit == "turn" and isinstance(record.get("conversations"), list) and record["conversations"]:
            turn = record["conversations"][-1]
            if isinstance(turn, dict):
                turn[draw(TURN_KEYS)] = draw(VALUES)
        else:
            record[draw(TEXTS)] = draw(VALUES)
    return record


def all_ways(ways: FourWays, file: Path) -> tuple[Outcome, Outcome]:
    """What training and the check say, which agree; what is refused is said where it stands, by all four."""
    training, check = ways.training(file), ways.check(file)
    assert bool(training.refused) == bool([text for text in check.refused if "no supervised token" not in text]) or (
        training.refused and "no token of this batch is supervised" in training.refused[0] and check.refused
    ), (training, check)
    for outcome in (training, ways.accuracy(file), ways.model_vqa(file)):
        for text in outcome.refused:
            assert str(file) in text or "number " in text or "nothing to evaluate" in text or "samples: " in text, text
    return training, check


@fuzz
@given(ratio=RATIOS, record=record_of())
def test_records(all_of_them: dict[str, FourWays], ratio: str, record: dict[str, Any]) -> None:
    ways = all_of_them[ratio]
    file = ways.folder / "data.json"
    file.write_text(json.dumps([record]))
    training, _ = all_ways(ways, file)
    if training.made:
        shown = record.get("image") or record.get("images") or record.get("video") or record.get("videos") or []
        shown = shown if isinstance(shown, list) else [shown]
        [item] = training.made
        assert [kind for _, _, kind in item["image"] if kind != "text"] == ["image"] * len(shown) or shown == ["film"]
        sizes = {"a.png": (40, 30), "b.png": (9, 50), "film": (20, 20)}
        assert [size for _, size, kind in item["image"] if kind != "text"] == [sizes[path] for path in shown]
        assert (item["input_ids"] == -200).sum() == len(shown)
    skipping = ways.training(file, skip_bad_samples=True)
    if training.refused:
        assert not skipping.made and (
            "all 1 records are bad" in skipping.refused[0] or str(file) in skipping.refused[0]
        )


RECORDS = json.dumps([{"id": str(k), "image": "a.png", "conversations": ANSWERED} for k in range(2)], indent=1)
TOKENS = st.sampled_from(
    [
        '"id": 1,',
        '"image": "b.png",',
        "[" * 40,
        "[" * 3000,
        "{",
        "]",
        "}",
        ",",
        "9" * 5000,
        "NaN",
        "1e999",
        "null",
        '"',
        "\\ud800",
        "\ufeff",
        "\n",
        "\x00",
        "// no",
        "é",
    ]
)


@st.composite
def content_of(draw: st.DrawFn) -> bytes:
    """A file of two good records with edits of its text and its bytes."""
    text = RECORDS if draw(st.booleans()) else "\n".join(json.dumps(record) for record in json.loads(RECORDS))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        end = draw(st.integers(place, min(len(text), place + 30)))
        text = text[:place] + draw(TOKENS | TEXTS) + text[end:]
    data = text.encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"])), "replace")
    data = data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 5)) == 0 else data
    return draw(st.binary(max_size=50)) if draw(st.integers(0, 9)) == 0 else data


@fuzz
@given(ratio=RATIOS, content=content_of(), suffix=st.sampled_from(["json", "jsonl"]))
def test_files(all_of_them: dict[str, FourWays], ratio: str, content: bytes, suffix: str) -> None:
    ways = all_of_them[ratio]
    file = ways.folder / f"data.{suffix}"
    file.write_bytes(content)
    all_ways(ways, file)


MIXTURE = "datasets:\n  - json_path: {file}\n    sampling_strategy: first:1\n"
YAML = st.sampled_from(
    [
        "first:1",
        "random:50%",
        "end:" + "9" * 5000,
        "all",
        "datasets:",
        "json_path",
        "&a [*a]",
        "- 1",
        "? [a]",
        "1: 2",
        "2021-13-45",
        "9" * 5000,
        "!!python/object:os.system",
        "[" * 200,
        "\t",
        "\\ud800",
        '"\\0"',
        "null",
        "{}",
        "%",
    ]
)


@fuzz
@given(ratio=RATIOS, data=st.data())
def test_mixtures(all_of_them: dict[str, FourWays], ratio: str, data: st.DataObject) -> None:
    ways = all_of_them[ratio]
    good, file = ways.folder / "good.json", ways.folder / "data.yaml"
    good.write_text(RECORDS)
    text = MIXTURE.format(file=good)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(place, min(len(text), place + 20)))
        text = text[:place] + data.draw(YAML | TEXTS) + text[end:]
    file.write_text(text, errors="replace")
    training, check = ways.training(file), ways.check(file)
    assert bool(training.refused) == bool(check.refused)
    for line in training.refused:
        assert file.name in line or "data file" in line


Image.init()
MODES: dict[str, list[str]] = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "GIF": ["1", "L", "P", "RGB", "RGBA"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"],
    "PPM": ["1", "L", "I;16", "RGB"],
    "TGA": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "PCX": ["1", "L", "RGB"],  # of a palette, which stands last, nothing says that it is missing
    "ICO": ["L", "P", "RGB", "RGBA"],
    "SGI": ["L", "RGB", "RGBA"],
    "DDS": ["RGB", "RGBA", "L", "LA"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA"],
    "MPO": ["RGB"],
    "IM": ["1", "L", "P", "RGB", "F", "CMYK", "YCbCr"],
    "MSP": ["1"],
    "SPIDER": ["F"],
    "XBM": ["1"],
}
SIZES = st.tuples(*[st.integers(1, 40) | st.sampled_from([1, 1, 2, 100])] * 2) | st.sampled_from([(600, 1), (1, 600)])


@st.composite
def picture_of(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A picture file, and the same with an edit."""
    kind = draw(st.sampled_from(list(MODES)))
    mode, size = draw(st.sampled_from(MODES[kind])), draw(SIZES)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], np.uint8))
    picture = noise if mode == "L" else Image.new(mode, size) if mode == "LAB" else noise.convert("RGB").convert(mode)
    more: dict[str, Any] = {}
    if kind in ("JPEG", "PNG", "WEBP", "TIFF", "MPO") and draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 10))
        more["exif"] = exif
    if kind in ("PNG", "GIF", "TIFF", "WEBP", "MPO") and draw(st.booleans()):
        more |= {"save_all": True, "append_images": [picture.copy().rotate(180)]}
    if kind in ("PNG", "GIF") and mode in ("1", "L", "P", "RGB", "I;16") and draw(st.booleans()):
        more["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    buffer = io.BytesIO()
    try:
        picture.save(buffer, kind, **more)
    except (OSError, ValueError, KeyError, TypeError, SystemError):  # what Pillow cannot write
        picture.convert("RGB").save(buffer, "PNG")
    whole = data = buffer.getvalue()
    edit = draw(st.sampled_from(["none", "cut", "flip", "swap", "add"]))
    place = draw(st.integers(0, len(data) - 1))
    if edit == "cut":
        data = data[:place]
    elif edit == "flip":
        data = data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
    elif edit == "swap":
        data = data[place:] + data[:place]
    elif edit == "add":
        data = data + draw(st.binary(max_size=20))
    return whole, data


@fuzz
@given(ratio=RATIOS, pictures=picture_of(), suffix=st.sampled_from(["png", "jpg", "gif", "txt"]))
def test_pictures(all_of_them: dict[str, FourWays], ratio: str, pictures: tuple[bytes, bytes], suffix: str) -> None:
    ways = all_of_them[ratio]
    whole, edited = pictures
    name, file = f"fed.{suffix}", ways.folder / "data.json"
    file.write_text(json.dumps([{"id": "r", "image": name, "conversations": ANSWERED}]))
    (ways.folder / name).write_bytes(whole)
    first, _ = all_ways(ways, file)
    (ways.folder / name).write_bytes(edited)
    training, check = all_ways(ways, file)
    refused = ways.accuracy(file).refused
    assert bool(refused) == bool(training.refused) and bool(ways.model_vqa(file).refused) == bool(refused)
    if len(edited) < len(whole) and training.made and first.made:  # cut, and taken: then nothing of it was lost
        assert (training.made[0]["image"][0][0] == first.made[0]["image"][0][0]).all()
    for text in training.refused + check.refused:
        assert name in text or "model_max_length" in text, text
