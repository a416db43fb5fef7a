"""Visual tokens in the text: every case of golden/multimodal, what is refused, and the pieces one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.model import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.splicing import count_marks, images_per_row, pad_rows, skip_positions

FILE = Path(__file__).parents[1] / "assets/golden/multimodal/splice.json"
SPLICE = json.loads(FILE.read_text())
HIDDEN, VOCABULARY = SPLICE["hidden_size"], SPLICE["vocab_size"]
REFUSED = {"fewer_images_than_tags", "more_images_than_tags", "modalities_shorter_than_batch", "unknown_merge_type"}
BETTER = {"video_pool_stride_3_in_config", "faster_video"}
CASES = {case["name"]: case for case in SPLICE["cases"]}


class StubTower(nn.Module):
    """Features by the formula in splice.json; every pixel of a tile is the tile's number."""

    image_size = SPLICE["tile_size"]
    is_loaded = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tile = images[:, 0, 0, 0].double()[:, None, None]
        patch = torch.arange(SPLICE["patches_per_side"] ** 2, dtype=torch.float64)[None, :, None]
        channel = torch.arange(HIDDEN, dtype=torch.float64)[None, None]
        numbers = ((tile + 1) * 7919 + patch * 31 + channel * 17) % 1009
        return (numbers / 1009 - 0.5).float()


def build(config_values: dict) -> LlavaQwenForCausalLM:
    config = LlavaQwenConfig(
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        image_grid_pinpoints=SPLICE["image_grid_pinpoints"],
        **config_values,
    )
    model = LlavaQwenForCausalLM(config).eval().requires_grad_(False)
    model.model.vision_tower = StubTower()
    model.model.mm_projector = nn.Identity()
    model.model.image_newline = nn.Parameter(0.125 * (torch.arange(HIDDEN) + 1).float(), requires_grad=False)
    token, channel = torch.arange(VOCABULARY, dtype=torch.float64)[:, None], torch.arange(HIDDEN)[None]
    model.model.embed_tokens.weight.data = (((token * 131 + channel * 29 + 5) % 997) / 997 - 0.5).float()
    return model


def pixels_of(case: dict) -> torch.Tensor | list[torch.Tensor]:
    images = []
    for image in case["images"]:
        tiles = torch.arange(image["first_tile_id"], image["first_tile_id"] + image["tiles"]).float()
        tensor = tiles[:, None, None, None].expand(-1, 3, 384, 384)
        images.append(tensor[0] if image["tensor_dims"] == 3 else tensor)
    return torch.stack(images) if case["images_form"] == "tensor" else images


def splice(case: dict):
    def tensor(name, dtype=torch.long):
        return None if case[name] is None else torch.tensor(case[name], dtype=dtype)

    return build(case["config"]).prepare_inputs_labels_for_multimodal(
        tensor("input_ids"),
        tensor("position_ids"),
        tensor("attention_mask", torch.bool),
        None,
        tensor("labels"),
        pixels_of(case),
        case["modalities"],
        [tuple(image["size"]) for image in case["images"]],
    )


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden / "multimodal/splice.npz")


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED | BETTER])
def test_splice(name, arrays):
    case = CASES[name]
    ids, positions, mask, _, embeds, labels = splice(case)
    if case.get("passthrough"):
        assert ids.tolist() == case["input_ids"]
        assert embeds is None
        return
    expected = case["out"]
    assert ids is None
    assert list(embeds.shape) == expected["shape"]
    row_sum = (embeds.double() * (torch.arange(HIDDEN) + 1)).sum(-1).numpy()
    np.testing.assert_allclose(row_sum, arrays[f"{name}__row_sum"], atol=1e-4)
    sample = embeds[:, arrays[f"{name}__sample_index"]].numpy()
    np.testing.assert_allclose(sample, arrays[f"{name}__sample"], atol=1e-5)
    for found, key in ((labels, "labels"), (mask, "attention_mask"), (positions, "position_ids")):
        assert (found is None) == (f"{name}__{key}" not in arrays)
        if found is not None:
            np.testing.assert_array_equal(found.numpy(), arrays[f"{name}__{key}"])
    if mask is not None:
        assert mask.dtype == torch.bool
        assert mask.sum(1).tolist() == expected["lengths"]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_match_is_refused(name):
    words = {"unknown_merge_type": "mm_patch_merge_type 'weird'", "modalities_shorter_than_batch": "modalities has 1"}
    with pytest.raises(InputError, match=words.get(name, "<image> marks")):
        splice(CASES[name])


