"""The number of tokens of an image agrees with the spliced lengths of the conformance data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.samples.image_tokens import ImageTokenCounter

DATA = json.loads((Path(__file__).parents[1] / "assets" / "golden" / "multimodal" / "splice.json").read_text())
TOWER = SimpleNamespace(num_patches=729, image_size=384)


def is_plain(case: dict) -> bool:
    """One row, all of it attended and none cut, and a list of images with a mark each."""
    lengths = case.get("out", {}).get("lengths")
    if "quirk" in case or case["images_form"] != "list" or not lengths or len(lengths) != 1:
        return False
    attended = all(case["attention_mask"][0]) if case.get("attention_mask") else True
    cut = lengths[0] >= (case["config"].get("tokenizer_model_max_length") or 1 << 30)
    marks = case["input_ids"][0].count(-200)
    return attended and not cut and marks == len(case["images"]) == len(case["modalities"])


CASES = {case["name"]: case for case in DATA["cases"] if is_plain(case)}


def test_enough_cases():
    assert len(CASES) > 30


@pytest.mark.parametrize("name", CASES)
def test_counts(name):
    case = CASES[name]
    config = SimpleNamespace(image_grid_pinpoints=DATA["image_grid_pinpoints"], **case["config"])
    counter = ImageTokenCounter.of_tower(config, TOWER)
    tokens = 0
    for image, modality in zip(case["images"], case["modalities"], strict=True):
        shape = (3, 1, 1) if image["tensor_dims"] == 3 else (image["tiles"], 3, 1, 1)
        tokens += counter(torch.zeros(shape), tuple(image["size"]), modality)
    text = len(case["input_ids"][0]) - len(case["images"])
    assert text + tokens == case["out"]["lengths"][0]
