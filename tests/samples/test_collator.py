"""Batches against the conformance data; images leave with their marks; masks follow lengths, not ids."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from llava.errors import InputError
from llava.model.multimodal_encoder.siglip_encoder import SigLipImageProcessor
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.dataset import LazySupervisedDataset

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
CASES = json.loads((GOLDEN / "preprocess" / "collate.json").read_text())["cases"]
FILES = {"qwen_1_5": "qwen_1_5", "llava_llama_3": "llava_llama_3", "v1": "v1"}


def tokenizer_of(case: dict):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / case["tokenizer"], padding_side=case["padding_side"])
    tokenizer.model_max_length = case["model_max_length"]
    if tokenizer.pad_token is None and tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def items_of(case: dict, tokenizer, folder: Path) -> list[dict]:
    data = json.loads((GOLDEN / "preprocess" / f"{FILES[case['version']]}.json").read_text())
    records = {c["name"]: c["record"] for c in data["cases"]}
    file = folder / "data.json"
    file.write_text(json.dumps([records[name] for name in case["records"]]))
    data_args = SimpleNamespace(
        version=case["version"], image_folder=str(GOLDEN / "images"), image_processor=SigLipImageProcessor()
    )
    return list(LazySupervisedDataset(str(file), tokenizer, data_args))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case, tmp_path):
    tokenizer = tokenizer_of(case)
    items = items_of(case, tokenizer, tmp_path)
    batch = DataCollatorForSupervisedDataset(tokenizer)(items)
    assert sorted(batch) == case["keys"]
    assert batch["input_ids"].tolist() == case["input_ids"]
    assert batch["labels"].tolist() == case["labels"]
    assert [list(image.shape) for image in batch["images"]] == case["image_shapes"]
    assert [list(size) for size in batch["image_sizes"]] == case["image_sizes"]
    assert batch["modalities"] == case["modalities"]
    mask = batch["attention_mask"]
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [min(len(item["input_ids"]), case["model_max_length"]) for item in items]
    if case["name"] != "literal_pad_token_in_text":
        assert mask.int().tolist() == case["attention_mask"]


def item(ids: list[int], images: int | None, **more) -> dict:
    made = {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids).clamp(min=-100), "id": "r1", **more}
    if images is not None:
        made["image"] = [(torch.full((3, 4, 4), float(k)), (10 + k, 20), "image") for k in range(images)]
    return made


def collate(*items: dict, limit: int = 4, pad: int | None = 0, side: str = "right") -> dict:
    tokenizer = SimpleNamespace(model_max_length=limit, pad_token_id=pad, padding_side=side)
    return DataCollatorForSupervisedDataset(tokenizer)(items)


def test_cut_marks_take_their_images_along():
    batch = collate(item([1, -200, 2, 3, -200, 4], 2), item([1, -200, 5], 1))
    assert batch["input_ids"].tolist() == [[1, -200, 2, 3], [1, -200, 5, 0]]
    assert [image[0, 0, 0].item() for image in batch["images"]] == [0.0, 0.0]
    assert batch["image_sizes"] == [(10, 20), (10, 20)]


def test_row_whose_marks_are_all_cut_keeps_a_dummy():
    batch = collate(item([1, 2, 3, 4, -200, 4], 1), item([1, -200, 5], 1))
    assert batch["modalities"] == ["text", "image"]
    assert batch["images"][0].shape == (1, 3, 4, 4)
    assert batch["image_sizes"] == [(4, 4), (10, 20)]


def test_samples_with_and_without_images_in_any_order():
    batch = collate(item([1, 2], None), item([1, -200, 5], 1))
    assert batch["modalities"] == ["text", "image"]
    assert "images" not in collate(item([1, 2], None), item([3], None))


@pytest.mark.parametrize(("side", "expected"), [("right", [[1, 1, 1], [1, 0, 0]]), ("left", [[1, 1, 1], [0, 0, 1]])])
def test_pad_ids_inside_the_text_stay_attended(side, expected):
    batch = collate(item([0, 7, 0], None), item([7], None), pad=None, side=side)
    assert batch["attention_mask"].int().tolist() == expected
    assert batch["input_ids"][0].tolist() == [0, 7, 0]


def test_more_marks_than_images_is_refused():
    with pytest.raises(InputError, match="'r1' has 2 <image> marks, but 1 images"):
        collate(item([1, -200, -200, 3], 1))


def test_batch_without_labels_is_refused():
    nothing = item([1, 2], None, labels=torch.tensor([-100, -100]))
    with pytest.raises(InputError, match=r"no token of this batch is supervised.*'r1'.*model_max_length 4"):
        collate(nothing, nothing)
    assert collate(nothing, item([1, 2], None))["labels"].tolist() == [[-100, -100], [1, 2]]