def test_pool_stride_of_the_config_is_used():
    embeds = splice(CASES["video_pool_stride_3_in_config"])[4]
    text = len(CASES["video_pool_stride_3_in_config"]["input_ids"][0]) - 1
    assert embeds.shape[1] == text + 3 * 9 * (9 + 1)


def test_faster_video_pools_frames_in_between_harder():
    case = CASES["faster_video"]
    model = build(case["config"])
    model.model.faster_token = nn.Parameter(torch.full((HIDDEN,), 5.0))
    ids = torch.tensor(case["input_ids"])
    sizes = [tuple(image["size"]) for image in case["images"]]
    embeds = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, pixels_of(case), "video", sizes)[4]
    # Frame 0 with 14 rows and frame 1 with 7, each row with its newline and each frame with the extra token.
    assert embeds.shape[1] == ids.shape[1] - 1 + 14 * 15 + 1 + 7 * 8 + 1
    assert (embeds == 5.0).all(-1).sum() == 2


def test_wrong_number_of_tiles_is_refused():
    case = {**CASES["anyres_1x2"], "images": [{**CASES["anyres_1x2"]["images"][0], "tiles": 4}]}
    with pytest.raises(InputError, match="grid of 2 x 1"):
        splice(case)


def test_images_without_a_newline_parameter_are_refused():
    case = CASES["one_tile"]
    model = build(case["config"])
    del model.model.image_newline
    with pytest.raises(InputError, match="no image_newline"):
        model.image_features(pixels_of(case), [(384, 384)], "image")


def test_sizes_must_be_given_for_each_image():
    model = build(CASES["two_images_one_sample"]["config"])
    with pytest.raises(InputError, match="image_sizes has 1 entries for 2 images"):
        model.image_features(pixels_of(CASES["two_images_one_sample"]), [(384, 384)], None)


def test_unknown_modality_is_refused():
    model = build(CASES["one_tile"]["config"])
    with pytest.raises(InputError, match=r"modality 'sound'.*allowed: image, video, text"):
        model.image_features(pixels_of(CASES["one_tile"]), None, ["sound"])


@pytest.mark.parametrize(
    ("marks", "images", "expected"),
    [([1, 1], 2, [(0, 1), (1, 2)]), ([0, 2], 3, [(0, 1), (1, 3)]), ([0, 2], 2, [(0, 0), (0, 2)]), ([0], 0, [(0, 0)])],
)
def test_images_belong_to_rows_with_and_without_dummies(marks, images, expected):
    assert images_per_row(marks, images) == expected


def test_counting_marks():
    rows = [torch.tensor([1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX]), torch.tensor([3])]
    assert count_marks(rows) == [2, 0]


def test_cutting_is_announced(caplog):
    splice(CASES["truncate_some"])
    assert "cut to tokenizer_model_max_length 1500" in caplog.text


def test_unknown_padding_side_is_refused():
    with pytest.raises(InputError, match="allowed: right, left"):
        pad_rows([torch.zeros(2, 3)], [torch.zeros(2, dtype=torch.long)], "middle")


def test_skipped_positions_jump_twice_and_stay_in_range():
    batch = pad_rows([torch.zeros(20, 2), torch.zeros(5, 2)], [torch.zeros(20).long(), torch.zeros(5).long()], "left")
    torch.manual_seed(0)
    for _ in range(20):
        skipped = skip_positions(batch, 100) - batch.position_ids
        assert skipped[1, :15].eq(0).all()
        for row, mask in zip(skipped, batch.mask, strict=True):
            jumps = row[mask]
            assert (jumps.diff() >= 0).all()
            assert len(jumps.unique()) <= 2
            assert 0 <= jumps.min() <= jumps.max() <= 100
