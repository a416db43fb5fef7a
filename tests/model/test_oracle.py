"""A second opinion: the library's own LlavaOnevisionForConditionalGeneration with the same weights."""

from __future__ import annotations

import re

import pytest
import torch
from small_llava import SMALL_QWEN, SMALL_TOWER
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX

IMAGE_TOKEN = 907
SIDE, TILE = 4, 32
PINPOINTS = [[TILE * rows, TILE * columns] for rows in range(1, 4) for columns in range(1, 4)]

# Their name -> ours; the language model's names are handled by the first.
RENAMED = (
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
)


def our_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture
def oracle(small_model):
    """Their model, whose weights are copied into ours; theirs keeps the last vision layer and reads the one before."""
    config = LlavaOnevisionConfig(
        vision_config=SMALL_TOWER | {"vision_use_head": False},
        text_config=SMALL_QWEN | {"model_type": "qwen2"},
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    theirs = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    ours = small_model.state_dict()
    weights = {our_name(name): value for name, value in theirs.state_dict().items()}
    assert set(ours) <= set(weights)
    assert all("encoder.layers.2." in name or "position_ids" in name for name in set(weights) - set(ours))
    small_model.load_state_dict({name: weights[name] for name in ours})
    return theirs


@pytest.mark.parametrize(
    ("image_size", "tiles"),
    [((30, 30), 1), ((30, 30), 2), ((60, 25), 3), ((20, 90), 4), ((64, 64), 5), ((100, 60), 7), ((96, 96), 10)],
    ids=lambda value: str(value),
)
@torch.no_grad()
def test_logits_agree(image_size, tiles, oracle, small_model):
    torch.manual_seed(sum(image_size))
    pixels = torch.randn(tiles, 3, TILE, TILE)
    before, after = [5, 6, 7], [8, 9, 10, 11]
    mine = small_model(
        torch.tensor([[*before, IMAGE_TOKEN_INDEX, *after]]), images=[pixels], image_sizes=[image_size]
    ).logits
    visual = mine.shape[1] - len(before) - len(after)
    if tiles == 1:
        theirs = one_tile(oracle, pixels, before, after)
    else:
        theirs = oracle(
            input_ids=torch.tensor([[*before, *[IMAGE_TOKEN] * visual, *after]]),
            pixel_values=pixels[None],
            image_sizes=torch.tensor([[image_size[1], image_size[0]]]),
        ).logits
    assert mine.shape == theirs.shape
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def one_tile(oracle, pixels, before, after):
    """One tile is their way for an image among several; one of two images is read, the other left out of the text."""
    features = oracle.model.get_image_features(
        pixels.repeat(2, 1, 1, 1), image_sizes=torch.tensor([[9, 9], [9, 9]]), batch_num_images=torch.tensor([2])
    ).pooler_output[0]
    embed = oracle.get_input_embeddings()
    parts = [embed(torch.tensor(before)), features, embed(torch.tensor(after))]
    return oracle(inputs_embeds=torch.cat(parts)[None]).logits
