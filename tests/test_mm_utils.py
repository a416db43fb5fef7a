"""Tiles, pixels and prompts against the conformance data, and the messages for wrong input."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from llava import mm_utils
from llava.errors import InputError
from llava.model.multimodal_encoder.image_processor import SigLipImageProcessor, clip_image_processor

ROOT = Path(__file__).parent / "assets" / "golden"
GRID = json.loads((ROOT / "anyres/grid.json").read_text())
GEOMETRY = json.loads((ROOT / "anyres/geometry.json").read_text())["cases"]
PINPOINTS = json.loads((ROOT / "anyres/train_pinpoints.json").read_text())["cases"]
PIXELS = json.loads((ROOT / "images/pixels.json").read_text())
TOKENS = json.loads((ROOT / "conversation/tokenizer_image_token.json").read_text())


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(1, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("case", GRID["cases"], ids=lambda case: "x".join(map(str, case["size"])))
def test_best_resolution_and_grid(case):
    expanded = mm_utils.expand_grid_pinpoints(GRID["pinpoints"], GRID["patch_size"])
    assert expanded == GRID["expanded_pinpoints"]
    assert list(mm_utils.select_best_resolution(tuple(case["size"]), expanded)) == case["best_resolution"]
    assert list(mm_utils.get_anyres_image_grid_shape(case["size"], GRID["pinpoints"], 384)) == case["grid_shape"]


@pytest.mark.parametrize("case", GRID["more"], ids=str)
def test_grid_with_other_pinpoints(case):
    grid = mm_utils.get_anyres_image_grid_shape(tuple(case["size"]), case["pinpoints"], case["patch_size"])
    assert list(grid) == case["grid_shape"]


@pytest.mark.parametrize("case", PINPOINTS, ids=lambda case: str(case["flag"]))
def test_pinpoints_flag(case):
    if case["flag"] is None:
        pytest.skip("no flag was given")
    if case["image_aspect_ratio"] == "highres":
        pytest.skip("highres images are not supported")
    assert mm_utils.expand_grid_pinpoints(case["flag"], 384) == case["config_image_grid_pinpoints"]


@pytest.mark.parametrize("pinpoints", ["1x1", "384,768", "", "(0x1),...,(2x2)", "(3x3),...,(1x1)", None, [], [[384]]])
def test_bad_pinpoints_are_refused(pinpoints):
    with pytest.raises(InputError, match="image_grid_pinpoints"):
        mm_utils.expand_grid_pinpoints(pinpoints, 384)


def test_any_processor_size_works():
    assert mm_utils.expand_grid_pinpoints("(1x1),...,(1x2)", 56) == [[56, 56], [56, 112]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_best_resolution_is_at_least_as_good_as_every_other(width, height):
    """Straight from the definition, by trying all."""

    def effective(resolution):
        scale = min(resolution[0] / width, resolution[1] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    best = mm_utils.select_best_resolution((width, height), GRID["expanded_pinpoints"])
    assert effective(best) == max(effective(other) for other in GRID["expanded_pinpoints"])


# ---------------------------------------------------------------------------------------------- pictures


def content_box(image: Image.Image) -> list[int]:
    return list(image.getbbox())


@pytest.mark.parametrize("case", GEOMETRY, ids=lambda case: "x".join(map(str, case["size"])))
def test_geometry(case):
    image = picture(tuple(case["size"]))
    padded = mm_utils.resize_and_pad_image(image, tuple(case["target"]))
    assert list(padded.size) == case["target"]
    assert content_box(padded) == case["content_box"]
    tiles = mm_utils.divide_to_patches(padded, 384)
    assert len(tiles) == case["tiles"]
    square = mm_utils.expand2square(image, (0, 0, 0))
    assert square.size == (case["square_side"], case["square_side"])
    assert content_box(square) == case["square_content_box"]


def test_tiles_are_cut_row_by_row():
    image = picture((6, 4))
    tiles = mm_utils.divide_to_patches(image, 2)
    again = Image.new("RGB", image.size)
    for index, tile in enumerate(tiles):
        again.paste(tile, (index % 3 * 2, index // 3 * 2))
    assert again.tobytes() == image.tobytes()


def processor_of(case):
    return clip_image_processor(336) if "CLIP" in case.get("processor", "") else SigLipImageProcessor()


def pixels_of(case, image, processor):
    if case["function"].startswith("process_anyres_image"):
        return mm_utils.process_anyres_image(image, processor, case["pinpoints"])
    if "pad" in case["function"]:
        return mm_utils.process_images([image], processor, SimpleNamespace(image_aspect_ratio="pad"))
    return processor.preprocess(image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("case", PIXELS["cases"], ids=lambda case: case["key"])
def test_pixels(case, golden):
    image = Image.open(golden / "images" / case["image"]).convert("RGB")
    pixels = pixels_of(case, image, processor_of(case)).numpy()
    assert list(pixels.shape) == case["shape"]
    assert pixels.dtype == np.float32
    expected = np.load(golden / "images/pixels.npz")[case["key"]]
    sample = pixels[:, :, :: case["stride"], :: case["stride"]]
    np.testing.assert_allclose(sample.reshape(expected.shape), expected, atol=1e-5)
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    np.testing.assert_allclose(flat.mean(1), case["mean"], atol=1e-5)
    np.testing.assert_allclose(flat.std(1), case["std"], atol=1e-5)
    assert pixels.min() == pytest.approx(case["min"], abs=1e-5)
    assert pixels.max() == pytest.approx(case["max"], abs=1e-5)


@pytest.mark.parametrize("case", PIXELS["dataset_process_image"], ids=lambda case: f"{case['aspect']}-{case['image']}")
def test_shapes_of_each_aspect_ratio(case, golden):
    image = Image.open(golden / "images" / case["image"])
    process = mm_utils.image_processing(case["aspect"])
    assert list(process(image, SigLipImageProcessor(), GRID["pinpoints"]).shape) == case["shape"]


def test_siglip_processor_fields():
    expected, processor = PIXELS["siglip_processor"], SigLipImageProcessor()
    assert list(processor.image_mean) == expected["image_mean"]
    assert list(processor.image_std) == expected["image_std"]
    assert list(processor.size) == expected["size"]
    assert processor.crop_size == expected["crop_size"]
    assert int(processor.resample) == expected["resample"]
    assert processor.rescale_factor == expected["rescale_factor"]


def test_process_images_stacks_equal_shapes_and_lists_others():
    config = SimpleNamespace(image_aspect_ratio="anyres_max_9", image_grid_pinpoints=GRID["pinpoints"])
    pictures = [picture((384, 384)), picture((100, 100)), picture((900, 384))]
    processor = SigLipImageProcessor()
    assert mm_utils.process_images(pictures[:2], processor, config).shape == (2, 2, 3, 384, 384)
    assert [len(tensor) for tensor in mm_utils.process_images(pictures, processor, config)] == [2, 2, 4]
    assert mm_utils.process_images(pictures, processor, SimpleNamespace()).shape == (3, 3, 384, 384)


def test_frames_as_one_array():
    frames = np.stack([np.asarray(picture((40, 30)))] * 4)
    assert SigLipImageProcessor().preprocess(frames, return_tensors="pt")["pixel_values"].shape == (4, 3, 384, 384)
    with pytest.raises(InputError, match="uint8"):
        SigLipImageProcessor().preprocess(frames.astype(np.float32))


@pytest.mark.parametrize("name", ["highres", "crop_split", "anyres_max_", "anyres_max_0", "squares", ""])
def test_unknown_aspect_ratios_list_the_allowed_ones(name):
    with pytest.raises(InputError, match="allowed: square, pad, anyres, anyres_max_N"):
        mm_utils.image_processing(name)


@pytest.mark.parametrize(
    "name", ["process_highres_image", "process_highres_image_crop_split", "resize_and_center_crop", "extract_patches"]
)
def test_unsupported_modes_say_so(name):
    with pytest.raises(InputError, match="not supported"):
        getattr(mm_utils, name)(picture((4, 4)), None, None)


def test_image_from_base64():
    buffer = BytesIO()
    picture((5, 7)).save(buffer, "PNG")
    assert mm_utils.load_image_from_base64(base64.b64encode(buffer.getvalue())).size == (5, 7)


def test_anyres_needs_one_size():
    processor = clip_image_processor(336)
    processor.crop_size = {"height": 224, "width": 224}
    with pytest.raises(InputError, match="resizes to 336 and crops to 224"):
        mm_utils.process_anyres_image(picture((9, 9)), processor, GRID["pinpoints"])


# ---------------------------------------------------------------------------------------------- text


@pytest.fixture(scope="module")
def tokenizers(golden):
    names = {case["tokenizer"] for case in TOKENS["cases"]}
    return {name: AutoTokenizer.from_pretrained(golden / name) for name in names}


@pytest.mark.parametrize("case", TOKENS["cases"], ids=lambda case: f"{case['tokenizer']}-{case['prompt']!r}")
def test_tokenizer_image_token(case, tokenizers):
    tokenizer = tokenizers[case["tokenizer"]]
    assert mm_utils.tokenizer_image_token(case["prompt"], tokenizer) == case["ids"]
    as_tensor = mm_utils.tokenizer_image_token(case["prompt"], tokenizer, -7, return_tensors="pt")
    assert as_tensor.dtype == torch.long
    assert as_tensor.tolist() == case["ids_index_m7"]


def test_other_return_tensors_are_refused(tokenizers):
    with pytest.raises(InputError, match="return_tensors"):
        mm_utils.tokenizer_image_token("a", tokenizers["tokenizer_qwen"], return_tensors="np")


@pytest.mark.parametrize(("path", "name"), TOKENS["model_name_from_path"])
def test_model_name_from_path(path, name):
    assert mm_utils.get_model_name_from_path(path) == name


def test_stopping_at_keywords_row_by_row(tokenizers):
    tokenizer = tokenizers["tokenizer_qwen"]
    prompt = torch.tensor([tokenizer("###").input_ids] * 2)
    criteria = mm_utils.KeywordsStoppingCriteria(["###"], tokenizer, prompt)
    answers = [tokenizer("red ###").input_ids, tokenizer("a blue").input_ids]
    length = max(map(len, answers))
    rows = torch.tensor([[0] * (length - len(answer)) + answer for answer in answers])
    assert criteria(torch.cat([prompt, rows], dim=1)).tolist() == [True, False]
    assert criteria(rows).tolist() == [True, False]
    assert criteria(prompt).tolist() == [False, False]
