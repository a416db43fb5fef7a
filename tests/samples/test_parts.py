"""Records of typed parts give the tokens, labels and pixels of the LLaVA record that means the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from llava.errors import InputError
from llava.model.multimodal_encoder.siglip_encoder import SigLipImageProcessor
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.record import read_record

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
TEMPLATES = {"qwen_1_5": "tokenizer_qwen", "llava_llama_3": "tokenizer_llama3", "v1": "tokenizer_llama"}
ANSWER = {"role": "assistant", "content": "A dog."}
IMAGE, PLACE = {"type": "image", "image": "a.png"}, {"type": "image"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def llava(*texts: str, **media: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    turns = [{"from": roles[k % 2], "value": value} for k, value in enumerate(texts)]
    return {"conversations": turns, **media}


SAME = {
    "a file in the part": (
        {"messages": [user(IMAGE, text("What?")), ANSWER]},
        llava("<image>\nWhat?", "A dog.", image="a.png"),
    ),
    "path": (
        {"messages": [user({"type": "image", "path": "a.png"}, text("What?")), ANSWER]},
        llava("<image>\nWhat?", "A dog.", image="a.png"),
    ),
    "image last": (
        {"messages": [user(text("What?"), IMAGE), ANSWER]},
        llava("What?\n<image>", "A dog.", image="a.png"),
    ),
    "no part": (
        {"messages": [{"role": "user", "content": "<image>What?"}, ANSWER], "images": ["a.png"]},
        llava("<image>What?", "A dog.", image="a.png"),
    ),
    "places": (
        {"messages": [user(PLACE, PLACE, text("Same?")), ANSWER], "images": ["a.png", "b.png"]},
        llava("<image>\n<image>\nSame?", "A dog.", image=["a.png", "b.png"]),
    ),
    "numbers, one shown twice": (
        {
            "messages": [
                user({"type": "image", "index": 1}, {"type": "image", "index": 0}, text("Which?")),
                ANSWER,
                user({"type": "image", "index": 1, "text": None}, {"type": "text", "text": "And?", "index": None}),
                ANSWER,
            ],
            "images": ["a.png", "b.png"],
        },
        llava("<image>\n<image>\nWhich?", "A dog.", "<image>\nAnd?", "A dog.", image=["b.png", "a.png", "b.png"]),
    ),
    "files and places": (
        {
            "messages": [user(PLACE, text("Like "), {"type": "image", "image": "b.png"}, text("?")), ANSWER],
            "images": ["a.png"],
        },
        llava("<image>\nLike <image>\n?", "A dog.", image=["a.png", "b.png"]),
    ),
    "system, texts in a row, an answer of parts": (
        {
            "messages": [
                {"role": "system", "content": [text("Be brief.")]},
                user(IMAGE, text(""), text("Wh"), text("at?")),
                {"role": "assistant", "content": [text("A dog.")]},
            ]
        },
        {
            "image": "a.png",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "A dog."},
            ],
        },
    ),
    "text alone": ({"messages": [user(text("Hello?")), ANSWER]}, llava("Hello?", "A dog.")),
    "nulls of a table": (
        {
            "messages": [
                {
                    "role": "user",
                    "from": None,
                    "content": [
                        {"type": "image", "text": None, "image": "a.png"},
                        {"type": "text", "text": "What?", "image": None},
                    ],
                },
                {**ANSWER, "from": None, "value": None},
            ],
            "image": None,
            "video": None,
        },
        llava("<image>\nWhat?", "A dog.", image="a.png"),
    ),
    "a video": (
        {"messages": [user({"type": "video", "video": "film"}, text("What?")), ANSWER]},
        llava("<image>\nWhat?", "A dog.", video="film"),
    ),
    "a video beside the turns": (
        {"messages": [user({"type": "video"}, text("What?")), ANSWER], "videos": ["film"]},
        llava("<image>\nWhat?", "A dog.", video="film"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    (folder / "film").mkdir()
    for number in range(3):
        Image.new("RGB", (30, 30), (90 * number, 0, 0)).save(folder / "film" / f"{number}.png")
    return folder


def items(record: dict[str, Any], folder: Path, template: str) -> dict[str, Any]:
    file = folder / "data.json"
    file.write_text(json.dumps([record]))
    flags = {
        "version": template,
        "image_folder": str(folder),
        "video_folder": str(folder),
        "image_processor": SigLipImageProcessor(size=(28, 28)),
        "image_aspect_ratio": "square",
        "train_on_answers_only": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / TEMPLATES[template])
    return LazySupervisedDataset(str(file), tokenizer, SimpleNamespace(**flags))[0]


@pytest.mark.parametrize("template", [name for name in TEMPLATES if (GOLDEN / TEMPLATES[name]).exists()])
@pytest.mark.parametrize("name", SAME)
def test_tokens_labels_and_pixels_are_those_of_the_llava_record(name: str, template: str, folder: Path) -> None:
    one, other = (items(record, folder, template) for record in SAME[name])
    assert one["input_ids"].tolist() == other["input_ids"].tolist()
    assert one["labels"].tolist() == other["labels"].tolist()
    assert len(one["image"]) == len(other["image"])
    for (pixels, size, kind), (as_before, as_size, as_kind) in zip(one["image"], other["image"], strict=True):
        assert (size, kind) == (as_size, as_kind) and torch.equal(pixels, as_before)


@pytest.mark.parametrize("name", SAME)
def test_turns_and_media_are_those_of_the_llava_record(name: str) -> None:
    one, other = (read_record(record, 0) for record in SAME[name])
    assert (one.turns, one.images, one.video) == (other.turns, other.images, other.video)


@pytest.mark.parametrize(
    ("content", "media", "message"),
    [
        ([], {}, "turn 0 has an empty list as its content"),
        (["What?"], {}, r"turn 0, part 0 must be an object with a `type`, got 'What\?'"),
        ([text("a"), {"text": "b"}], {}, "turn 0, part 1 has the type None; allowed: text, image, video"),
        ([{"type": "audio", "audio": "a.wav"}], {}, "part 0 has the type 'audio'; allowed: text, image, video"),
        ([{"type": "image", "url": "a.png"}], {}, "has the key 'url'; allowed: type, image, path, index"),
        (
            [{"type": "text", "text": "a", "image": "a.png"}],
            {},
            "of type text, has the key 'image'; allowed: type, text",
        ),
        ([{"type": "text", "text": 3}], {}, "part 0 needs a text under `text`, got 3"),
        (
            [{"type": "image", "image": "a.png", "path": "b.png"}],
            {},
            "several of `image`, `path` and `index`; give one",
        ),
        ([{"type": "image", "index": -1}], {"images": ["a.png"]}, "`index` must be a number from 0 on, got -1"),
        ([PLACE], {}, "a part is an image without a file: give it `image`, or the record a list `images`"),
        ([PLACE, IMAGE], {"images": ["a.png", "b.png"]}, "its parts take 1 of `images`, which has 2"),
        ([IMAGE], {"images": ["a.png"]}, "its parts take 0 of `images`, which has 1"),
        ([{"type": "image", "index": 1}], {"images": ["a.png"]}, "take the numbers 1 of `images`, which has 1"),
        ([{"type": "image", "index": 0}, PLACE], {"images": ["a.png"]}, "take the numbers 0 of `images`, which has 1"),
        ([IMAGE, {"type": "video", "video": "film"}], {}, "shows images or one video, not both"),
        ([{"type": "video", "video": "film"}], {"image": "a.png"}, "shows images or one video, not both"),
        ([{"type": "video", "video": "a"}, {"type": "video", "video": "b"}], {}, r"`video` must be one path"),
        ([{"type": "image", "image": "https://a.b/c.png"}], {}, "holds an address in place of a path"),
        ([{"type": "image", "image": {"bytes": "x"}}], {}, "`image` must be a path or a list of paths"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(content: list[Any], media: dict[str, Any], message: str) -> None:
    record = {"id": "r7", "messages": [{"role": "user", "content": content}, ANSWER], **media}
    with pytest.raises(InputError, match=message) as error:
        read_record(record, 7)
    assert str(error.value).startswith("record 'r7' (number 7): ")


def test_a_mark_in_a_text_takes_its_image_from_the_list_in_its_turn() -> None:
    parts = [user(text("<image> or"), {"type": "image", "image": "b.png"}), ANSWER]
    record = read_record({"messages": parts, "images": ["a.png"]}, 0)
    assert record.turns[0]["value"] == "<image> or\n<image>"
    assert record.images == ("a.png", "b.png")
