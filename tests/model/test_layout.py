"""A batch laid out on the host gives the loss of the model's own splicing, whatever is merged, cut or padded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.errors import InputError
from llava.model import layout
from llava.train.zo.laid_out_forwards import laid_out_loss
from llava.train.zo.sparse_loss import sparse_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import test_sparse_loss
from test_sparse_loss import batch, build


def with_vectors(model: Any, inputs: dict[str, Any], bucket: int) -> dict[str, torch.Tensor]:
    """The tensors of the layout, with the images' vectors."""
    laid_out = model.geometry.lay_out(inputs, bucket)
    tensors: dict[str, torch.Tensor] = laid_out.tensors()
    vectors = []
    for image in laid_out.images:
        features = model.encode_images(inputs["images"][image.number])
        merged = image.merged
        vectors.append(model.merged_tokens(features, image.size, image.kind) if merged else features.flatten(0, 1))
    return tensors | ({"vectors": torch.cat(vectors)} if vectors else {})


def losses(model: Any, inputs: dict[str, Any], bucket: int) -> tuple[float, float]:
    """Of the model's own forward, and of the layout."""
    with torch.no_grad():
        own = sparse_loss(model, inputs)
        assert own is not None
        return float(own), float(laid_out_loss(model, with_vectors(model, inputs, bucket)))


def a_grid_of_four(inputs: dict[str, Any]) -> None:
    """The second image has five tiles."""
    inputs["images"][1], inputs["image_sizes"][1] = torch.randn(5, 3, 32, 32), (64, 64)


MERGES: dict[str, tuple[dict[str, Any], list[str], bool]] = {
    "unpad": ({}, ["image"] * 3, False),
    "resized": ({"image_aspect_ratio": "anyres_max_1"}, ["image"] * 3, True),
    "maxpool": ({"mm_patch_merge_type": "spatial_unpad_maxpool2x2"}, ["image"] * 3, True),
    "nobase": ({"mm_patch_merge_type": "spatial_unpad_nobase"}, ["image"] * 3, False),
    "spatial": ({"mm_patch_merge_type": "spatial"}, ["image"] * 3, False),
    "flat": ({"mm_patch_merge_type": "flat"}, ["image"] * 3, False),
    "video": ({"mm_newline_position": "grid"}, ["image", "video", "image"], True),
    "faster video": (
        {"mm_newline_position": "grid", "add_faster_video": True, "faster_token_stride": 2},
        ["image", "video", "image"],
        True,
    ),
}


@pytest.mark.parametrize("bucket", [1, 8])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("merge", MERGES)
def test_the_loss_is_the_models_own(merge: str, padding: str, bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, modalities, merged = MERGES[merge]
    monkeypatch.setattr(test_sparse_loss, "VISION", test_sparse_loss.VISION | settings)
    model, inputs = build("llava_qwen", tokenizer_padding_side=padding), batch(padding, images=True)
    inputs["modalities"] = modalities
    if "video" not in modalities:
        a_grid_of_four(inputs)
    assert any(image.merged for image in model.geometry.lay_out(inputs).images) == merged
    own, laid_out = losses(model, inputs, bucket)
    assert laid_out == pytest.approx(own, abs=2e-5)


def test_a_trained_newline_and_another_language_model() -> None:
    model, inputs = build("llava_llama"), batch("right", images=True)
    own, laid_out = losses(model, inputs, 1)
    assert laid_out == pytest.approx(own, abs=2e-5)
    model.model.image_newline.data.fill_(2.0)
    other, laid_out = losses(model, inputs, 1)
    assert laid_out == pytest.approx(other, abs=2e-5)
    assert abs(other - own) > 1e-3


@pytest.mark.parametrize("dummies", [True, False])
def test_rows_without_an_image(dummies: bool) -> None:
    model, inputs = build("llava_qwen"), batch("right", images=True)
    inputs["input_ids"][1, 1] = 7
    if not dummies:
        for name in ("images", "image_sizes", "modalities"):
            del inputs[name][1]
    laid_out = model.geometry.lay_out(inputs)
    assert [image.number for image in laid_out.images] == ([0, 2] if dummies else [0, 1])
    own, again = losses(model, inputs, 1)
    assert again == pytest.approx(own, abs=2e-5)


def test_text_alone() -> None:
    model, inputs = build("llava_qwen"), batch("right", images=False)
    own, laid_out = losses(model, inputs, 8)
    assert laid_out == pytest.approx(own, abs=2e-5)


def test_a_row_that_is_too_long_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = build("llava_qwen", tokenizer_model_max_length=30), batch("right", images=True)
    own, laid_out = losses(model, inputs, 1)
    assert laid_out == pytest.approx(own, abs=2e-5)
    assert model.geometry.lay_out(inputs).source.shape[1] == 30
    assert "is cut to tokenizer_model_max_length 30" in caplog.text


def test_a_bucket_leaves_few_shapes() -> None:
    """Batches of unlike lengths, with unlike many supervised tokens, become tensors of the same shapes."""
    model, inputs = build("llava_qwen"), batch("right", images=True)
    other = {**inputs, "labels": inputs["labels"].clone()}
    other["labels"][1, :8] = IGNORE_INDEX
    shorter = {name: inputs[name][:, :9] for name in ("input_ids", "labels", "attention_mask")} | {
        name: inputs[name] for name in ("images", "image_sizes", "modalities")
    }
    shapes = [
        {name: tensor.shape for name, tensor in model.geometry.lay_out(given, 64).tensors().items()}
        for given in (inputs, other, shorter)
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0]["source"] == (3, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs["input_ids"].__setitem__((0, 0), 300), "token id 300 is not among the 300"),
        (lambda inputs: inputs["input_ids"].__setitem__((0, 0), -5), "token id -5"),
        (lambda inputs: inputs["images"].pop(), "2 images, but its text has 3 <image> marks"),
        (lambda inputs: inputs.pop("images"), "no images were given"),
        (lambda inputs: inputs["image_sizes"].__setitem__(1, (32, 32)), "process images with the model's own"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, message: str) -> None:
    model, inputs = build("llava_qwen"), batch("right", images=True)
    if message.startswith("2 images"):
        del inputs["image_sizes"][2], inputs["modalities"][2]
    change(inputs)
    with pytest.raises(InputError, match=message):
        model.geometry.lay_out(inputs)


def test_few_sizes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST_KNOWN", 4)
    model, inputs = build("llava_qwen"), batch("right", images=True)
    for width in range(40, 60):
        inputs["image_sizes"][1] = (width, 20)
        model.geometry.lay_out(inputs)
    assert len(model.geometry._known) <= 4
