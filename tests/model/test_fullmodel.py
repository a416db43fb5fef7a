"""golden/fullmodel: a whole small checkpoint through the public functions, from pictures to losses and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from llava.constants import IGNORE_INDEX
from llava.mm_utils import process_anyres_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1] / "assets/golden/fullmodel"
EXPECTED = json.loads((ROOT / "expected.json").read_text())
RECORDS = {record["id"]: record for record in json.loads((ROOT / "data/data.json").read_text())}
CASES = {case["id"]: case for case in EXPECTED["cases"]}
PAD = 900


@pytest.fixture(scope="module")
def loaded(fullmodel_tower):
    return load_pretrained_model(
        str(ROOT / "checkpoint"),
        None,
        "llava_qwen",
        torch_dtype="float32",
        attn_implementation="sdpa",
        overwrite_config={"mm_vision_tower": str(fullmodel_tower)},
    )


def pictures_of(name: str) -> list[Image.Image]:
    files = RECORDS[name].get("image", [])
    return [Image.open(ROOT / "data/images" / file) for file in ([files] if isinstance(files, str) else files)]


def inputs_of(name: str, loaded) -> dict:
    """What the model takes for one sample; several pictures go in padded, a text brings a black dummy."""
    _, model, processor, _ = loaded
    pictures = pictures_of(name)
    if not pictures:
        return {"images": [torch.zeros(1, 3, 384, 384)], "image_sizes": [(384, 384)], "modalities": ["text"]}
    config = AutoConfig.for_model("qwen2", image_grid_pinpoints=model.config.image_grid_pinpoints)
    config.image_aspect_ratio = "pad" if len(pictures) > 1 else "anyres_max_9"
    pixels = process_images(pictures, processor, config)
    sizes = [picture.size for picture in pictures]
    return {"images": list(pixels), "image_sizes": sizes, "modalities": ["image"] * len(pictures)}


@torch.no_grad()
def forward(case: dict, loaded, **inputs):
    ids, labels = torch.tensor([case["input_ids"]]), torch.tensor([case["labels"]])
    return loaded[1](ids, attention_mask=torch.ones_like(ids, dtype=torch.bool), labels=labels, **inputs)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_logits(name, loaded):
    case, inputs = CASES[name], inputs_of(name, loaded)
    assert [len(image) if image.ndim == 4 else 1 for image in inputs["images"]] == case["tiles"]
    assert [list(size) for size in inputs["image_sizes"]] == case["image_sizes"]
    output = forward(case, loaded, **inputs)
    assert output.logits.shape[1] == case["sequence_length"]
    assert output.loss.item() == pytest.approx(case["loss"], abs=1e-4)
    np.testing.assert_allclose(output.logits[0, -1, :16], case["last_logits_first_16"], atol=1e-3)


@pytest.mark.parametrize("name", [name for name in CASES if name != "big"])
def test_loss_with_black_images(name, loaded):
    inputs = inputs_of(name, loaded)
    inputs["images"] = [torch.zeros_like(image) for image in inputs["images"]]
    assert forward(CASES[name], loaded, **inputs).loss.item() == pytest.approx(
        CASES[name]["loss_with_black_images"], abs=1e-4
    )


def test_loss_of_the_padded_batch(loaded):
    length = max(len(case["input_ids"]) for case in CASES.values())
    ids = torch.full((len(CASES), length), PAD)
    labels = torch.full((len(CASES), length), IGNORE_INDEX)
    mask = torch.zeros((len(CASES), length), dtype=torch.bool)
    together: dict = {"images": [], "image_sizes": [], "modalities": []}
    for row, (name, case) in enumerate(CASES.items()):
        count = len(case["input_ids"])
        ids[row, :count] = torch.tensor(case["input_ids"])
        labels[row, :count] = torch.tensor(case["labels"])
        mask[row, :count] = True
        for key, values in inputs_of(name, loaded).items():
            together[key] += values
    with torch.no_grad():
        loss = loaded[1](ids, attention_mask=mask, labels=labels, **together).loss
    assert loss.item() == pytest.approx(EXPECTED["batch_loss_all_six_right_padded"], abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens(name, loaded):
    case, inputs = CASES[name], inputs_of(name, loaded)
    inputs = {} if inputs["modalities"] == ["text"] else inputs
    tokens = loaded[1].generate(
        torch.tensor([case["prompt_ids"]]), **inputs, do_sample=False, max_new_tokens=8, pad_token_id=PAD
    )
    assert tokens[0].tolist() == case["generated_ids"]


def test_greedy_tokens_of_a_batch_without_mask_or_left_padding(loaded):
    names = ["wide", "text", "two_images"]
    prompts = [CASES[name]["prompt_ids"] for name in names]
    length = max(map(len, prompts))
    ids = torch.tensor([prompt + [PAD] * (length - len(prompt)) for prompt in prompts])
    inputs = [inputs_of(name, loaded) for name in names]
    together = {key: [value for one in inputs for value in one[key]] for key in inputs[0]}
    tokens = loaded[1].generate(ids, **together, do_sample=False, max_new_tokens=8, pad_token_id=PAD)
    assert [row.tolist() for row in tokens] == [CASES[name]["generated_ids"] for name in names]


def test_prompt_ids_of_the_chat_template(loaded):
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat is in the image?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer_image_token(prompt, loaded[0]) == CASES["wide"]["prompt_ids"]


def test_tower_and_projector(loaded):
    arrays = np.load(ROOT / "tower.npz")
    _, model, processor, _ = loaded
    tiles = process_anyres_image(pictures_of("wide")[0], processor, model.config.image_grid_pinpoints)[:2]
    with torch.no_grad():
        features = model.get_vision_tower()(tiles)
        projected = model.encode_images(tiles)
    np.testing.assert_allclose(features.sum(-1), arrays["features_row_sum"], atol=1e-3)
    np.testing.assert_allclose(features[:, ::81], arrays["features_sample"], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(projected[:, ::81], arrays["projected_sample"], atol=1e-4, rtol=1e-4)


def test_what_is_returned(loaded):
    tokenizer, model, processor, context = loaded
    assert context == 16384
    assert not model.training
    assert processor.size == (384, 384)
    # Embeddings with rows to spare are not cut down to the tokenizer.
    assert model.get_input_embeddings().weight.shape[0] == 908 > len(tokenizer)
    assert model.get_vision_tower().num_patches_per_side == 27


def test_tower_config_from_the_hub_cache(fullmodel_tower, tmp_path, monkeypatch):
    """The hub id in config.json is enough when the hub cache knows its config; no weights are fetched."""
    repository = tmp_path / "models--google--siglip-so400m-patch14-384"
    snapshot = repository / "snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text((fullmodel_tower / "config.json").read_text())
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    _, model, _, _ = load_pretrained_model(str(ROOT / "checkpoint"), None, "llava_qwen", torch_dtype="auto")
    assert model.get_vision_tower().hidden_size == 48
    assert model.dtype == torch.bfloat16
